"""Invoices whose usage ClickHouse added up are, byte for byte, those of a settlement that reads event by event."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter_billing import folding
from taximeter_billing.computing import Extra, compute, compute_groups
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.declarations.state import State, read_state
from taximeter_billing.domain.margin import Costs, OneEvent, margins_of
from taximeter_billing.domain.parcels import components
from taximeter_billing.domain.quantities import quantities_of
from taximeter_billing.domain.usage import Prices, UsageRow
from taximeter_billing.ledger import instances
from taximeter_billing.margins import margins_of_month
from taximeter_billing.seeing import look
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.periods import billing_month
from tests.integration.test_billing import publish

NOW = datetime(2026, 12, 5, tzinfo=UTC)
START = datetime(2026, 11, 1, tzinfo=UTC)
PERIOD = "2026-11"
TENANTS = ("acme", "globex", "initech", "berlin")
BLOCK = 16
_PLAIN = {"model": "m", "uncached_input": "1.25", "cache_read_gpu": "0.125", "cache_read_cpu": "0.25", "output": "5"}


def declared(policy: dict[str, Any]) -> dict[str, Any]:
    """Two pools and everything by which events are told apart: bands, tags, units beside tokens, cuts, reserved throughput.
    Keeping blocks has a price where the policy says how long they stay."""
    kept = {"cache_storage": "0.50"} if "ttl_seconds" in policy else {}
    tiers = [{"up_to": 20_000, "price": "1.25"}, {"price": "0.60"}]
    return {
        "rate_cards": [
            {
                "id": "default", "version": 1, "effective_from": "2026-01-01T00:00:00Z",
                "prices": [
                    {**_PLAIN, **kept, "cache_write_5m": "1.5", "reasoning": "6", "request": "0.0001",
                     "bands": [{"input_over": 100, "uncached_input": "2.5", "output": "7"}]},
                    {**_PLAIN, "feature": "search", "search_unit": "0.002", "output": "4"},
                    {**_PLAIN, "service_tier": "provisioned"},
                    {**_PLAIN, "region": "eu", "uncached_input": "2"},
                    {**kept, "model": "n", "uncached_input": "3", "cache_read_gpu": "0.3", "output": "9", "gpu_second": "0.001",
                     "adapter_hour": "0.05"},
                ],
            }
        ],
        "cache_policies": [{"id": "shared", **policy}],
        "cache_pools": [{"id": "p", "tenants": ["acme", "globex"]}, {"id": "q", "tenants": ["initech"]}],
        "tenants": [
            *({"id": tenant, "cache_policy": "shared"} for tenant in TENANTS[:3]),
            {"id": "berlin", "time_zone": "Europe/Berlin", **({"cache_policy": "shared"} if kept else {})},
        ],
        "contracts": [
            {
                "id": "a", "tenant": "acme", "starts": "2026-11-05T00:00:00Z", "ends": "2026-11-20T12:00:00Z",
                "reservations": [{"id": "r", "model": "m", "units": 1, "tokens_per_minute": 60, "unit_hour": "0.12"}],
                "tariffs": [{"id": "t", "meter": "input", "mode": "graduated", "tiers": tiers}],
            },
            {
                "id": "b", "tenant": "berlin", "starts": "2026-01-01T00:00:00Z",
                "allowances": [{"id": "f", "meter": "output", "quantity": 50}],
            },
        ],
        "credits": [{"id": "g", "tenant": "globex", "amount": "0.01", "effective_at": "2026-11-11T11:11:11Z"}],
    }  # fmt: skip


def event(dice: random.Random, number: int) -> UsageRow:
    """One event, with blocks or counts alone, of any tenant at any moment of the month."""
    trunk, hit = dice.randint(0, 3), dice.randint(0, 6)
    exact, tier = dice.random() < 0.7, dice.choice(["gpu", "gpu", "cpu"])
    model = dice.choice(["m", "m", "n"])
    tenant = dice.choice(TENANTS)
    return UsageRow(
        tenant=tenant, feature=dice.choice(["chat", "search"]), model=model, adapter=dice.choice(["", "tuned"]), operation="chat",
        service_tier=dice.choice(["standard", "provisioned"]) if model == "m" else "standard", rate_card="default@1",
        source="svc", event_id=f"e{number}",
        time_us=int(START.timestamp()) * 1_000_000 + dice.randint(60 * 60 * 10**6, 29 * 24 * 60 * 60 * 10**6),
        uncached_input=(6 - hit) * BLOCK + dice.choice([0, 0, 7, 40]), cache_read_gpu=hit * BLOCK if tier == "gpu" else 0,
        cache_read_cpu=hit * BLOCK if tier == "cpu" else 0, cache_read_disk=0, cache_read_provider=0,
        cache_write_5m=0 if exact else dice.choice([0, 32]), cache_write_1h=0, output=(output := dice.choice([0, 3, 20])),
        pool={"acme": "p", "globex": "p", "initech": "q"}.get(tenant, ""), block_size=BLOCK, hit_blocks=hit,
        blocks=tuple(f"{trunk}-{depth}" for depth in range(dice.randint(hit, 6))) if exact else (), list_pico=0, metered_pico=0,
        reasoning=min(output, dice.choice([0, 2])), gpu_seconds=dice.choice([0.0, dice.random(), 0.0000005, 1.0000025, 2.5]),
        region=dice.choice(["", "", "eu"]), search_units=dice.choice(["", "3", "12"]), adapter_hours=dice.choice(["", "1"]),
    )  # fmt: skip


def insert(warehouse: Client, rows: list[UsageRow], prices: Prices, voids: dict[str, str]) -> None:
    """Rows as the meter writes them, rated by their price; of `voids`, each event voids another."""
    names = [
        "tenant", "feature", "model", "adapter", "operation", "service_tier", "rate_card", "source", "event_id", "time",
        "uncached_input", "cache_read_gpu", "cache_read_cpu", "cache_write_5m", "output", "reasoning", "gpu_seconds", "pool",
        "block_size", "hit_blocks", "blocks", "attributes", "list_pico", "metered_pico", "disposition", "arrived_at",
        "inserted_at",
    ]  # fmt: skip
    values = []
    for row in rows:
        price = prices.price(row)
        parts = components("", price, quantities_of(row, price))
        said = row.attributes | ({"voids": voids[row.event_id]} if row.event_id in voids else {})
        full = {
            "time": datetime.fromtimestamp(0, UTC) + timedelta(microseconds=row.time_us), "blocks": list(row.blocks),
            "attributes": said, "disposition": "rated", "arrived_at": NOW, "inserted_at": NOW,
            "list_pico": sum(part.list_pico for part in parts), "metered_pico": sum(part.amount_pico for part in parts),
        }  # fmt: skip
        values.append([full[name] if name in full else getattr(row, name) for name in names])
    warehouse.insert("usage_log", values, names)


def extra(state: State) -> Extra:
    """The grants as closing sees them."""
    end = billing_month(PERIOD, "UTC").end
    return Extra(
        {tenant: tuple(grant for _, grant in instances(granted, end)) for tenant, granted in state.grants.items()}
    )


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": "shapley_use"},
        {"kind": "shapley_tenant", "storage": "shared", "ttl_seconds": 90_000},
        {"kind": "waterfall", "provider_bps": 1_000, "beneficiary_bps": 3_000, "warmer_bps": 4_000, "pool_bps": 2_000,
         "pool_weight": "list_spend", "warmer_cap_bps": 7_000, "self_hits": "share"},
    ],
    ids=lambda policy: str(policy["kind"]),
)  # fmt: skip
def test_what_clickhouse_adds_up_is_invoiced_to_the_byte(
    book: Engine, warehouse: Client, policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_declarations(book, read_mapping(declared(policy)), "tester", datetime(2026, 1, 2, tzinfo=UTC), publish)
    with Session(book) as session:
        state = read_state(session)
    dice = random.Random(7)
    rows = [event(dice, number) for number in range(600)]
    insert(warehouse, rows, Prices(state.cards), {})
    same = [row for row in rows if row.tenant == "berlin"][:2]
    void = UsageRow(**{name: getattr(same[0], name) for name in UsageRow.__slots__} | {"event_id": "v", "uncached_input": 0,
        "cache_read_gpu": 0, "cache_read_cpu": 0, "cache_write_5m": 0, "output": 0, "reasoning": 0, "hit_blocks": 0,
        "blocks": (), "gpu_seconds": 0.0, "search_units": "", "adapter_hours": ""})  # fmt: skip
    insert(warehouse, [void], Prices(state.cards), {"v": same[0].event_id})
    reader = UsageReader(warehouse)
    seen = look(reader, state.tenants.values(), PERIOD, cards=state.cards)
    groups = [(group, {tenant.id for tenant in group.tenants}) for group in state.groups()]
    folded = compute_groups(reader, state, groups, seen, extra(state))
    assert folded.blocked == {}
    assert set(folded.invoices) == set(TENANTS)
    for group, wanted in groups:
        one_by_one = compute(reader, state, group, wanted, seen, extra(state), rerate=lambda row: row)
        assert one_by_one.blocked == {}
        for tenant in wanted:
            assert folded.invoices[tenant].document == one_by_one.invoices[tenant].document
    monkeypatch.setattr(folding, "CELLS_MAX", 0)  # so many tenants and prices that none can be folded
    monkeypatch.setattr(folding, "SPANS_A_QUERY", 1)
    unfolded = compute_groups(reader, state, groups, seen, extra(state))
    assert {name: one.document for name, one in unfolded.invoices.items()} == {
        name: one.document for name, one in folded.invoices.items()
    }
    said = "".join(invoice.document for invoice in folded.invoices.values())
    for kind in ("void", "covered", "reservation", "allowance", "credit"):
        assert f'"kind":"{kind}"' in said
    assert ('"kind":"storage"' in said) == ("ttl_seconds" in policy)
    for counted in ("search_unit", "gpu_microsecond", "adapter_hour", "reasoning", "cache_write_5m"):
        assert f'"class":"{counted}"' in said


def test_margins_from_sums_are_those_from_events(book: Engine, warehouse: Client) -> None:
    costs = [
        {"id": "provider", "version": 1, "effective_from": "2026-11-07T00:00:00Z",
         "prices": [{**_PLAIN, "request": "0.0001", "bands": [{"input_over": 80, "uncached_input": "2"}]},
                    {"model": "n", "region": "eu", "uncached_input": "3", "output": "9"}]},
        {"id": "provider", "version": 2, "effective_from": "2026-11-18T01:02:03.000004Z",
         "prices": [{**_PLAIN, "uncached_input": "1", "adapter": "tuned", "search_unit": "0.001", "reasoning": "7"}]},
        {"id": "gpus", "version": 1, "effective_from": "2026-11-10T00:00:00Z",
         "prices": [{"model": "m", "uncached_input": "0", "output": "0", "gpu_second": "0.001", "adapter_hour": "0.01"}]},
    ]  # fmt: skip
    content = {**declared({"kind": "shapley_use"}), "cost_cards": costs}
    apply_declarations(book, read_mapping(content), "tester", datetime(2026, 1, 2, tzinfo=UTC), publish)
    with Session(book) as session:
        state = read_state(session)
    dice = random.Random(11)
    rows = [event(dice, number) for number in range(500)]
    insert(warehouse, rows, Prices(state.cards), {})
    reader = UsageReader(warehouse)
    found = margins_of_month(book, reader, PERIOD).margins
    seen = look(reader, state.tenants.values(), PERIOD, cards=state.cards)
    groups = [(group, {tenant.id for tenant in group.tenants}) for group in state.groups()]
    charges = compute_groups(reader, state, groups, seen).charges
    in_month = [row for row in rows if seen.periods[row.tenant].start.timestamp() * 1e6 <= row.time_us]
    one_by_one = margins_of(charges, map(OneEvent, in_month), Costs(state.cost_cards), "USD")
    assert found == one_by_one
    assert sum(margin.uncosted for margin in found.values()) > 0
