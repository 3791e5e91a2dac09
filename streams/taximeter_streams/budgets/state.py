"""What the keeper of budgets remembers of one tenant: postings by budget and period, leases, and what it has seen.

All of it is one JSON document, bounded by the number of budgets, the periods kept and `LEASES_MAX`. It changes only
through `ledger`.
"""

from datetime import datetime, timedelta

from pydantic import AwareDatetime, Field

from taximeter_schemas.budgets import AmountPico, Message
from taximeter_schemas.periods import PeriodKind

PERIOD_KEPT = {
    PeriodKind.HOUR: timedelta(days=2),
    PeriodKind.DAY: timedelta(days=8),
    PeriodKind.MONTH: timedelta(days=62),
    PeriodKind.LIFETIME: timedelta(0),
}
"""How long after its end a period still takes late spend and remembers its alerts. Later spend can hold nothing any more."""


class Posting(Message):
    """Spend posted to one budget in one period, and the alerts raised for it ("soft_threshold/8000")."""

    spent_pico: int = 0
    starts_at: AwareDatetime
    ends_at: AwareDatetime
    keep_until: AwareDatetime
    alerted: tuple[str, ...] = ()
    recent_pico: dict[int, int] = Field(default_factory=dict)
    """Spend by the latest spans of time, for forecasts: number of the span (since 1970) to pico-units."""
    short_pico: int = 0
    """What the last request needed that did not get it; a hard budget with less than that left is at its limit."""


class Lease(Message):
    """A slice of some budgets that a gateway holds. Amounts are in pico-units by budget id.

    It is open until it is closed (`settled_pico` says what its events cost) or `expires_at` is reached: from then on its
    gateway admits nothing under it. What it holds stays charged until `held_until`, since its events may still be on their
    way. After that it is remembered for a while, so that a request that comes twice is not granted twice.
    """

    gateway: str
    boot: str = ""
    granted_pico: dict[str, AmountPico]
    posted_pico: dict[str, int] = Field(default_factory=dict)
    settled_pico: dict[str, AmountPico] | None = None
    granted_at: AwareDatetime
    expires_at: AwareDatetime
    held_until: AwareDatetime | None = None

    @property
    def hold_ends_at(self) -> datetime:
        """When its amounts are free, whatever has arrived by then."""
        return self.held_until or self.expires_at

    def is_open(self, now: datetime) -> bool:
        """Whether its gateway may admit requests under it."""
        return self.settled_pico is None and now < self.expires_at

    def outstanding_pico(self, budget_id: str, now: datetime) -> int:
        """What may still arrive as spend under this lease; 0 once its hold has ended."""
        return 0 if self.hold_ends_at <= now else self.missing_pico(budget_id)

    def missing_pico(self, budget_id: str) -> int:
        """What was promised and has not arrived as spend."""
        promised = self.granted_pico if self.settled_pico is None else self.settled_pico
        return max(0, promised.get(budget_id, 0) - self.posted_pico.get(budget_id, 0))

    def holds(self, now: datetime) -> bool:
        """Whether it stands in the way of other grants: it is open, or over with events perhaps still on their way."""
        return self.is_open(now) or any(self.outstanding_pico(budget_id, now) for budget_id in self.granted_pico)


class SpendHistory(Message):
    """A tenant's spend by day of its calendar, in one currency, and the day since which it has been in a spike."""

    by_day_pico: dict[str, int] = Field(default_factory=dict)
    spiking_since: str | None = None


class TenantLedger(Message):
    """One tenant's state. `seen` holds, for each life of the log and partition of usage events, the last offset posted."""

    tenant: str
    postings: dict[str, dict[str, Posting]] = Field(default_factory=dict)
    leases: dict[str, Lease] = Field(default_factory=dict)
    seen: dict[str, dict[int, int]] = Field(default_factory=dict)
    history: dict[str, SpendHistory] = Field(default_factory=dict)
    """By currency."""

    def spent_pico(self, budget_id: str, period: str) -> int:
        """Spend posted to that budget in the period of that label."""
        posting = self.postings.get(budget_id, {}).get(period)
        return posting.spent_pico if posting else 0

    def leased_pico(self, budget_id: str, now: datetime) -> int:
        """The sum of what is outstanding. A lease counts in whichever period is running: its spend may land in the next."""
        return sum(lease.outstanding_pico(budget_id, now) for lease in self.leases.values())

    def frees_by_time(self, now: datetime) -> bool:
        """Whether a hold has ended with spend missing: it is free only when all spend that came until then is posted."""
        return any(
            lease.hold_ends_at <= now and any(map(lease.missing_pico, lease.granted_pico))
            for lease in self.leases.values()
        )
