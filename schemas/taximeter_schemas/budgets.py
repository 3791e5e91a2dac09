"""Budgets, and what travels about them: their state, leases between gateways and the keeper, and alerts."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from taximeter_schemas.events import Identifier, Tag
from taximeter_schemas.periods import PeriodKind
from taximeter_schemas.tenants import Currency, Declared

AmountPico = Annotated[int, Field(ge=0)]
BasisPoints = Annotated[int, Field(gt=0, le=100_000)]


class WhenUnreachable(StrEnum):
    """What a gateway does without a lease while the keeper of budgets cannot be reached."""

    ALLOW = "allow"
    DENY = "deny"


class Budget(Declared):
    """A limit on a tenant's spend, or on that of one of its features or models, in a period of the tenant's calendar.

    `hard` budgets refuse at the limit; soft ones only alert. Thresholds are in basis points of the limit.
    """

    id: Tag
    tenant: Tag
    feature: Tag | None = None
    model: Tag | None = None
    period: PeriodKind = PeriodKind.MONTH
    limit_pico: AmountPico
    currency: Currency = "USD"
    hard: bool = True
    soft_thresholds_bps: tuple[BasisPoints, ...] = (8_000,)
    when_unreachable: WhenUnreachable = WhenUnreachable.DENY

    def covers(self, feature: str, model: str) -> bool:
        """Whether usage under that feature and model counts against this budget."""
        return self.feature in (None, feature) and self.model in (None, model)


class Message(BaseModel):
    """A message between services. Unknown fields are tolerated, so that a newer sender does not stop an older reader."""

    model_config = ConfigDict(extra="ignore", frozen=True, regex_engine="python-re")


class BudgetPosition(Message):
    """Where one budget stands: what is spent (posted from events) and leased (granted and not yet posted)."""

    budget: Budget
    period: str
    period_start: AwareDatetime
    period_end: AwareDatetime
    spent_pico: int
    leased_pico: AmountPico = 0

    @property
    def available_pico(self) -> int:
        """What may still be granted; never below 0."""
        return max(0, self.budget.limit_pico - self.spent_pico - self.leased_pico)

    @property
    def exhausted(self) -> bool:
        """At or above the limit by posted spend alone."""
        return self.spent_pico >= self.budget.limit_pico


class BudgetState(Message):
    """Topic budget.state.v1, key tenant (compacted): all budgets of a tenant, as of `updated_at`."""

    tenant: Tag
    positions: tuple[BudgetPosition, ...]
    updated_at: AwareDatetime


class LeaseRequest(Message):
    """A gateway asks for a slice of each named budget (budget id to pico-units). All are granted in part, or none.

    `needed_pico` is the least that is of use now (all of it where absent): what is asked beyond is cut near the limit.
    """

    kind: Literal["request"] = "request"
    lease_id: Identifier
    gateway: Identifier
    tenant: Tag
    amounts_pico: dict[str, AmountPico]
    needed_pico: dict[str, AmountPico] = Field(default_factory=dict)
    requested_at: AwareDatetime


class LeaseGrant(Message):
    """The keeper's answer: what each budget grants. An amount of 0 means that nothing is left to grant."""

    kind: Literal["grant"] = "grant"
    lease_id: Identifier
    gateway: Identifier
    tenant: Tag
    amounts_pico: dict[str, AmountPico]
    granted_at: AwareDatetime
    expires_at: AwareDatetime


class LeaseClose(Message):
    """A gateway is done with a lease: `settled_pico` is what the events under it cost, for each budget; the rest returns."""

    kind: Literal["close"] = "close"
    lease_id: Identifier
    gateway: Identifier
    tenant: Tag
    settled_pico: dict[str, AmountPico]
    closed_at: AwareDatetime


LeaseMessage = Annotated[LeaseRequest | LeaseGrant | LeaseClose, Field(discriminator="kind")]


class AlertKind(StrEnum):
    """Why somebody is told."""

    SOFT_THRESHOLD = "soft_threshold"
    HARD_LIMIT = "hard_limit"


class BudgetAlert(Message):
    """Topic budget.alerts.v1, key tenant. The id is derived from budget, period and threshold: one alert, once."""

    id: str
    kind: AlertKind
    tenant: Tag
    budget_id: Tag
    feature: Tag | None = None
    model: Tag | None = None
    period: str
    period_end: AwareDatetime
    threshold_bps: BasisPoints
    limit_pico: AmountPico
    spent_pico: int
    currency: Currency
    raised_at: AwareDatetime
