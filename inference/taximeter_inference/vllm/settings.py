"""The plugin's settings, from TAXIMETER_... variables of the worker's environment."""

import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from taximeter_producers.producer import SPOOL_BYTES_MAX
from taximeter_schemas.settings import LogSettings


class WorkerSettings(LogSettings):
    """Whom the worker believes, how it keeps tenants apart, and where its events go."""

    worker_id: str = Field(
        default_factory=lambda: "vllm-" + "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:48],
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$",
        description="Unique name of this worker, by default its host's; API server processes of one worker add -1, -2",
    )
    worker_tags: Literal["signed", "trusted"] = Field(
        "signed",
        description="Whose tags count: those that a gateway signed, or any (only where nobody else reaches the worker)",
    )
    worker_untagged: Literal["refuse", "meter"] = Field(
        "refuse", description="What happens to requests without tags: refused, or metered as tenant `untagged`"
    )
    worker_on_drift: Literal["refuse", "middleware"] = Field(
        "refuse",
        description="When vLLM is not as the plugin knows it: do not serve, or meter by answers alone, marked as such",
    )
    worker_adapters: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description='Which tenants may use an adapter, as JSON ({"adapter": ["tenant"]}); one that is not named is for all',
    )
    worker_privileges: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description='Which tenants may set priority, kv_transfer_params, ... as JSON ({"tenant": ["priority"]})',
    )
    worker_connector_tier: Literal["auto", "gpu", "cpu", "disk"] = Field(
        "auto",
        description="The tier that tokens from a KV connector count under; auto: its own, or cpu where it may have several",
    )
    worker_gpus: int = Field(0, ge=0, le=4_096, description="GPUs behind this worker; 0 means what vLLM says")
    forwarding_secret: SecretStr | None = Field(
        None, min_length=16, description="The gateways' secret, which they sign forwarded tags with"
    )
    forwarding_secret_previous: SecretStr | None = Field(
        None, min_length=16, description="The signing secret before: both count during a rotation"
    )
    worker_isolation: Literal["pool", "off"] = Field(
        "pool", description="Whether each cache pool gets a salt of its own; off only for measurements"
    )
    salt_secret: SecretStr | None = Field(
        None, description="Secret that cache salts and block hashes are derived from", min_length=16
    )
    salt_key_id: str = Field("1", description="Names the salt secret; a new one empties every tenant's cache")
    worker_audit: bool = Field(True, description="Watch for cache hits on blocks that were warmed outside the pool")
    worker_spool_bytes_max: int = Field(
        SPOOL_BYTES_MAX,
        gt=0,
        description="What may wait on disk while the log is away; when that is full, new requests are refused",
    )
    state_dir: Path = Field(
        Path("data/state"), description="Folder for the spool, where usage events wait while the log is away"
    )

    @property
    def spool_dir(self) -> Path:
        """Where usage events wait while the log is away."""
        return self.state_dir / "vllm"

    @property
    def forwarding_secrets(self) -> tuple[bytes, ...]:
        """The secrets that a signature may be by, the newest first."""
        secrets = (self.forwarding_secret, self.forwarding_secret_previous)
        return tuple(secret.get_secret_value().encode() for secret in secrets if secret is not None)

    def problem(self) -> str | None:
        """What is missing for the settings to hold together, in one line."""
        if self.worker_tags == "signed" and not self.forwarding_secrets:
            return "TAXIMETER_FORWARDING_SECRET is missing (or set TAXIMETER_WORKER_TAGS=trusted)"
        if self.worker_isolation == "pool" and self.salt_secret is None:
            return "TAXIMETER_SALT_SECRET is missing (or set TAXIMETER_WORKER_ISOLATION=off)"
        return None
