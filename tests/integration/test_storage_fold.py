"""Storage that ClickHouse adds up is, to the unit, that of the plain engine, over the turn of months too."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from clickhouse_connect.driver.client import Client

from taximeter_billing.domain.storage_lines import LOOKBACK, Stored, storage_lines, store
from taximeter_billing.domain.usage import UsageRow
from taximeter_billing.folding import UsageFold
from taximeter_billing.warehouse import TenantSpan
from taximeter_schemas.cache_policies import CachePolicy, load_cache_policy
from taximeter_schemas.periods import Period, billing_month
from taximeter_schemas.rate_cards import RateCard
from tests.integration.test_savings_fold import CARD, TENANTS, events, insert

MONTHS = [billing_month(label, "UTC") for label in ("2026-10", "2026-11", "2026-12")]
NOVEMBER = MONTHS[1]
PRICED = RateCard.model_validate(
    {
        **CARD.model_dump(),
        "prices": [
            {**price.model_dump(), "cache_storage": storage}
            for price, storage in zip(CARD.prices, (1_000_003, 0, 777), strict=True)
        ],
    }
)


def around_a_month(seed: int, count: int) -> list[UsageRow]:
    """Events from September to December, many at one moment and some at the very turn of a month; some say what was evicted."""
    dice = random.Random(seed)
    moments = [dice.uniform(-60, 60) for _ in range(count // 4)] + [0.0, 30.0]
    rows = []
    for row in events(seed, count):
        moment = NOVEMBER.start + timedelta(days=dice.choice(moments))
        evicted = moment - timedelta(hours=dice.choice([0, 1, 30, 900]), microseconds=dice.choice([0, 1, 500_000]))
        said = dice.choice(["", "", f"{evicted.timestamp():.6f}", f"{int(evicted.timestamp())}", "never", "1e9"])
        rows.append(replace(row, time_us=int(moment.timestamp()) * 1_000_000, evicted_at=said))
    return rows


def within(rows: list[UsageRow], month: Period) -> list[UsageRow]:
    start, end = ((moment.timestamp()) * 1_000_000 for moment in (month.start - LOOKBACK, month.end))
    return [row for row in rows if start <= row.time_us < end]


def policy(borne_by: str, ttl_seconds: int) -> CachePolicy:
    return load_cache_policy({"kind": "shapley_use", "storage": borne_by, "ttl_seconds": ttl_seconds}, {})


@pytest.mark.parametrize("borne_by", ["creator", "shared"])
def test_the_fold_is_the_plain_engine(warehouse: Client, borne_by: str) -> None:
    rows = around_a_month(5, 700)
    insert(warehouse, rows)
    for month in MONTHS:
        spans = [TenantSpan(tenant, month.start - LOOKBACK, month.end) for tenant in TENANTS]
        own = within(rows, month)
        for ttl_seconds in (3600, 5 * 86_400, 31 * 86_400):
            kind = policy(borne_by, ttl_seconds)
            folded = UsageFold(warehouse, spans, [PRICED]).stored(kind, month, chunks=2)
            random.Random(ttl_seconds).shuffle(own)  # the order of arrival decides nothing
            plain = store(own, [PRICED], kind, month)
            assert folded == plain
            assert len(plain.kept) > 4
            assert folded.events == len(own)
            lines = storage_lines(folded, [PRICED], kind, month, "s")
            assert lines == storage_lines(plain, [PRICED], kind, month, "s")
            exact = sum((time * line[3] for (_tenant, line), time in plain.kept.items()), Fraction(0)) / 3_600_000_000
            assert abs(sum(line.amount_pico for own in lines.values() for line in own) - exact) <= Fraction(1, 2)


def test_without_a_price_nothing_is_asked(warehouse: Client) -> None:
    insert(warehouse, around_a_month(5, 50))
    spans = [TenantSpan(tenant, NOVEMBER.start - LOOKBACK, NOVEMBER.end) for tenant in TENANTS]
    found = UsageFold(warehouse, spans, [CARD]).stored(policy("creator", 60), NOVEMBER)
    assert found == Stored({}, found.events)
    assert datetime(2026, 10, 1, tzinfo=UTC) == NOVEMBER.start - LOOKBACK
