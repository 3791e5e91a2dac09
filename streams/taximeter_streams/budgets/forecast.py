"""When a budget's limit is reached at this rate: "on the 19th", told once a period and only when the pace holds. Pure.

The formula is the straight line of earned value management (PMBOK Guide, estimate at completion with the budget spent as it
was so far): time left = (limit - spent) / rate. The rate is the lower of two, the period's so far and that of its latest
eight spans, as in the multiwindow burn-rate alerts of the Site Reliability Workbook (Google, 2018, chapter 5): a burst that is
over does not alarm, nor does an hour of work in a quiet month. All of it is arithmetic on whole numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from taximeter_schemas.budgets import AlertKind, Budget, BudgetAlert
from taximeter_schemas.periods import PeriodKind
from taximeter_schemas.spend import SpendEntry, SpendRecord
from taximeter_streams.budgets.ledger import Rules, counts
from taximeter_streams.budgets.state import Posting, TenantLedger
from taximeter_streams.budgets.thresholds import FULL_BPS, alert_of, filling, mark

SPAN = {
    PeriodKind.DAY: timedelta(minutes=15),
    PeriodKind.MONTH: timedelta(hours=6),
    PeriodKind.LIFETIME: timedelta(hours=6),
}
"""The spans that recent spend is kept by. An hour is over before a forecast is of use."""
RECENT_SPANS = 8
"""The second window: two hours of a day, two days of a month, and a wallet's only one."""
ELAPSED_LEAST_BPS = 1_000
"""Nothing is forecast before a tenth of the period has gone by."""
MARGIN_BPS = 10_500
"""The period's forecast must pass the limit by 5%, so that a pace which just fits does not alarm."""


WALLET_LASTS = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Pace:
    """An amount in a time. Kept as the two, for a quotient would be rounded."""

    amount_pico: int
    microseconds: int

    def slower(self, other: "Pace") -> "Pace":
        """The slower of two."""
        return self if self.amount_pico * other.microseconds <= other.amount_pico * self.microseconds else other


@dataclass(frozen=True, slots=True)
class Forecast:
    """When the limit is reached, and what the period costs, if spend goes on at this rate."""

    reached_at: datetime
    total_pico: int


def forecast(limit_pico: int, posting: Posting, kind: PeriodKind, now: datetime) -> Forecast | None:
    """What is to be expected of a budget that has not reached its limit; None where the limit lasts or it is too early.

    A wallet has no period to be measured by: it is told of when it lasts less than a week at the latest pace.
    """
    span, spent = SPAN.get(kind), posting.spent_pico
    if span is None or now >= posting.ends_at or not 0 < spent < limit_pico:
        return None
    pace = _recent_pace(posting, span, now)
    ends_at, margin_bps = now + WALLET_LASTS, FULL_BPS
    if kind is not PeriodKind.LIFETIME:
        ends_at, margin_bps = posting.ends_at, MARGIN_BPS
        elapsed = now - posting.starts_at
        if elapsed * FULL_BPS < (ends_at - posting.starts_at) * ELAPSED_LEAST_BPS:
            return None
        pace = pace.slower(Pace(spent, _microseconds(elapsed)))
    if pace.amount_pico <= 0:
        return None
    total_pico = spent + pace.amount_pico * _microseconds(ends_at - now) // pace.microseconds
    if total_pico * FULL_BPS < limit_pico * margin_bps:
        return None
    left = timedelta(microseconds=(limit_pico - spent) * pace.microseconds // pace.amount_pico)
    return Forecast((now + left).replace(microsecond=0), total_pico)


def watch_pace(
    state: TenantLedger, rules: Rules, record: SpendRecord, now: datetime
) -> tuple[TenantLedger, list[BudgetAlert]]:
    """Take a record that was just posted into the recent spend of its budgets, and tell of limits that will be reached.

    A forecast is told once a period and budget, and not after the last warning: who knows that 95% are spent needs none.
    """
    postings = dict(state.postings)
    alerts: list[BudgetAlert] = []
    for budget in rules.budgets:
        label = rules.period(budget, now).label
        posting = postings.get(budget.id, {}).get(label)
        if posting is None or budget.period not in SPAN or budget.currency != record.currency:
            continue
        posting = _with_recent(posting, _counted(state, budget, record), SPAN[budget.period], now)
        told = mark(AlertKind.FORECAST, FULL_BPS) + filling(budget)
        late = told in posting.alerted or _is_warned(budget, posting)
        found = None if late else forecast(budget.limit_pico, posting, budget.period, now)
        if found is not None:
            posting = posting.model_copy(update={"alerted": (*posting.alerted, told)})
            raised = alert_of(budget, label, posting, (FULL_BPS, AlertKind.FORECAST), now)
            alerts.append(raised.model_copy(update={"expected_at": found.reached_at}))
        postings[budget.id] = {**postings[budget.id], label: posting}
    return state.model_copy(update={"postings": postings}), alerts


def _is_warned(budget: Budget, posting: Posting) -> bool:
    """Whether the last soft threshold short of the limit was told."""
    soft = [threshold_bps for threshold_bps in budget.soft_thresholds_bps if threshold_bps < FULL_BPS]
    return bool(soft) and mark(AlertKind.SOFT_THRESHOLD, max(soft)) + filling(budget) in posting.alerted


def _counted(state: TenantLedger, budget: Budget, record: SpendRecord) -> list[SpendEntry]:
    """The entries that count against the budget, as they did when they were posted."""
    leases = state.leases
    return [entry for entry in record.entries if counts(budget, entry, leases.get(entry.lease_id or ""))]


def _with_recent(posting: Posting, entries: Sequence[SpendEntry], span: timedelta, now: datetime) -> Posting:
    recent = dict(posting.recent_pico)
    for entry in entries:
        slot = datetime.fromtimestamp(entry.slot_start, UTC)
        if posting.starts_at <= slot < posting.ends_at:
            number = _number(slot, span)
            recent[number] = recent.get(number, 0) + entry.amount_pico
    oldest = _number(now, span) - RECENT_SPANS
    kept = {number: amount for number, amount in sorted(recent.items()) if number > oldest}
    return posting.model_copy(update={"recent_pico": kept})


def _recent_pace(posting: Posting, span: timedelta, now: datetime) -> Pace:
    """The pace since the window's start, or the period's. A single span of spend is no pace yet."""
    newest = _number(now, span)
    since = max(posting.starts_at, _start(newest - RECENT_SPANS + 1, span))
    recent = [amount for number, amount in posting.recent_pico.items() if newest - RECENT_SPANS < number <= newest]
    return Pace(sum(recent) if len(recent) > 1 else 0, max(1, _microseconds(now - since)))


def _number(moment: datetime, span: timedelta) -> int:
    return int(moment.timestamp()) // int(span.total_seconds())


def _start(number: int, span: timedelta) -> datetime:
    return datetime.fromtimestamp(number * int(span.total_seconds()), UTC)


def _microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)
