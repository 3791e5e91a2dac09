"""Tenants and what belongs to them: API keys (as hashes), cache pools, and the endpoints that alerts are sent to."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from taximeter_schemas.events import ServiceTier, Tag
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
    """A customer: its currency, calendar, rate card, cache pool (its own by default) and cache-savings policy.

    `service_tiers` are those that its plan lets its clients ask for.
    """

    id: Tag
    name: str = ""
    email: str | None = None
    currency: Currency = "USD"
    time_zone: str = "UTC"
    rate_card: Tag = "default"
    cache_pool: Tag | None = None
    cache_policy: Tag = "default"
    service_tiers: tuple[ServiceTier, ...] = (ServiceTier.STANDARD,)
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


class AlertFormat(StrEnum):
    """What an endpoint is sent: Standard Webhooks, signed, or what Slack's incoming webhooks (and their likes) take."""

    STANDARD = "standard"
    SLACK = "slack"


class AlertEndpoint(Declared):
    """A webhook endpoint for budget alerts. `tenant` None means the operator's: it gets all alerts.

    A standard one needs the secret that it is signed with; Slack's address is itself the secret.
    """

    id: Tag
    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    secret: Annotated[str, Field(pattern=r"^whsec_[A-Za-z0-9+/=]{32,}$")] | None = None
    tenant: Tag | None = None
    format: AlertFormat = AlertFormat.STANDARD
    disabled: bool = False

    @model_validator(mode="after")
    def _signed_unless_slack(self) -> Self:
        if self.secret is None and self.format is AlertFormat.STANDARD:
            raise ValueError("a standard endpoint needs a secret (whsec_...) to sign with")
        return self
