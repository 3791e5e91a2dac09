"""Savings folded in ClickHouse agree with the plain engine to the unit, and with both the events' own costs."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from taximeter_billing.domain.savings import SavingsResult, savings_for_period
from taximeter_billing.domain.usage import Prices, Skus, UsageRow
from taximeter_billing.folding import UsageFold
from taximeter_billing.warehouse import TenantSpan
from taximeter_schemas.cache_policies import load_cache_policy
from taximeter_schemas.rate_cards import RateCard

START, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
TENANTS = ("acme", "globex", "initech", "wonka")
BLOCK = 16
POLICIES: dict[str, dict[str, Any]] = {
    "retain": {"kind": "retain"},
    "beneficiary": {"kind": "beneficiary"},
    "warmer": {"kind": "warmer", "warmer_cap_bps": 9_000},
    "pool": {"kind": "pool", "weight": "list_spend"},
    "waterfall": {
        "kind": "waterfall", "provider_bps": 1_000, "beneficiary_bps": 3_000, "warmer_bps": 4_000, "pool_bps": 2_000,
        "pool_weight": "list_spend", "warmer_cap_bps": 7_000, "self_hits": "share",
    },
    "shapley_tenant": {"kind": "shapley_tenant"},
    "shapley_use": {"kind": "shapley_use"},
}  # fmt: skip

CARD = RateCard.model_validate(
    {
        "id": "default", "version": 1, "currency": "USD", "effective_from": START, "recorded_at": START,
        "prices": [
            {"model": "m", "uncached_input": 1_250_000, "cache_read_gpu": 125_000, "cache_read_cpu": 250_000, "output": 5_000_000,
             "cache_write_5m": 1_500_000, "bands": [{"input_over": 100, "uncached_input": 2_500_000, "cache_read_gpu": 200_000}]},
            {"model": "m", "feature": "search", "uncached_input": 1_000_000, "cache_read_gpu": 100_000, "output": 4_000_000},
            {"model": "n", "uncached_input": 3_000_000, "cache_read_gpu": 300_000, "output": 9_000_000},
        ],
    }
)  # fmt: skip


def events(seed: int, count: int) -> list[UsageRow]:
    """Random events: prefixes of shared trees, cold and warm, also filled again, mixed with counts alone."""
    dice = random.Random(seed)
    rows = []
    for number in range(count):
        trunk = dice.randint(0, 3)
        blocks = tuple(
            f"{trunk}-{depth}" if depth < 2 else f"{trunk}-{dice.randint(0, 2)}-{depth}" for depth in range(6)
        )
        hit = dice.randint(0, 6)
        exact = dice.random() < 0.8
        tier = dice.choice(["gpu", "gpu", "cpu"])
        gpu, cpu = (hit * BLOCK, 0) if tier == "gpu" else (0, hit * BLOCK)
        rows.append(
            UsageRow(
                tenant=dice.choice(TENANTS), feature=dice.choice(["chat", "search"]), model=dice.choice(["m", "n"]),
                adapter=dice.choice(["", "", "tuned"]), operation="chat", service_tier="standard", rate_card="default@1",
                source="svc", event_id=f"e{number}",
                # Many at one moment, so that the order within it matters.
                time_us=int((START + timedelta(minutes=dice.randint(0, count // 3))).timestamp()) * 1_000_000,
                uncached_input=(6 - hit) * BLOCK + dice.choice([0, 0, 7, 40]),
                cache_read_gpu=gpu, cache_read_cpu=cpu, cache_read_disk=0, cache_read_provider=0,
                cache_write_5m=0 if exact else dice.choice([0, 32]), cache_write_1h=0, output=3,
                pool=dice.choice(["p", "p", "q"]) if exact else dice.choice(["p", ""]), block_size=BLOCK, hit_blocks=hit,
                blocks=blocks[: dice.randint(hit, 6)] if exact else (), list_pico=0, metered_pico=0,
            )
        )  # fmt: skip
    return rows


def insert(warehouse: Client, rows: list[UsageRow]) -> None:
    names = [
        "tenant", "feature", "model", "adapter", "operation", "service_tier", "rate_card", "source", "event_id", "time",
        "uncached_input", "cache_read_gpu", "cache_read_cpu", "cache_read_disk", "cache_read_provider", "cache_write_5m",
        "cache_write_1h", "output", "pool", "block_size", "hit_blocks", "blocks", "disposition", "arrived_at", "attributes",
    ]  # fmt: skip
    values = [
        [
            *(getattr(row, name) for name in names[:9]), datetime.fromtimestamp(row.time_us / 1e6, UTC),
            *(getattr(row, name) for name in names[10:21]), list(row.blocks), "rated", START,
            {"cache.evicted_at": row.evicted_at} if row.evicted_at else {},
        ]
        for row in rows
    ]  # fmt: skip
    warehouse.insert("usage_log", values, names)


def plain(rows: list[UsageRow], policy: dict[str, Any], ttl_s: int | None) -> SavingsResult:
    skus = Skus(Prices([CARD]))
    uses = [use for row in rows for use in skus.uses(row)]
    ttl_us = None if ttl_s is None else ttl_s * 1_000_000
    return savings_for_period(uses, skus.rates, load_cache_policy(policy, {}), "s", ttl_s=ttl_us)


@pytest.mark.parametrize("ttl_s", [None, 600])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_fold_is_the_plain_engine(warehouse: Client, seed: int, ttl_s: int | None) -> None:
    rows = events(seed, 500)
    insert(warehouse, rows)
    fold = UsageFold(warehouse, [TenantSpan(tenant, START, END) for tenant in TENANTS], [CARD])
    for name, policy in POLICIES.items():
        folded = fold.savings(load_cache_policy(policy, {}), "s", ttl_s=ttl_s, chunks=3)
        expected = plain(rows, policy, ttl_s)
        assert dict(folded.by_tenant_and_sku) == dict(expected.by_tenant_and_sku), name
        assert folded.provider_retained_pico == expected.provider_retained_pico
        assert all(folded.known.values()), "every way of knowing occurs"


def test_each_tenant_has_its_own_span(warehouse: Client) -> None:
    rows = events(3, 200)
    insert(warehouse, rows)
    cut = START + timedelta(minutes=30)
    spans = [TenantSpan("acme", START, cut), TenantSpan("globex", cut, END)]
    kept = [
        row
        for row in rows
        if (row.tenant == "acme" and row.time_us < cut.timestamp() * 1e6)
        or (row.tenant == "globex" and row.time_us >= cut.timestamp() * 1e6)
    ]
    folded = UsageFold(warehouse, spans, [CARD]).savings(load_cache_policy({"kind": "shapley_use"}, {}), "s")
    assert folded == plain(kept, {"kind": "shapley_use"}, None)
