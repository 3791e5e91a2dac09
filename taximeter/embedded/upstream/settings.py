"""The simulated model server's settings, from TAXIMETER_... variables."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class UpstreamSettings(BaseSettings):
    """Where it listens, which models it has, how large its caches are and how slow it pretends to be."""

    model_config = SettingsConfigDict(env_prefix="TAXIMETER_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on")
    upstream_port: int = Field(8090, ge=0, le=65_535, description="Port to listen on")
    upstream_models: str = Field("llama-3.1-8b,llama-3.1-70b,embed-small", description="Model names, comma-separated")
    upstream_block_tokens: int = Field(16, ge=1, le=65_536, description="Tokens of one prefix block of plain words")
    upstream_cache_blocks: int = Field(100_000, ge=0, le=10_000_000, description="Blocks that each model's cache holds")
    upstream_context_tokens: int = Field(1_000_000, ge=1, description="The longest prompt and answer together")
    upstream_output_tokens_max: int = Field(256, ge=1, le=1_000_000, description="Longest answer drawn by seed")
    upstream_seed: int = Field(1, description="Draws the length of answers that nobody set")
    upstream_prefill_ms: float = Field(0.0, ge=0, le=60_000, description="Time before the first token, in ms")
    upstream_token_ms: float = Field(0.0, ge=0, le=60_000, description="Time for each token of an answer, in ms")
    upstream_chunk_tokens: int = Field(1, ge=1, le=10_000, description="Tokens in one chunk of a stream")

    @property
    def models(self) -> tuple[str, ...]:
        """The model names."""
        return tuple(name.strip() for name in self.upstream_models.split(",") if name.strip())
