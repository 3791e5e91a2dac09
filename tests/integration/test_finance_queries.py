"""The finance queries on known rows: exact results, across month ends, currencies and sums beyond 64 bits."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from taximeter_sql import connect, migrate, query
from tests.face_process import FaceProcess

HUGE = 9 * 10**18  # twice that is more than an Int64 holds
ARRIVED = datetime(2026, 11, 24, 8, tzinfo=UTC)
COLUMNS = [
    "disposition", "reason", "tenant", "feature", "model", "currency", "time", "uncached_input", "cache_read_gpu",
    "cache_read_provider", "cache_write_1h", "output", "list_pico", "metered_pico",
]  # fmt: skip


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-{text}:00+00:00")


ROWS: list[list[Any]] = [
    # Within the last hour of October in UTC, and already November in Berlin.
    ["rated", "", "acme", "chat", "m", "USD", at("10-31T23:30"), 10, 0, 0, 0, 1, 100, 100],
    ["rated", "", "acme", "chat", "m", "USD", at("11-02T00:00"), 60, 20, 10, 10, 2, 1_000, 700],
    ["rated", "", "acme", "search", "m", "USD", at("11-30T23:59"), 0, 0, 0, 0, 3, 300, 300],
    ["rated", "", "acme", "search", "n", "USD", at("11-03T10:00"), 40, 0, 0, 60, 0, 400, 600],  # the premium outweighs
    # One tenant was billed in two currencies: they are never added.
    ["rated", "", "acme", "chat", "m", "EUR", at("11-03T10:00"), 5, 0, 0, 0, 0, 50, 50],
    ["rated", "", "globex", "chat", "n", "USD", at("11-04T10:00"), 1, 0, 0, 0, 1, HUGE, HUGE],
    ["rated", "", "globex", "chat", "n", "USD", at("11-04T11:00"), 1, 0, 0, 0, 1, HUGE, HUGE],
    ["rated", "", "initech", "chat", "m", "USD", at("10-10T10:00"), 0, 0, 0, 0, 0, 5_000, 5_000],
    # What is not rated is in no sum.
    ["unrated", "unknown_model", "acme", "chat", "x", "", at("11-05T10:00"), 3, 4, 0, 0, 9, 0, 0],
    ["unrated", "unknown_model", "acme", "chat", "x", "", at("11-06T10:00"), 3, 0, 0, 0, 1, 0, 0],
    ["unrated", "no_rate_card", "globex", "chat", "m", "", at("11-06T10:00"), 1, 0, 0, 0, 1, 0, 0],
    ["duplicate", "", "acme", "chat", "m", "", at("11-02T00:00"), 60, 20, 10, 10, 2, 0, 0],
    ["rejected", "conflict", "acme", "chat", "m", "", at("11-02T00:00"), 60, 20, 10, 10, 3, 0, 0],
    ["rejected", "malformed_json", "", "", "", "", datetime(1970, 1, 1, tzinfo=UTC), 0, 0, 0, 0, 0, 0, 0],
    ["rejected", "malformed_json", "", "", "", "", datetime(1970, 1, 1, tzinfo=UTC), 0, 0, 0, 0, 0, 0, 0],
]
ALL = {"tenant": "", "since": datetime(1970, 1, 1, tzinfo=UTC), "until": datetime(2100, 1, 1, tzinfo=UTC)}
NOVEMBER = {"start": date(2026, 11, 1), "end": date(2026, 12, 1)}


@pytest.fixture
def warehouse(clickhouse: FaceProcess, unique_database: str) -> Iterator[Client]:
    with connect(clickhouse.url(unique_database)) as client:
        migrate(client)
        placed = [["log", 0, offset, 0, len(ROWS) - 1, ARRIVED, *row] for offset, row in enumerate(ROWS)]
        names = ["log_id", "partition", "offset", "batch_first", "batch_last", "arrived_at", *COLUMNS]
        client.insert("usage_log", placed, column_names=names)
        yield client


def ask(client: Client, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in client.query(query(name), parameters=parameters, tz_mode="aware").result_rows]


def test_spend_by_month_follows_the_time_zone(warehouse: Client) -> None:
    globex = ("globex", "2026-11", "USD", 2, 2 * HUGE, 2 * HUGE, 0)
    initech = ("initech", "2026-10", "USD", 1, 5_000, 5_000, 0)
    assert ask(warehouse, "spend_by_tenant_and_month", time_zone="UTC") == [
        ("acme", "2026-10", "USD", 1, 100, 100, 0),
        ("acme", "2026-11", "EUR", 1, 50, 50, 0),
        ("acme", "2026-11", "USD", 3, 1_700, 1_600, 100),
        globex,
        initech,
    ]
    assert ask(warehouse, "spend_by_tenant_and_month", time_zone="Europe/Berlin") == [
        ("acme", "2026-11", "EUR", 1, 50, 50, 0),
        ("acme", "2026-11", "USD", 3, 1_500, 1_400, 100),
        ("acme", "2026-12", "USD", 1, 300, 300, 0),
        globex,
        initech,
    ]


def test_cost_per_feature(warehouse: Client) -> None:
    assert ask(warehouse, "cost_per_feature", **NOVEMBER) == [
        ("acme", "search", "USD", 2, 700, 900),
        ("acme", "chat", "USD", 1, 1_000, 700),
        ("acme", "chat", "EUR", 1, 50, 50),
        ("globex", "chat", "USD", 2, 2 * HUGE, 2 * HUGE),
    ]


def test_model_mix_is_a_share_within_a_tenant_and_currency(warehouse: Client) -> None:
    assert ask(warehouse, "model_mix_by_tenant", **NOVEMBER) == [
        ("acme", "m", "USD", 2, 1_000, 0.625),
        ("acme", "n", "USD", 1, 600, 0.375),
        ("acme", "m", "EUR", 1, 50, 1.0),
        ("globex", "n", "USD", 2, 2 * HUGE, 1.0),
    ]


def test_cache_hit_rate_and_savings(warehouse: Client) -> None:
    assert ask(warehouse, "cache_hit_rate_and_savings", **NOVEMBER) == [
        ("acme", "m", "USD", 30, 100, 0.3, 300),
        ("acme", "m", "EUR", 0, 5, 0.0, 0),
        ("globex", "n", "USD", 0, 2, 0.0, 0),
        ("acme", "n", "USD", 0, 100, 0.0, -200),
    ]


def test_the_hit_rate_of_no_input_is_unknown(warehouse: Client) -> None:
    span = {"start": date(2026, 10, 10), "end": date(2026, 10, 11)}
    assert ask(warehouse, "cache_hit_rate_and_savings", **span) == [("initech", "m", "USD", 0, 0, None, 0)]


def test_top_movers_compare_with_the_month_before(warehouse: Client) -> None:
    movers = [
        ("globex", "USD", 2 * HUGE, 0, 2 * HUGE),
        ("initech", "USD", 0, 5_000, -5_000),
        ("acme", "USD", 1_600, 100, 1_500),
        ("acme", "EUR", 50, 0, 50),
    ]
    assert ask(warehouse, "top_movers", month=date(2026, 11, 1), top=10) == movers
    assert ask(warehouse, "top_movers", month=date(2026, 11, 1), top=2) == movers[:2]


def test_unrated_usage_is_listed_with_what_it_holds(warehouse: Client) -> None:
    assert ask(warehouse, "unrated") == [
        ("acme", "x", "unknown_model", 2, 10, 10, at("11-05T10:00"), at("11-06T10:00")),
        ("globex", "m", "no_rate_card", 1, 1, 1, at("11-06T10:00"), at("11-06T10:00")),
    ]


def test_rejected_messages_are_counted_by_reason(warehouse: Client) -> None:
    assert ask(warehouse, "rejected") == [
        ("", "malformed_json", 2, ARRIVED, ARRIVED),
        ("acme", "conflict", 1, ARRIVED, ARRIVED),
    ]


def test_the_laws_hold_and_a_row_that_went_round_the_rollup_is_named(warehouse: Client) -> None:
    assert ask(warehouse, "reconcile_hourly", **ALL) == ask(warehouse, "reconcile_daily", **ALL) == []
    assert ask(warehouse, "reconcile_offsets", **ALL) == [("log", 0, len(ROWS), len(ROWS), 0, len(ROWS) - 1)]
    warehouse.command(
        "INSERT INTO usage_hourly (hour, tenant, currency, events, metered_pico) "
        "VALUES ('2026-11-02 00:00:00', 'acme', 'USD', 1, 7)"
    )
    (drift,) = warehouse.query(query("reconcile_hourly"), parameters=ALL, tz_mode="aware").named_results()
    assert (drift["hour"], drift["tenant"], drift["currency"]) == (at("11-02T00:00"), "acme", "USD")
    assert (drift["events"], drift["list_pico"], drift["metered_pico"], drift["output"]) == (-1, 0, -7, 0)
    assert ask(warehouse, "reconcile_daily", **ALL) == []
