"""Control records fold into a snapshot."""

from datetime import UTC, datetime, timedelta
from typing import Any

from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.control_snapshot import ControlSnapshot

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
TENANT = {"id": "acme", "rate_card": "gold"}
BUDGET = {"id": "b1", "tenant": "acme", "limit_pico": 5}
SHA = "0" * 64


def record(kind: ControlKind, name: str, body: dict[str, Any] | None) -> ControlRecord:
    return ControlRecord(kind=kind, id=name, body=body, recorded_at=NOW)


def folded(*records: ControlRecord) -> ControlSnapshot:
    snapshot = ControlSnapshot()
    for one in records:
        snapshot = snapshot.apply(one)
    return snapshot


def card(version: int, effective_from: datetime) -> ControlRecord:
    body = {
        "id": "gold",
        "version": version,
        "effective_from": effective_from.isoformat(),
        "recorded_at": NOW.isoformat(),
        "prices": [{"model": "m", "uncached_input": 1}],
    }
    return record(ControlKind.RATE_CARD, f"gold@{version}", body)


DECLARED = (
    record(ControlKind.TENANT, "acme", TENANT),
    record(ControlKind.API_KEY, SHA, {"id": "k1", "tenant": "acme", "key_sha256": SHA}),
    record(ControlKind.BUDGET, "b1", BUDGET),
    record(ControlKind.CACHE_POOL, "p", {"id": "p", "tenants": ["acme"]}),
    record(ControlKind.CACHE_POLICY, "default@1", {"kind": "retain"}),
    record(ControlKind.ALERT_ENDPOINT, "e", {"id": "e", "url": "https://x.test/", "secret": "whsec_" + "A" * 32}),
    card(1, NOW),
)


def test_applying_twice_changes_nothing() -> None:
    once = folded(*DECLARED)
    assert folded(*DECLARED, *DECLARED) == once
    assert once.api_keys[SHA].tenant == "acme"
    assert once.budgets["acme"][0].limit_pico == 5
    assert once.cache_policies["default@1"] == {"kind": "retain"}


def test_a_record_without_a_body_deletes() -> None:
    assert folded(*DECLARED, *(record(r.kind, r.id, None) for r in DECLARED)) == ControlSnapshot()


def test_a_budget_can_move_to_another_tenant() -> None:
    moved = folded(*DECLARED, record(ControlKind.BUDGET, "b1", BUDGET | {"tenant": "globex"}))
    assert set(moved.budgets) == {"globex"}


WALLET = record(ControlKind.BUDGET, "w", {"id": "w", "tenant": "acme", "limit_pico": 5, "period": "lifetime"})


def top_up(name: str, amount_pico: int, budget: str = "w") -> ControlRecord:
    body = {"id": name, "tenant": "acme", "budget": budget, "amount_pico": amount_pico, "currency": "USD"}
    return record(ControlKind.TOP_UP, name, body)


def test_a_wallets_limit_is_what_was_declared_and_its_top_ups_in_any_order() -> None:
    cases = [
        ((WALLET,), 5),
        ((WALLET, top_up("a", 10)), 15),
        ((top_up("a", 10), WALLET), 15),  # the topic has several partitions
        ((top_up("a", 10), WALLET, top_up("a", 10), top_up("b", 7), WALLET), 22),  # the same again adds nothing
        ((WALLET, top_up("a", 10), top_up("b", -20)), 0),  # never below 0
        ((WALLET, top_up("a", 10, budget="another")), 5),
        ((WALLET, top_up("a", 10), record(ControlKind.BUDGET, "w", None), WALLET), 15),  # declared anew
        ((WALLET, top_up("a", 10), record(ControlKind.TOP_UP, "a", None)), 5),
    ]
    for records, limit_pico in cases:
        (wallet,) = folded(*records).budgets["acme"]
        assert wallet.limit_pico == limit_pico, records


def test_a_budget_that_resets_takes_no_top_up() -> None:
    assert folded(*DECLARED, top_up("a", 10, budget="b1")).budgets["acme"][0].limit_pico == 5


def test_the_card_that_holds_at_a_moment() -> None:
    snapshot = folded(*DECLARED, card(2, NOW + timedelta(days=1)))
    cases = [
        ("acme", NOW - timedelta(seconds=1), None),  # before the first card
        ("acme", NOW, 1),
        ("acme", NOW + timedelta(days=1), 2),
        ("nobody", NOW, None),  # unknown tenant
    ]
    for tenant, moment, version in cases:
        held = snapshot.card_for(tenant, moment)
        assert (held.version if held else None) == version, (tenant, moment)
