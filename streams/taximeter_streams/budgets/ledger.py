"""The rules of budgets, without a clock or a log: spend is posted, slices are leased, alerts are raised once.

The law: after every grant, posted + leased <= limit for each hard budget of the request. A post never grants; spend that
comes without a lease may pass the limit, and then nothing more is granted. Every function gives the same result when a
message comes twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from taximeter_schemas.budgets import (
    Budget,
    BudgetAlert,
    BudgetPosition,
    BudgetState,
    LeaseClose,
    LeaseGrant,
    LeaseRequest,
)
from taximeter_schemas.periods import Period, PeriodKind, period_containing
from taximeter_schemas.spend import SpendEntry, SpendRecord
from taximeter_streams.budgets.state import PERIOD_KEPT, Lease, Posting, TenantLedger
from taximeter_streams.budgets.thresholds import raise_alerts

LEASES_MAX = 1_000
"""Leases of one tenant that may stand at a time; a request beyond them is granted nothing."""
LEASES_REMEMBERED_MAX = 100
LEASE_REMEMBERED = timedelta(minutes=10)
"""How long, and how many, leases that hold nothing any more are remembered to recognise a request that comes twice."""
LOGS_REMEMBERED_MAX = 4
"""Lives of the log whose offsets are remembered."""


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """How long a lease lasts without word from its gateway, and how long one that is over waits for its events.

    The hold is `settle_timeout` from the end of the lease, and only `arrival_timeout` once a new life of its gateway says
    that every event of the dead one is in the log. A request for more than it needs gets at most what is left divided by
    `slice_divisor`, so that slices shrink as the limit comes near.
    """

    lease_timeout: timedelta = timedelta(seconds=60)
    settle_timeout: timedelta = timedelta(minutes=15)
    arrival_timeout: timedelta = timedelta(seconds=60)
    slice_divisor: int = 4


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a tenant now: its declared budgets, its calendar, and the terms of leases."""

    budgets: tuple[Budget, ...]
    time_zone: str = "UTC"
    terms: LeaseTerms = field(default_factory=LeaseTerms)

    def period(self, budget: Budget, moment: datetime) -> Period:
        """The period of that budget which holds the moment."""
        return period_containing(moment, budget.period, self.time_zone)

    def running(self, now: datetime) -> set[tuple[str, str]]:
        """Budget id and label of the periods that run now."""
        return {(budget.id, self.period(budget, now).label) for budget in self.budgets}


def post(
    state: TenantLedger, rules: Rules, record: SpendRecord, now: datetime
) -> tuple[TenantLedger, list[BudgetAlert]]:
    """Post a spend record once. A record whose range was seen changes nothing; nor does one of a tenant without budgets.

    Spend in another currency than a budget's does not count against it.
    """
    if not rules.budgets or was_seen(state, record):
        return state, []
    counted = [budget for budget in rules.budgets if budget.currency == record.currency]
    postings = {budget_id: dict(periods) for budget_id, periods in state.postings.items()}
    leases = dict(state.leases)
    touched: set[tuple[str, str]] = set()
    calendar: dict[tuple[int, PeriodKind], Period] = {}
    for entry in record.entries:
        lease = leases.get(entry.lease_id) if entry.lease_id else None
        covering = [budget for budget in counted if counts(budget, entry, lease)]
        for budget in covering:
            period = calendar.get((entry.slot_start, budget.period))
            if period is None:
                slot = datetime.fromtimestamp(entry.slot_start, UTC)
                period = calendar[entry.slot_start, budget.period] = rules.period(budget, slot)
            if period.end + PERIOD_KEPT[budget.period] <= now:
                continue
            of_budget = postings.setdefault(budget.id, {})
            posting = of_budget.get(period.label) or _opened(period, budget.period)
            of_budget[period.label] = posting.model_copy(update={"spent_pico": posting.spent_pico + entry.amount_pico})
            touched.add((budget.id, period.label))
        _settle_under_lease(leases, entry, covering)
    posted = state.model_copy(update={"postings": postings, "leases": leases, "seen": _with_seen(state, record)})
    return _alerted(expire(posted, now), rules.budgets, touched | rules.running(now), now)


def was_seen(state: TenantLedger, record: SpendRecord) -> bool:
    """Whether that record's range was posted already: the meter repeats exactly the ranges that it sent."""
    return record.last_offset <= state.seen.get(record.log_id, {}).get(record.partition, -1)


def review(state: TenantLedger, rules: Rules, now: datetime) -> tuple[TenantLedger, list[BudgetAlert]]:
    """Raise what the running periods have earned without new spend: a limit was lowered, or a threshold added."""
    return _alerted(state, rules.budgets, rules.running(now), now)


def request(state: TenantLedger, rules: Rules, asked: LeaseRequest, now: datetime) -> tuple[TenantLedger, LeaseGrant]:
    """Grant a slice of every named budget, or nothing. Renews the leases of that gateway.

    A request that repeats an open lease gets the same amounts again, with the renewed expiry; one that repeats a lease that
    is over or closed gets nothing, and so does one older than leases are remembered. Nothing is also the answer for a
    budget that is not (or not yet) declared.
    """
    state = _renewed(expire(state, now), asked, now, rules.terms)
    if asked.boot and asked.lives_settled:
        state = _buried(state, asked, now, rules.terms)
    known = state.leases.get(asked.lease_id)
    if known is not None:
        amounts = known.granted_pico if known.is_open(now) else dict.fromkeys(known.granted_pico, 0)
        return state, grant_of(asked, amounts, known.granted_at, known.expires_at, known.hold_ends_at)
    is_stale = asked.requested_at + LEASE_REMEMBERED <= now
    amounts = dict.fromkeys(asked.amounts_pico, 0) if is_stale else _slices(state, rules, asked, now)
    if not is_stale:
        state = _with_shortages(state, rules, asked, amounts, now)
    if not any(amounts.values()):
        return state, grant_of(asked, amounts, now, now, now)
    expires_at = now + rules.terms.lease_timeout
    lease = Lease(
        gateway=asked.gateway,
        boot=asked.boot,
        granted_pico=amounts,
        granted_at=now,
        expires_at=expires_at,
        held_until=expires_at + rules.terms.settle_timeout,
    )
    leased = state.model_copy(update={"leases": {**state.leases, asked.lease_id: lease}})
    return leased, grant_of(asked, amounts, now, expires_at, lease.hold_ends_at)


def close(state: TenantLedger, rules: Rules, closing: LeaseClose, now: datetime) -> TenantLedger:
    """Return what a lease did not use. What it settled stays outstanding until its events are posted, or its time is out.

    A lease that was over is closed all the same: its events are on their way, and counting them early grants less, not more.
    """
    state = _renewed(expire(state, now), closing, now, rules.terms)
    lease = state.leases.get(closing.lease_id)
    if lease is None or lease.settled_pico is not None:
        return state
    settled = {budget_id: closing.settled_pico.get(budget_id, 0) for budget_id in lease.granted_pico}
    closed = lease.model_copy(update={"settled_pico": settled, "held_until": now + rules.terms.settle_timeout})
    return state.model_copy(update={"leases": {**state.leases, closing.lease_id: closed}})


def expire(state: TenantLedger, now: datetime) -> TenantLedger:
    """Forget what can matter no longer: old periods, and leases that hold nothing."""
    idle = [lease_id for lease_id, lease in state.leases.items() if not lease.holds(now)]
    forgotten = set(idle[: max(0, len(idle) - LEASES_REMEMBERED_MAX)])
    forgotten.update(lease_id for lease_id in idle if state.leases[lease_id].hold_ends_at + LEASE_REMEMBERED <= now)
    old = any(posting.keep_until <= now for periods in state.postings.values() for posting in periods.values())
    if not forgotten and not old:
        return state
    leases = {lease_id: lease for lease_id, lease in state.leases.items() if lease_id not in forgotten}
    postings = {
        budget_id: {label: posting for label, posting in periods.items() if posting.keep_until > now}
        for budget_id, periods in state.postings.items()
    }
    kept = {budget_id: periods for budget_id, periods in postings.items() if periods}
    return state.model_copy(update={"leases": leases, "postings": kept})


def positions(state: TenantLedger, rules: Rules, now: datetime) -> BudgetState:
    """Where every budget stands in its running period."""
    found = []
    for budget in rules.budgets:
        period = rules.period(budget, now)
        found.append(
            BudgetPosition(
                budget=budget,
                period=period.label,
                period_start=period.start,
                period_end=period.end,
                spent_pico=state.spent_pico(budget.id, period.label),
                leased_pico=state.leased_pico(budget.id, now),
            )
        )
    return BudgetState(tenant=state.tenant, positions=tuple(found), updated_at=now)


def _opened(period: Period, kind: PeriodKind) -> Posting:
    return Posting(starts_at=period.start, ends_at=period.end, keep_until=period.end + PERIOD_KEPT[kind])


def counts(budget: Budget, entry: SpendEntry, lease: Lease | None) -> bool:
    """Whether the entry counts against the budget. Where the entry names no API key, its lease knows whose budgets paid."""
    if budget.covers(entry.feature, entry.model, entry.api_key):
        return True
    under_it = entry.api_key is None and lease is not None and budget.id in lease.granted_pico
    return under_it and budget.names(entry.feature, entry.model)


def _settle_under_lease(leases: dict[str, Lease], entry: SpendEntry, covering: Sequence[Budget]) -> None:
    """Count spend as arrived under its lease, so that posted goes up as outstanding goes down."""
    lease = leases.get(entry.lease_id) if entry.lease_id else None
    if lease is None or entry.lease_id is None:
        return
    posted = dict(lease.posted_pico)
    for budget in covering:
        if budget.id in lease.granted_pico:
            posted[budget.id] = posted.get(budget.id, 0) + entry.amount_pico
    leases[entry.lease_id] = lease.model_copy(update={"posted_pico": posted})


def _with_seen(state: TenantLedger, record: SpendRecord) -> dict[str, dict[int, int]]:
    offsets = {**state.seen.get(record.log_id, {}), record.partition: record.last_offset}
    # The life of the log that wrote last stands last, so the ones dropped are the oldest.
    others = [(log_id, of_log) for log_id, of_log in state.seen.items() if log_id != record.log_id]
    return dict([*others[-(LOGS_REMEMBERED_MAX - 1) :], (record.log_id, offsets)])


def _alerted(
    state: TenantLedger, budgets: Sequence[Budget], watched: set[tuple[str, str]], now: datetime
) -> tuple[TenantLedger, list[BudgetAlert]]:
    postings = state.postings
    alerts: list[BudgetAlert] = []
    for budget in budgets:
        for label, posting in state.postings.get(budget.id, {}).items():
            if (budget.id, label) not in watched:
                continue
            marked, raised = raise_alerts(budget, label, posting, now)
            if raised:
                postings = {**postings, budget.id: {**postings[budget.id], label: marked}}
                alerts.extend(raised)
    return (state.model_copy(update={"postings": postings}), alerts) if alerts else (state, [])


def _renewed(state: TenantLedger, message: LeaseRequest | LeaseClose, now: datetime, terms: LeaseTerms) -> TenantLedger:
    """A word from a gateway shows that it lives: the open leases of this life of it last for another time-out."""
    until = now + terms.lease_timeout
    times = {"expires_at": until, "held_until": until + terms.settle_timeout}
    renewed = {
        lease_id: lease.model_copy(update=times)
        for lease_id, lease in state.leases.items()
        if lease.gateway == message.gateway
        and lease.boot == message.boot
        and lease.is_open(now)
        and lease.expires_at < until
    }
    return state.model_copy(update={"leases": {**state.leases, **renewed}}) if renewed else state


def _buried(state: TenantLedger, asked: LeaseRequest, now: datetime, terms: LeaseTerms) -> TenantLedger:
    """A gateway that lives again and has delivered all events of its dead lives: those need only time to arrive."""
    until = now + terms.arrival_timeout
    buried = {
        lease_id: lease.model_copy(update={"expires_at": min(lease.expires_at, now), "held_until": until})
        for lease_id, lease in state.leases.items()
        if lease.gateway == asked.gateway
        and lease.boot != asked.boot
        and lease.settled_pico is None
        and lease.hold_ends_at > until
    }
    return state.model_copy(update={"leases": {**state.leases, **buried}}) if buried else state


def _slices(state: TenantLedger, rules: Rules, asked: LeaseRequest, now: datetime) -> dict[str, int]:
    declared = {budget.id: budget for budget in rules.budgets}
    nothing = dict.fromkeys(asked.amounts_pico, 0)
    if sum(lease.holds(now) for lease in state.leases.values()) >= LEASES_MAX:
        return nothing
    amounts = {}
    for budget_id, asked_pico in asked.amounts_pico.items():
        budget = declared.get(budget_id)
        if budget is None:
            return nothing
        amounts[budget_id] = asked_pico
        if budget.hard:
            label = rules.period(budget, now).label
            left = budget.limit_pico - state.spent_pico(budget_id, label) - state.leased_pico(budget_id, now)
            needed_pico = min(asked_pico, asked.needed_pico.get(budget_id, asked_pico))
            slice_pico = max(left // rules.terms.slice_divisor, needed_pico)
            amounts[budget_id] = max(0, min(asked_pico, left, slice_pico))
        if asked_pico and not amounts[budget_id]:
            return nothing
    return amounts


def _with_shortages(
    state: TenantLedger, rules: Rules, asked: LeaseRequest, amounts: dict[str, int], now: datetime
) -> TenantLedger:
    """Note what a request needed and did not get of a hard budget: once spend leaves less than that, it is at its limit.

    Spend alone need never reach the limit, since no request is admitted that might pass it.
    """
    postings = state.postings
    for budget in rules.budgets:
        needed_pico = asked.needed_pico.get(budget.id, asked.amounts_pico.get(budget.id, 0))
        if budget.hard and amounts.get(budget.id, needed_pico) < needed_pico:
            period = rules.period(budget, now)
            of_budget = postings.get(budget.id, {})
            posting = of_budget.get(period.label) or _opened(period, budget.period)
            short = posting.model_copy(update={"short_pico": needed_pico})
            postings = {**postings, budget.id: {**of_budget, period.label: short}}
    return state.model_copy(update={"postings": postings}) if postings is not state.postings else state


def grant_of(
    asked: LeaseRequest, amounts: dict[str, int], granted_at: datetime, expires_at: datetime, held_until: datetime
) -> LeaseGrant:
    """The answer to a request."""
    return LeaseGrant(
        lease_id=asked.lease_id,
        gateway=asked.gateway,
        tenant=asked.tenant,
        amounts_pico=amounts,
        granted_at=granted_at,
        expires_at=expires_at,
        held_until=held_until,
        root_request_id=asked.root_request_id,
    )
