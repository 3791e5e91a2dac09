"""Settings of the ingest service, from TAXIMETER_... variables."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from taximeter_producers.producer import SPOOL_BYTES_MAX
from taximeter_schemas.rejections import EVENT_BYTES_MAX
from taximeter_schemas.settings import LogSettings


class IngestSettings(LogSettings):
    """Where to listen, who may send, how much, and where events wait while the broker is away."""

    model_config = SettingsConfigDict(env_prefix="TAXIMETER_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on")
    ingest_port: int = Field(8081, ge=0, le=65_535, description="Port of POST /v1/events and POST /v1/traces")
    ingest_token: SecretStr | None = Field(None, description="Bearer token that senders need; none: everybody may send")
    ingest_producer_id: str = Field("ingest", description="Names this instance's spool; one for each instance")
    ingest_spool_bytes_max: int = Field(SPOOL_BYTES_MAX, ge=1, description="Limit of the disk spool, in bytes")
    ingest_event_bytes_max: int = Field(
        EVENT_BYTES_MAX, ge=1, le=EVENT_BYTES_MAX, description="Limit of one event, in bytes"
    )
    ingest_body_bytes_max: int = Field(10_000_000, ge=1, description="Limit of a request's body, in bytes")
    otlp_body_bytes_max: int = Field(
        20_000_000, ge=1, description="Limit of a trace request's body in bytes, also once it is unpacked"
    )
    otlp_tenant_attributes: str = Field(
        "taximeter.tenant,tenant.id",
        description="Attributes of a span or its resource that name the tenant, first wins",
    )
    otlp_feature_attributes: str = Field(
        "taximeter.feature,service.name", description="The same for the feature, comma-separated"
    )
    otlp_model_attributes: str = Field(
        "gen_ai.request.model,gen_ai.response.model", description="The same for the model that has a price"
    )
    state_dir: Path = Field(Path("data/state"), description="Folder of what services keep on disk")
