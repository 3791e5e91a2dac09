"""From bytes to a decision: what a message leads to, and what a broken one does not; and tables that outlive their log."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from taximeter_schemas.budgets import Budget, LeaseClose, LeaseGrant, LeaseRequest, Message
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.spend import SpendEntry, SpendRecord
from taximeter_schemas.tenants import Tenant
from taximeter_streams.budgets.deciding import Decider
from taximeter_streams.budgets.ledger import LeaseTerms
from taximeter_streams.budgets.log_life import OFFSET_KEY, begin_life
from taximeter_streams.budgets.publishing import StatePublisher
from taximeter_streams.budgets.state import TenantLedger

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
MONTH = Budget(id="acme-month", tenant="acme", limit_pico=1_000)
DECLARED = ControlSnapshot(
    tenants={"acme": Tenant(id="acme", time_zone="Asia/Tokyo")},
    budgets={"acme": (MONTH,), "globex": (Budget(id="globex-month", tenant="globex", limit_pico=1_000),)},
)
DECIDER = Decider(lambda: DECLARED, LeaseTerms())
EMPTY = TenantLedger(tenant="acme")
REQUEST = LeaseRequest(
    lease_id="l1", gateway="g1", tenant="acme", amounts_pico={"acme-month": 400}, requested_at=NOW
)  # fmt: skip
GRANT = LeaseGrant(
    lease_id="l1", gateway="g1", tenant="acme", amounts_pico={"acme-month": 400}, granted_at=NOW, expires_at=NOW
)  # fmt: skip
CLOSE = LeaseClose(lease_id="l1", gateway="g1", tenant="acme", settled_pico={"acme-month": 0}, closed_at=NOW)


def spend(tenant: str = "acme", currency: str = "USD", amount_pico: int = 900) -> SpendRecord:
    entry = SpendEntry(
        feature="chat", model="m", slot_start=int(NOW.timestamp()), amount_pico=amount_pico, events=1
    )  # fmt: skip
    return SpendRecord(
        tenant=tenant, currency=currency, partition=0, first_offset=0, last_offset=0, entries=(entry,), rated_at=NOW
    )


def payload(message: Message) -> bytes:
    return message.model_dump_json().encode()


def test_spend_is_posted_in_the_tenants_time_zone_and_alerts() -> None:
    decision = DECIDER.on_spend(EMPTY, payload(spend()), NOW)
    assert (decision.outcome, decision.problem) == ("posted", None)
    assert [alert.threshold_bps for alert in decision.alerts] == [8_000]
    assert decision.state.postings["acme-month"]["2026-11"].starts_at == datetime(2026, 10, 31, 15, 0, tzinfo=UTC)
    assert DECIDER.on_spend(decision.state, payload(spend()), NOW).outcome == "replayed"


@pytest.mark.parametrize(
    ("message", "outcome", "problem"),
    [
        (b"{poison", "invalid", "not a spend record"),
        (b"", "invalid", "not a spend record"),
        (payload(spend("globex")), "invalid", "under the key of 'acme'"),
        (payload(spend(currency="EUR")), "posted", "spend in EUR does not count against acme-month"),
    ],
)
def test_spend_with_a_problem_is_named_and_counts_nothing(message: bytes, outcome: str, problem: str) -> None:
    decision = DECIDER.on_spend(EMPTY, message, NOW)
    assert decision.outcome == outcome
    assert decision.problem is not None and problem in decision.problem
    assert decision.state.postings == {}


def test_a_tenant_without_budgets_keeps_nothing() -> None:
    nobody = TenantLedger(tenant="nobody")
    decision = DECIDER.on_spend(nobody, payload(spend("nobody")), NOW)
    assert (decision.outcome, decision.state) == ("without_budget", nobody)


def test_lease_messages() -> None:
    granted = DECIDER.on_lease(EMPTY, payload(REQUEST), NOW)
    assert granted.outcome == "granted"
    assert granted.grant is not None and granted.grant.amounts_pico == {"acme-month": 400}
    closed = DECIDER.on_lease(granted.state, payload(CLOSE), NOW)
    assert (closed.outcome, closed.grant) == ("closed", None)
    refused = DECIDER.on_lease(closed.state, payload(REQUEST), NOW)
    assert refused.outcome == "refused"
    assert refused.grant is not None and refused.grant.amounts_pico == {"acme-month": 0}
    own = DECIDER.on_lease(EMPTY, payload(GRANT), NOW)
    assert (own.outcome, own.state, own.grant) == ("own_grant", EMPTY, None)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"[]", "not a lease message"),
        (b'{"kind": "steal"}', "not a lease message"),
        (payload(REQUEST.model_copy(update={"tenant": "globex"})), "under the key of 'acme'"),
    ],
)
def test_a_broken_lease_message_is_named_and_changes_nothing(message: bytes, problem: str) -> None:
    decision = DECIDER.on_lease(EMPTY, message, NOW)
    assert (decision.outcome, decision.state, decision.grant) == ("invalid", EMPTY, None)
    assert decision.problem is not None and problem in decision.problem


def test_state_is_published_on_change_now_and_then_and_at_a_new_period() -> None:
    publisher, rules = StatePublisher(), DECIDER.rules("acme")
    assert publisher.due(DECLARED, 0.0, 5.0) == ["acme", "globex"]
    first = publisher.to_publish(EMPTY, rules, NOW, 0.0)
    assert first is not None and first.positions[0].spent_pico == 0
    assert publisher.to_publish(EMPTY, rules, NOW, 1.0) is None  # nothing changed
    assert publisher.to_publish(EMPTY, rules, NOW, 5.0) is not None  # the refresh
    december = datetime(2026, 12, 1, tzinfo=UTC)
    assert publisher.to_publish(EMPTY, rules, december, 5.5) is not None  # another period
    posted = DECIDER.on_spend(EMPTY, payload(spend()), NOW).state
    publisher.changed(posted)
    assert publisher.due(DECLARED, 0.5, 5.0) == ["acme"]
    assert publisher.known("acme") == posted
    publisher.forget()
    assert publisher.known("acme") is None


def test_a_tenant_whose_last_budget_goes_is_told_once() -> None:
    publisher = StatePublisher()
    publisher.to_publish(EMPTY, DECIDER.rules("acme"), NOW, 0.0)
    without = DECIDER.rules("nobody")
    last = publisher.to_publish(EMPTY, without, NOW, 1.0)
    assert last is not None and last.positions == ()
    assert publisher.to_publish(EMPTY, without, NOW, 9.0) is None


def test_tables_keep_their_content_when_the_log_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "v1" / "tables" / "ledgers-0.db"
    path.parent.mkdir(parents=True)
    assert not begin_life(tmp_path, "one")
    table = Rdict(str(path), Options(raw_mode=True))
    table[b"acme"], table[OFFSET_KEY] = b"{}", b"7"
    table.close()
    assert not begin_life(tmp_path, "one")
    assert begin_life(tmp_path, "two")
    table = Rdict(str(path), Options(raw_mode=True))
    assert (table[b"acme"], OFFSET_KEY in table) == (b"{}", False)
    table.close()
    assert not begin_life(tmp_path, "two")


def test_a_refused_request_tells_that_the_hard_limit_is_reached_once_though_spend_is_below_it() -> None:
    spent = DECIDER.on_spend(EMPTY, payload(spend(amount_pico=990)), NOW).state
    asked = REQUEST.model_copy(update={"amounts_pico": {"acme-month": 400}, "needed_pico": {"acme-month": 11}})
    held = DECIDER.on_lease(spent, payload(asked), NOW)
    assert held.outcome == "granted"  # the last ten: less than is needed, all that there is
    refused = DECIDER.on_lease(held.state, payload(asked.model_copy(update={"lease_id": "l2"})), NOW)
    assert refused.outcome == "refused"
    assert [alert.kind for alert in refused.alerts] == ["hard_limit"]
    again = DECIDER.on_lease(refused.state, payload(asked.model_copy(update={"lease_id": "l3"})), NOW)
    assert (again.outcome, again.alerts) == ("refused", ())


def test_a_request_that_only_other_leases_stand_in_the_way_of_tells_nobody() -> None:
    held = DECIDER.on_lease(EMPTY, payload(REQUEST.model_copy(update={"amounts_pico": {"acme-month": 1_000}})), NOW)
    refused = DECIDER.on_lease(held.state, payload(REQUEST.model_copy(update={"lease_id": "l2"})), NOW)
    assert (refused.outcome, refused.alerts) == ("refused", ())
    # Only when spend has arrived is it sure that the budget cannot pay for such a request.
    posted = DECIDER.on_spend(refused.state, payload(spend(amount_pico=601)), NOW)
    assert [alert.kind for alert in posted.alerts] == ["hard_limit"]
