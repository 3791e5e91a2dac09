"""Tenants and what belongs to them: API keys (as hashes), cache pools, and the endpoints that alerts are sent to."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from taximeter_schemas.events import Tag
from taximeter_schemas.periods import zone

Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class Declared(BaseModel):
    """What operators declare: frozen, and nothing unknown is accepted in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")


class TenantStatus(StrEnum):
    """A suspended tenant is refused at the gateway; its late events are still metered."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class Tenant(Declared):
    """A customer: its currency, calendar, rate card, cache pool (its own by default) and cache-savings policy."""

    id: Tag
    name: str = ""
    email: str | None = None
    currency: Currency = "USD"
    time_zone: str = "UTC"
    rate_card: Tag = "default"
    cache_pool: Tag | None = None
    cache_policy: Tag = "default"
    status: TenantStatus = TenantStatus.ACTIVE

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        zone(name)
        return name

    @property
    def pool(self) -> str:
        """The cache pool; a tenant without one is alone in the pool named after it."""
        return self.cache_pool or f"tenant:{self.id}"


class ApiKey(Declared):
    """An API key as the gateway knows it: the SHA-256 of the secret in hex, never the secret."""

    id: Tag
    tenant: Tag
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    disabled: bool = False


class CachePool(Declared):
    """Tenants in one pool share prefix-cache blocks; nobody else does."""

    id: Tag
    tenants: tuple[Tag, ...] = ()


class AlertEndpoint(Declared):
    """A webhook endpoint for budget alerts (Standard Webhooks). `tenant` None means the operator's: it gets all alerts."""

    id: Tag
    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    secret: Annotated[str, Field(pattern=r"^whsec_[A-Za-z0-9+/=]{32,}$")]
    tenant: Tag | None = None
    disabled: bool = False
