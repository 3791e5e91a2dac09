"""The gateway's settings, from TAXIMETER_... variables."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from taximeter_schemas.settings import LogSettings, TraceSettings


class GatewaySettings(LogSettings, TraceSettings):
    """Where it listens, what stands behind it, and how it treats what it cannot decide at once."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    gateway_port: int = Field(8080, ge=0, le=65_535, description="Port to listen on")
    gateway_id: str = Field(
        "gateway-1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Unique name of this gateway"
    )
    gateway_region: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Region of the model servers behind it: chooses prices that name a region; a client cannot",
    )
    upstream_url: str = Field(
        "http://127.0.0.1:8090", description="The model server: vLLM or any OpenAI-compatible one"
    )
    upstream_api_key: SecretStr | None = Field(None, description="Sent to the model server as a bearer key")
    salt_secret: SecretStr = Field(
        description="Secret that cache salts and block hashes are derived from", min_length=16
    )
    salt_key_id: str = Field("1", description="Names the salt secret; a new one empties every tenant's cache")
    gateway_body_bytes_max: int = Field(10_485_760, ge=1_024, description="Longest request body taken, in bytes")
    gateway_lease_wait_ms: int = Field(2_000, ge=0, le=60_000, description="How long a request waits for budget")
    gateway_unpriced: Literal["refuse", "allow"] = Field("allow", description="What happens to models without a price")
    gateway_output_tokens_default: int = Field(
        1_024, ge=1, le=1_000_000, description="Bound on answers under a hard budget that do not state max_tokens"
    )
    gateway_output_tokens_least: int = Field(
        64, ge=1, le=1_000_000, description="No bound that was learnt from a tenant's answers is below this"
    )
    gateway_output_tokens_most: int = Field(
        16_384, ge=1, le=1_000_000, description="No bound that was learnt from a tenant's answers is above this"
    )
    gateway_tokenizers: Path | None = Field(
        None, description="Folder with MODEL/tokenizer.json: those prompts are counted here, not by the model server"
    )
    gateway_queue_max: int = Field(1_000, ge=0, le=100_000, description="Requests that may wait for their budget")
    gateway_queue_tenant_max: int = Field(200, ge=0, le=100_000, description="Those of one tenant")
    gateway_queue_seconds_max: int = Field(3_600, ge=1, le=86_400, description="How long one may wait at most")
    gateway_retries: int = Field(0, ge=0, le=5, description="More attempts when the model server fails")
    gateway_failed_attempts: Literal["billable", "free"] = Field(
        "billable", description="Whether what a failed attempt is known to have used is charged"
    )
    upstream_metered_by: Literal["gateway", "worker"] = Field(
        "gateway", description="Who emits usage events: the gateway, or the model server's own plugin"
    )
    forwarding_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Shared with workers that have the plugin: signs the tags that go with a request",
    )
    gateway_upstream_timeout_seconds: float = Field(
        600.0, gt=0, le=86_400, description="Longest silence of the model server"
    )
    gateway_safe_wait_ms: int = Field(
        1_000, ge=0, le=60_000, description="How long the end of an answer waits for its usage event to be safe"
    )
    state_dir: Path = Field(Path("data/state"), description="Folder for state beside the service")

    @model_validator(mode="after")
    def _workers_can_verify(self) -> Self:
        if self.upstream_metered_by == "worker" and self.forwarding_secret is None:
            raise ValueError("upstream_metered_by worker needs forwarding_secret (TAXIMETER_FORWARDING_SECRET)")
        return self

    @property
    def spool_dir(self) -> Path:
        """Where usage events wait while the log is away."""
        return self.state_dir / "gateway"
