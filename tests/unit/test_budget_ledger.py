"""Budgets, case by case: what is posted, what is leased, and who is told."""

from datetime import UTC, datetime, timedelta

import pytest

from taximeter_schemas.budgets import AlertKind, Budget, BudgetAlert, LeaseClose, LeaseGrant, LeaseRequest
from taximeter_schemas.periods import PeriodKind
from taximeter_schemas.spend import SpendEntry, SpendRecord
from taximeter_streams.budgets import ledger
from taximeter_streams.budgets.ledger import Rules
from taximeter_streams.budgets.state import TenantLedger
from taximeter_streams.budgets.thresholds import alert_id

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
MONTH = Budget(id="acme-month", tenant="acme", limit_pico=1_000)
RULES = Rules((MONTH,))
EMPTY = TenantLedger(tenant="acme")


def entry(amount_pico: int, at: datetime = NOW, **fields: str) -> SpendEntry:
    slot = int(at.timestamp()) // 900 * 900
    tags = {"feature": "chat", "model": "m", **fields}
    return SpendEntry.model_validate({**tags, "slot_start": slot, "amount_pico": amount_pico, "events": 1})


def record(*entries: SpendEntry, offset: int = 0, currency: str = "USD", log_id: str = "log") -> SpendRecord:
    return SpendRecord(
        tenant="acme", currency=currency, log_id=log_id, partition=0, first_offset=offset, last_offset=offset,
        entries=entries, rated_at=NOW,
    )  # fmt: skip


def ask(
    lease_id: str,
    *,
    gateway: str = "g1",
    needed: dict[str, int] | None = None,
    at: datetime = NOW,
    **amounts: int,
) -> LeaseRequest:
    named = {name.replace("_", "-"): amount for name, amount in amounts.items()}
    return LeaseRequest(
        lease_id=lease_id, gateway=gateway, tenant="acme", amounts_pico=named, needed_pico=needed or {}, requested_at=at
    )  # fmt: skip


def closing(lease_id: str, settled_pico: int, gateway: str = "g1") -> LeaseClose:
    settled = {"acme-month": settled_pico}
    return LeaseClose(lease_id=lease_id, gateway=gateway, tenant="acme", settled_pico=settled, closed_at=NOW)


def spent(state: TenantLedger, rules: Rules = RULES, now: datetime = NOW) -> list[int]:
    return [position.spent_pico for position in ledger.positions(state, rules, now).positions]


def posted(*amounts_pico: int, rules: Rules = RULES) -> tuple[TenantLedger, list[BudgetAlert]]:
    state, alerts = EMPTY, []
    for offset, amount_pico in enumerate(amounts_pico):
        state, raised = ledger.post(state, rules, record(entry(amount_pico), offset=offset), NOW)
        alerts += raised
    return state, alerts


def granted(state: TenantLedger, asked: LeaseRequest, rules: Rules = RULES, now: datetime = NOW) -> dict[str, int]:
    return ledger.request(state, rules, asked, now)[1].amounts_pico


def leased(*, granted_pico: int, now: datetime = NOW, gateway: str = "g1") -> tuple[TenantLedger, LeaseGrant]:
    return ledger.request(EMPTY, RULES, ask("l1", gateway=gateway, at=now, acme_month=granted_pico), now)


@pytest.mark.parametrize(
    ("budget", "counted_pico"),
    [
        ({}, 7),  # the tenant's whole spend
        ({"feature": "chat"}, 5),  # one feature
        ({"model": "m"}, 6),  # one model
        ({"feature": "chat", "model": "m"}, 4),  # both
        ({"feature": "search"}, 0),  # nothing of it
        ({"currency": "EUR"}, 0),  # another currency is never added
    ],
)
def test_spend_counts_against_the_budgets_that_cover_it(budget: dict[str, str], counted_pico: int) -> None:
    rules = Rules((Budget.model_validate({"id": "b", "tenant": "acme", "limit_pico": 100, **budget}),))
    entries = (entry(4), entry(1, model="n"), entry(2, feature="mail"))
    state, _ = ledger.post(EMPTY, rules, record(*entries), NOW)
    assert spent(state, rules) == [counted_pico]


@pytest.mark.parametrize(
    ("period", "label"),
    [
        (PeriodKind.MONTH, "2026-11"),  # in Berlin the month begins at 23:00 UTC of the day before
        (PeriodKind.DAY, "2026-11-01"),
        (PeriodKind.HOUR, "2026-11-01T00+0100"),
    ],
)
def test_spend_falls_into_the_tenants_own_period(period: PeriodKind, label: str) -> None:
    rules = Rules((Budget(id="b", tenant="acme", limit_pico=100, period=period),), "Europe/Berlin")
    first_of_month = datetime(2026, 10, 31, 23, 0, tzinfo=UTC)
    state, _ = ledger.post(EMPTY, rules, record(entry(5, at=first_of_month)), first_of_month)
    assert state.spent_pico("b", label) == 5


def test_late_spend_falls_into_its_own_period_and_very_late_spend_into_none() -> None:
    state, _ = ledger.post(EMPTY, RULES, record(entry(5, at=NOW - timedelta(days=30))), NOW)
    assert state.spent_pico("acme-month", "2026-10") == 5
    assert spent(state) == [0]
    state, _ = ledger.post(state, RULES, record(entry(5, at=NOW - timedelta(days=120)), offset=1), NOW)
    assert set(state.postings["acme-month"]) == {"2026-10"}


def test_a_replayed_range_is_ignored_and_another_life_of_the_log_is_not() -> None:
    state, _ = ledger.post(EMPTY, RULES, record(entry(5), offset=3), NOW)
    again, alerts = ledger.post(state, RULES, record(entry(5), offset=3), NOW)
    assert (again, alerts) == (state, [])
    older, _ = ledger.post(state, RULES, record(entry(5), offset=2), NOW)
    assert spent(older) == [5]
    newborn, _ = ledger.post(state, RULES, record(entry(5), offset=0, log_id="second"), NOW)
    assert spent(newborn) == [10]


def test_only_a_few_lives_of_the_log_are_remembered() -> None:
    state = EMPTY
    for life in range(9):
        state, _ = ledger.post(state, RULES, record(entry(1), log_id=f"log{life}"), NOW)
    assert list(state.seen) == ["log5", "log6", "log7", "log8"]


def test_without_budgets_nothing_is_kept() -> None:
    assert ledger.post(EMPTY, Rules(()), record(entry(5)), NOW) == (EMPTY, [])


@pytest.mark.parametrize(
    ("amounts_pico", "thresholds"),
    [
        ([799], []),
        ([799, 1], [(8_000, "soft_threshold")]),  # at the line, not behind it
        ([800, 100], [(8_000, "soft_threshold")]),  # once
        ([800, 200], [(8_000, "soft_threshold"), (10_000, "hard_limit")]),
        ([5_000], [(8_000, "soft_threshold"), (10_000, "hard_limit")]),  # both at one stroke
        ([1_000, -1_000, 1_000], [(8_000, "soft_threshold"), (10_000, "hard_limit")]),  # a correction does not re-arm
    ],
)
def test_alerts(amounts_pico: list[int], thresholds: list[tuple[int, str]]) -> None:
    _, alerts = posted(*amounts_pico)
    assert [(alert.threshold_bps, alert.kind.value) for alert in alerts] == thresholds


def test_a_soft_budget_has_no_hard_limit_and_may_watch_beyond_its_limit() -> None:
    soft = Budget(id="b", tenant="acme", limit_pico=100, hard=False, soft_thresholds_bps=(15_000, 5_000, 5_000))
    _, alerts = posted(50, 50, 50, rules=Rules((soft,)))
    assert [(alert.threshold_bps, alert.kind) for alert in alerts] == [
        (5_000, AlertKind.SOFT_THRESHOLD),
        (15_000, AlertKind.SOFT_THRESHOLD),
    ]


def test_an_alert_id_depends_on_budget_period_threshold_and_kind_alone() -> None:
    _, alerts = posted(800)
    assert alerts[0].id == alert_id("acme-month", "2026-11", 8_000, AlertKind.SOFT_THRESHOLD)
    others = {
        alert_id("other", "2026-11", 8_000, AlertKind.SOFT_THRESHOLD),
        alert_id("acme-month", "2026-12", 8_000, AlertKind.SOFT_THRESHOLD),
        alert_id("acme-month", "2026-11", 9_000, AlertKind.SOFT_THRESHOLD),
        alert_id("acme-month", "2026-11", 8_000, AlertKind.HARD_LIMIT),
    }
    assert len(others | {alerts[0].id}) == 5


def test_a_lowered_limit_alerts_at_once_and_only_once() -> None:
    state, _ = posted(500)
    lowered = Rules((MONTH.model_copy(update={"limit_pico": 600}),))
    state, alerts = ledger.review(state, lowered, NOW)
    assert [alert.threshold_bps for alert in alerts] == [8_000]
    assert ledger.review(state, lowered, NOW) == (state, [])
    raised_again = ledger.review(state, RULES, NOW)[0]
    assert ledger.review(raised_again, lowered, NOW)[1] == []


def test_a_new_period_alerts_again() -> None:
    state, _ = posted(800)
    december = datetime(2026, 12, 1, tzinfo=UTC)
    _, alerts = ledger.post(state, RULES, record(entry(800, at=december), offset=1), december)
    assert [alert.period for alert in alerts] == ["2026-12"]


@pytest.mark.parametrize(
    ("spent_pico", "asked_pico", "needed_pico", "granted_pico"),
    [
        (0, 100, None, 100),  # far from the limit: all of it
        (0, 900, None, 900),  # needed, and it fits
        (0, 900, 10, 250),  # wanted beyond need: a quarter of what is left
        (800, 100, 10, 50),  # the quarter shrinks
        (800, 100, 80, 80),  # need comes first
        (950, 100, 100, 50),  # no more than what is left
        (1_000, 1, None, 0),  # nothing left
        (1_200, 1, None, 0),  # late events took more than there was
        (999, 1, None, 1),  # to the last unit
        (0, 0, None, 0),  # nothing asked
    ],
)
def test_grants(spent_pico: int, asked_pico: int, needed_pico: int | None, granted_pico: int) -> None:
    state, _ = posted(spent_pico)
    needed = None if needed_pico is None else {"acme-month": needed_pico}
    assert granted(state, ask("l1", acme_month=asked_pico, needed=needed)) == {"acme-month": granted_pico}


def test_all_budgets_of_a_request_grant_or_none_does() -> None:
    tight = Budget(id="tight", tenant="acme", model="m", limit_pico=10)
    rules = Rules((MONTH, tight))
    assert granted(EMPTY, ask("l1", acme_month=50, tight=50), rules) == {"acme-month": 50, "tight": 10}
    full, _ = posted(10, rules=rules)
    assert granted(full, ask("l1", acme_month=50, tight=50), rules) == {"acme-month": 0, "tight": 0}
    assert granted(EMPTY, ask("l1", acme_month=50, unknown=50), rules) == {"acme-month": 0, "unknown": 0}


def test_a_soft_budget_never_refuses() -> None:
    rules = Rules((MONTH.model_copy(update={"hard": False}),))
    assert granted(EMPTY, ask("l1", acme_month=5_000), rules) == {"acme-month": 5_000}


def test_a_repeated_request_gets_the_same_grant_and_holds_it_once() -> None:
    state, first = leased(granted_pico=600)
    state, second = ledger.request(state, RULES, ask("l1", acme_month=600), NOW + 10 * SECOND)
    assert second.amounts_pico == first.amounts_pico
    assert second.granted_at == first.granted_at
    assert second.expires_at == first.expires_at + 10 * SECOND
    assert state.leased_pico("acme-month", NOW + 10 * SECOND) == 600


def test_spend_under_a_lease_moves_from_leased_to_posted() -> None:
    state, _ = leased(granted_pico=600)
    state, _ = ledger.post(state, RULES, record(entry(200, lease_id="l1")), NOW)
    assert spent(state) == [200]
    assert state.leased_pico("acme-month", NOW) == 400
    state, _ = ledger.post(state, RULES, record(entry(500, lease_id="l1"), offset=1), NOW)
    assert state.leased_pico("acme-month", NOW) == 0


def test_a_silent_gateway_loses_its_lease_and_any_word_renews_it() -> None:
    state, grant = leased(granted_pico=600)
    assert (grant.expires_at, grant.held_until) == (NOW + 60 * SECOND, NOW + 16 * MINUTE)
    assert [lease.is_open(NOW + 59 * SECOND) for lease in state.leases.values()] == [True]
    assert [lease.is_open(NOW + 60 * SECOND) for lease in state.leases.values()] == [False]
    renewed, _ = ledger.request(state, RULES, ask("l2", acme_month=100), NOW + 59 * SECOND)
    assert renewed.leases["l1"].is_open(NOW + 60 * SECOND)
    other, _ = ledger.request(state, RULES, ask("l2", gateway="g2", acme_month=100), NOW + 59 * SECOND)
    assert not other.leases["l1"].is_open(NOW + 60 * SECOND)


def test_what_a_dead_gateway_held_is_charged_until_its_events_had_time_to_arrive() -> None:
    state, _ = leased(granted_pico=600)
    state, _ = ledger.post(state, RULES, record(entry(200, lease_id="l1")), NOW + 5 * MINUTE)
    assert state.leased_pico("acme-month", NOW + 16 * MINUTE - SECOND) == 400
    assert granted(state, ask("l2", gateway="g2", at=NOW + 5 * MINUTE, acme_month=900), now=NOW + 5 * MINUTE) == {
        "acme-month": 400
    }
    assert state.leased_pico("acme-month", NOW + 16 * MINUTE) == 0


@pytest.mark.parametrize(
    ("boot", "lives_settled", "held_pico"),
    [
        ("a", True, 600),  # the same life: it lives, and only its own word ends its lease
        ("b", False, 600),  # another life, whose spool may still hold events
        ("b", True, 0),  # all events of the dead life are in the log, and have had their minute
    ],
)
def test_a_gateway_that_lives_again_frees_what_its_dead_life_held(
    boot: str, lives_settled: bool, held_pico: int
) -> None:
    first = ask("l1", acme_month=600).model_copy(update={"boot": "a"})
    state, _ = ledger.request(EMPTY, RULES, first, NOW)
    again = ask("l2", at=NOW + SECOND, acme_month=0).model_copy(update={"boot": boot, "lives_settled": lives_settled})
    state, _ = ledger.request(state, RULES, again, NOW + SECOND)
    assert state.leased_pico("acme-month", NOW + 60 * SECOND) == 600
    assert state.leased_pico("acme-month", NOW + 61 * SECOND) == held_pico


def test_a_budget_of_an_api_key_counts_what_that_key_spent() -> None:
    of_key = Budget(id="of-key", tenant="acme", api_key="k1", limit_pico=1_000)
    rules = Rules((MONTH, of_key))
    state, _ = ledger.post(EMPTY, rules, record(entry(5), entry(7, api_key="k1"), entry(9, api_key="k2")), NOW)
    assert spent(state, rules) == [21, 7]
    # A meter that does not name keys: the lease knows.
    state, _ = ledger.request(state, rules, ask("l1", acme_month=10, of_key=10), NOW)
    state, _ = ledger.post(state, rules, record(entry(4, lease_id="l1"), offset=1), NOW)
    assert spent(state, rules) == [25, 11]


def test_a_hold_that_ends_with_spend_missing_is_told_apart() -> None:
    state, grant = leased(granted_pico=700)
    assert grant.held_until is not None
    before, behind = grant.held_until - SECOND, grant.held_until
    assert not state.frees_by_time(before)
    assert state.frees_by_time(behind)
    all_there, _ = ledger.post(state, RULES, record(entry(700, lease_id=grant.lease_id)), NOW)
    assert not all_there.frees_by_time(behind)
    nothing_used = ledger.close(state, RULES, closing(grant.lease_id, 0), NOW)
    assert not nothing_used.frees_by_time(behind)


def test_a_lease_that_is_over_is_not_granted_again() -> None:
    state, _ = leased(granted_pico=600)
    assert granted(state, ask("l1", acme_month=600), now=NOW + 61 * SECOND) == {"acme-month": 0}
    closed = ledger.close(state, RULES, closing("l1", 10), NOW)
    assert granted(closed, ask("l1", acme_month=600)) == {"acme-month": 0}


def test_a_request_from_long_ago_is_granted_nothing() -> None:
    assert granted(EMPTY, ask("l1", acme_month=600), now=NOW + ledger.LEASE_REMEMBERED) == {"acme-month": 0}


def test_closing_frees_what_was_not_used_and_waits_for_the_events_of_the_rest() -> None:
    state, _ = leased(granted_pico=600)
    state, _ = ledger.post(state, RULES, record(entry(200, lease_id="l1")), NOW)
    state = ledger.close(state, RULES, closing("l1", 300), NOW)
    assert state.leased_pico("acme-month", NOW) == 100
    assert ledger.close(state, RULES, closing("l1", 0), NOW) == state
    later = NOW + timedelta(minutes=10)
    assert state.leased_pico("acme-month", later) == 100
    arrived, _ = ledger.post(state, RULES, record(entry(100, lease_id="l1"), offset=1), later)
    assert arrived.leased_pico("acme-month", later) == 0
    assert state.leased_pico("acme-month", NOW + timedelta(minutes=15)) == 0


def test_closing_an_unknown_lease_changes_nothing() -> None:
    assert ledger.close(EMPTY, RULES, closing("nobody", 5), NOW) == EMPTY


def test_a_late_close_counts_what_is_still_on_its_way() -> None:
    state, _ = leased(granted_pico=600)
    late = NOW + timedelta(minutes=2)
    closed = ledger.close(state, RULES, closing("l1", 300), late)
    assert closed.leased_pico("acme-month", late) == 300


def test_a_lease_held_over_midnight_still_counts() -> None:
    last_second = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
    state, _ = leased(granted_pico=600, now=last_second)
    december = last_second + 2 * SECOND
    assert granted(state, ask("l2", gateway="g2", at=december, acme_month=1_000), now=december) == {"acme-month": 400}


def test_a_limit_change_applies_at_once() -> None:
    state, _ = leased(granted_pico=600)
    raised = Rules((MONTH.model_copy(update={"limit_pico": 2_000}),))
    assert granted(state, ask("l2", acme_month=5_000), raised) == {"acme-month": 1_400}
    lowered = Rules((MONTH.model_copy(update={"limit_pico": 500}),))
    assert granted(state, ask("l2", acme_month=1), lowered) == {"acme-month": 0}


def test_state_is_bounded() -> None:
    state = EMPTY
    for number in range(300):
        state, _ = ledger.request(state, RULES, ask(f"l{number}", acme_month=1), NOW)
        state = ledger.close(state, RULES, closing(f"l{number}", 0), NOW)
    assert len(state.leases) <= ledger.LEASES_REMEMBERED_MAX + 1
    assert ledger.expire(state, NOW + timedelta(hours=1)).leases == {}
    state, _ = ledger.post(state, RULES, record(entry(1)), NOW)
    assert ledger.expire(state, NOW + timedelta(days=200)).postings == {}


def test_too_many_leases_are_refused() -> None:
    state, _ = leased(granted_pico=1)
    crowd = {f"l{number}": state.leases["l1"] for number in range(ledger.LEASES_MAX)}
    full = state.model_copy(update={"leases": crowd})
    roomy = Rules((MONTH.model_copy(update={"limit_pico": 10**6}),))
    assert granted(full, ask("one-more", acme_month=1), roomy) == {"acme-month": 0}


def test_state_survives_json() -> None:
    state, _ = leased(granted_pico=600)
    state, _ = ledger.post(state, RULES, record(entry(900, lease_id="l1")), NOW)
    state = ledger.close(state, RULES, closing("l1", 300), NOW)
    assert TenantLedger.model_validate_json(state.model_dump_json()) == state
