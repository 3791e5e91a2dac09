"""Budgets, and what travels about them: their state, leases between gateways and the keeper, and alerts."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

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
    """A limit on a tenant's spend, or on that of one of its features, models or API keys, in a period of the tenant's calendar.

    `hard` budgets refuse at the limit; soft ones only alert. Thresholds are in basis points of the limit. `api_key` is the id
    of a key. With `per_root_request` the limit holds for each root request by itself, whatever the period: for an agent's
    whole turn, summed over its hops. `fallbacks` name a cheaper model for one that this budget does not pay for any more.
    """

    id: Tag
    tenant: Tag
    feature: Tag | None = None
    model: Tag | None = None
    api_key: Tag | None = None
    per_root_request: bool = False
    period: PeriodKind = PeriodKind.MONTH
    limit_pico: AmountPico
    currency: Currency = "USD"
    hard: bool = True
    soft_thresholds_bps: tuple[BasisPoints, ...] = (8_000,)
    when_unreachable: WhenUnreachable = WhenUnreachable.DENY
    fallbacks: dict[Tag, Tag] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _cap_is_hard(self) -> Self:
        if self.per_root_request and not self.hard:
            raise ValueError("a limit per root request is a hard one: nobody is told about single requests")
        if any(model == cheaper for model, cheaper in self.fallbacks.items()):
            raise ValueError("fallbacks: a model cannot stand in for itself")
        return self

    def covers(self, feature: str, model: str, api_key: str | None = None) -> bool:
        """Whether usage under that feature, model and API key counts against this budget."""
        return self.names(feature, model) and self.api_key in (None, api_key)

    def names(self, feature: str, model: str) -> bool:
        """Whether it counts by feature and model, whichever API key was used."""
        return self.feature in (None, feature) and self.model in (None, model)


class TopUp(Declared):
    """Money added to a budget that lasts for ever, or taken back where the amount is negative: never changed, never deleted.

    The budget's limit is what was declared for it and the sum of its top-ups. The id makes it idempotent.
    """

    id: Identifier
    tenant: Tag
    budget: Tag
    amount_pico: int
    currency: Currency
    note: Annotated[str, Field(max_length=200)] = ""


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
    `root_request_id` asks for a slice of that root request's caps instead. `boot` marks this life of the gateway, and
    `lives_settled` says that every event of its earlier lives is in the log.
    """

    kind: Literal["request"] = "request"
    lease_id: Identifier
    gateway: Identifier
    tenant: Tag
    amounts_pico: dict[str, AmountPico]
    needed_pico: dict[str, AmountPico] = Field(default_factory=dict)
    requested_at: AwareDatetime
    root_request_id: Identifier | None = None
    boot: str = ""
    lives_settled: bool = False


class LeaseGrant(Message):
    """The keeper's answer: what each budget grants. An amount of 0 means that nothing is left to grant.

    No request is admitted under the lease from `expires_at` on, and none that it paid for runs on at `held_until`: then the
    keeper grants the amount again. `spent_pico` is what each budget has spent for certain, where the keeper says so.
    """

    kind: Literal["grant"] = "grant"
    lease_id: Identifier
    gateway: Identifier
    tenant: Tag
    amounts_pico: dict[str, AmountPico]
    granted_at: AwareDatetime
    expires_at: AwareDatetime
    held_until: AwareDatetime | None = None
    root_request_id: Identifier | None = None
    spent_pico: dict[str, int] = Field(default_factory=dict)


class LeaseClose(Message):
    """A gateway is done with a lease: `settled_pico` is what the events under it cost, for each budget; the rest returns."""

    kind: Literal["close"] = "close"
    lease_id: Identifier
    gateway: Identifier
    tenant: Tag
    settled_pico: dict[str, AmountPico]
    closed_at: AwareDatetime
    root_request_id: Identifier | None = None
    boot: str = ""


LeaseMessage = Annotated[LeaseRequest | LeaseGrant | LeaseClose, Field(discriminator="kind")]


class AlertKind(StrEnum):
    """Why somebody is told."""

    SOFT_THRESHOLD = "soft_threshold"
    HARD_LIMIT = "hard_limit"
    FORECAST = "forecast"
    SPEND_SPIKE = "spend_spike"
    NEGATIVE_MARGIN = "negative_margin"
    ISOLATION_INCIDENT = "isolation_incident"


class IsolationIncident(Message):
    """Cache isolation did not hold: a request of one pool hit blocks that `warmed_by`, a tenant, had warmed in another."""

    request_id: Identifier
    pool: Tag
    warmed_by: Tag
    warmed_in: Tag
    worker: Identifier


class BudgetAlert(Message):
    """Topic budget.alerts.v1, key tenant. The id is derived from budget, period and threshold: one alert, once.

    A forecast says when the limit is reached at this rate (`expected_at`). A spend spike is of a whole tenant and a day of its
    calendar, and of no budget: `limit_pico` is the level from which a day stands out, `usual_pico` the median day. A negative
    margin is for the operator alone: `limit_pico` is what was earned, `spent_pico` what it cost. So is an isolation incident,
    once for each two pools and day: it is no matter of money, and its amounts are 0.
    """

    id: str
    kind: AlertKind
    tenant: Tag
    budget_id: Tag | None = None
    feature: Tag | None = None
    model: Tag | None = None
    period: str
    period_end: AwareDatetime
    threshold_bps: BasisPoints
    limit_pico: AmountPico
    spent_pico: int
    currency: Currency
    raised_at: AwareDatetime
    expected_at: AwareDatetime | None = None
    usual_pico: AmountPico | None = None
    incident: IsolationIncident | None = None
