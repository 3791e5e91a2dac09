"""Caps on single root requests: the sum over the hops of a turn, whichever gateways they pass."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from taximeter_schemas.budgets import Budget, LeaseClose, LeaseRequest
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_streams.budgets import roots
from taximeter_streams.budgets.deciding import Decider
from taximeter_streams.budgets.ledger import LeaseTerms
from taximeter_streams.budgets.roots import ROOT_KEPT, ROOTS_MAX, RootBucket
from taximeter_streams.budgets.state import TenantLedger

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
CAP = Budget(id="turn", tenant="acme", limit_pico=100, per_root_request=True)
EMPTY = RootBucket(tenant="acme")


def ask(lease_id: str, amount_pico: int, needed_pico: int = 0, root: str = "r1", at: datetime = NOW) -> LeaseRequest:
    return LeaseRequest(
        lease_id=lease_id, gateway="g1", tenant="acme", amounts_pico={"turn": amount_pico},
        needed_pico={"turn": needed_pico or amount_pico}, requested_at=at, root_request_id=root,
    )  # fmt: skip


def closing(lease_id: str, settled_pico: int, root: str = "r1") -> LeaseClose:
    return LeaseClose(
        lease_id=lease_id, gateway="g1", tenant="acme", settled_pico={"turn": settled_pico}, closed_at=NOW,
        root_request_id=root,
    )  # fmt: skip


def request(bucket: RootBucket, asked: LeaseRequest, now: datetime = NOW) -> tuple[RootBucket, int]:
    changed, grant = roots.request(bucket, (CAP,), LeaseTerms(), asked, now)
    return changed, grant.amounts_pico["turn"]


def test_a_turn_costs_no_more_than_its_cap() -> None:
    bucket, first = request(EMPTY, ask("l1", 60))
    bucket, second = request(bucket, ask("l2", 60))
    assert (first, second) == (60, 40)
    assert request(bucket, ask("l3", 1))[1] == 0
    bucket = roots.close(bucket, closing("l1", 10), NOW)
    assert request(bucket, ask("l4", 60))[1] == 50


def test_more_than_needed_is_cut_so_that_other_gateways_get_some() -> None:
    assert request(EMPTY, ask("l1", 90, needed_pico=10))[1] == 25


def test_turns_are_apart() -> None:
    bucket, _ = request(EMPTY, ask("l1", 100))
    assert request(bucket, ask("l2", 100, root="r2"))[1] == 100


def test_what_comes_twice_counts_once() -> None:
    bucket, first = request(EMPTY, ask("l1", 60))
    bucket, again = request(bucket, ask("l1", 60))
    assert (first, again, bucket.turns["r1"].charged_pico("turn")) == (60, 60, 60)
    bucket = roots.close(bucket, closing("l1", 10), NOW)
    assert roots.close(bucket, closing("l1", 10), NOW) == bucket
    assert request(bucket, ask("l1", 60))[1] == 0
    later = NOW + timedelta(minutes=11)
    assert request(bucket, ask("l1", 60), later)[1] == 0


def test_a_dead_gateways_slice_stays_charged_to_its_turn_and_quiet_turns_are_forgotten() -> None:
    bucket, _ = request(EMPTY, ask("l1", 60))
    much_later = NOW + ROOT_KEPT - timedelta(seconds=1)
    assert request(bucket, ask("l2", 60, at=much_later), much_later)[1] == 40
    after = NOW + ROOT_KEPT
    assert request(bucket, ask("l2", 60, root="r2", at=after), after)[0].turns.keys() == {"r2"}


def test_a_bucket_is_bounded() -> None:
    bucket = EMPTY
    for number in range(ROOTS_MAX + 10):
        bucket, _ = request(bucket, ask(f"l{number}", 1, root=f"r{number}"))
    assert len(bucket.turns) == ROOTS_MAX


def test_a_cap_is_hard_and_a_model_does_not_stand_in_for_itself() -> None:
    for fields in ({"per_root_request": True, "hard": False}, {"fallbacks": {"m": "m"}}):
        with pytest.raises(ValidationError):
            Budget.model_validate({"id": "b", "tenant": "acme", "limit_pico": 1, **fields})


def test_the_decider_keeps_turns_beside_the_tenants_own_document() -> None:
    declared = ControlSnapshot(budgets={"acme": (CAP,)})
    decider = Decider(lambda: declared, LeaseTerms())
    state, stored = TenantLedger(tenant="acme"), dict[bytes, bytes]()
    decision = decider.on_lease(state, ask("l1", 60).model_dump_json().encode(), NOW, stored.get)
    assert decision.state is state and decision.bucket is not None and decision.outcome == "granted"
    stored[decision.bucket_key] = decision.bucket.model_dump_json().encode()
    refused = decider.on_lease(state, ask("l2", 60, needed_pico=60).model_dump_json().encode(), NOW, stored.get)
    assert refused.grant is not None and refused.grant.amounts_pico == {"turn": 40}
    assert refused.grant.root_request_id == "r1"
    closed = decider.on_lease(state, closing("l1", 5).model_dump_json().encode(), NOW, stored.get)
    assert closed.outcome == "closed" and closed.bucket is not None
    assert closed.bucket.turns["r1"].spent_pico == {"turn": 5}
    assert decider.rules("acme").budgets == ()
