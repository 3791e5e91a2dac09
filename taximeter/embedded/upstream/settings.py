"""The simulated server's settings, from TAXIMETER_UPSTREAM_... variables."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class UpstreamSettings(BaseSettings):
    """Models, cache size and speed."""

    model_config = SettingsConfigDict(env_prefix="TAXIMETER_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on")
    upstream_port: int = Field(8090, description="Port to listen on")
    upstream_models: str = Field("llama-3.1-8b,llama-3.1-70b,embed-small", description="Models served, comma-separated")
    upstream_cache_blocks: int = Field(200_000, ge=0, description="Most prefix blocks kept")
    upstream_token_ms: float = Field(0.0, ge=0, le=1_000, description="Milliseconds that each output token takes")
