"""From rated rows in ClickHouse to a finalized invoice: exact sums, parked tenants, and second runs that change nothing."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from hashlib import md5
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from taximeter_billing.book import InvoiceRow, open_book
from taximeter_billing.closing import close_period, finalize_period, find_invoice, list_invoices, list_parked
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.errors import NotFoundError, PeriodOpenError
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.control import ControlRecord
from taximeter_sql import query

NOW = datetime(2026, 12, 5, tzinfo=UTC)
PERIOD = "2026-11"
BLOCK_TOKENS = 16_000


def publish(records: Iterable[ControlRecord]) -> int:
    """A log that takes everything."""
    return len(list(records))


def content(policy: str | None = None) -> dict[str, Any]:
    """Two tenants in one pool and one in Berlin, at 0.50 / 0.05 / 1.50 USD per million tokens."""
    price = {"model": "m", "uncached_input": "0.50", "cache_read_gpu": "0.05", "output": "1.50"}
    tenants: list[dict[str, Any]] = [{"id": "acme", "name": "Acme <Stores>"}, {"id": "globex"}]
    declared: dict[str, Any] = {
        "rate_cards": [{"id": "default", "version": 1, "effective_from": "2026-01-01T00:00:00Z", "prices": [price]}],
        "cache_pools": [{"id": "pool", "tenants": ["acme", "globex"]}],
        "tenants": [*tenants, {"id": "berlin", "time_zone": "Europe/Berlin"}],
    }
    if policy:
        declared["cache_policies"] = [{"id": policy, "kind": policy}]
        for tenant in tenants:
            tenant["cache_policy"] = policy
    return declared


@pytest.fixture
def book(book_url: str) -> Iterator[Engine]:
    engine = open_book(book_url)
    apply_declarations(engine, read_mapping(content()), "tester", NOW, publish)
    yield engine
    engine.dispose()


def insert(warehouse: Client, *rows: dict[str, Any]) -> None:
    """Rows of the log as the meter writes them, with what a test does not care about filled in."""
    full = []
    for row in rows:
        event = row["event_id"]
        filled: dict[str, Any] = {
            "log_id": "test",
            "offset": int(md5(event.encode()).hexdigest()[:8], 16),
            "arrived_at": NOW,
            "disposition": "rated",
            "feature": "chat",
            "model": "m",
            "operation": "chat",
            "service_tier": "standard",
            "source": "test",
            "time": datetime(2026, 11, 10, 12, tzinfo=UTC),
            "uncached_input": 0,
            "cache_read_gpu": 0,
            "output": 0,
            "pool": "pool",
            "block_size": BLOCK_TOKENS,
            "hit_blocks": 0,
            "blocks": [],
            "currency": "USD",
            "rate_card": "default@1",
            "identity": md5(f"{row['tenant']}/{event}".encode()).digest(),
            "body": md5(event.encode()).digest(),
            **row,
        }
        whole = filled["uncached_input"] + filled["cache_read_gpu"]
        saved = filled["cache_read_gpu"] * 450_000
        filled["list_pico"] = whole * 500_000 + filled["output"] * 1_500_000
        filled["metered_pico"] = filled["list_pico"] - saved
        full.append(filled)
    names = list(full[0])
    warehouse.insert("usage_log", [[row[name] for name in names] for row in full], column_names=names)


def shared_prefix() -> tuple[dict[str, Any], dict[str, Any]]:
    """Acme fills ten blocks; globex, a second later, hits eight of them and writes two of its own."""
    blocks = [f"{number:016x}" for number in range(10)]
    first = {
        "tenant": "acme",
        "event_id": "a",
        "uncached_input": 10 * BLOCK_TOKENS,
        "output": 10_000,
        "blocks": blocks,
        "time": datetime(2026, 11, 10, 12, 0, 0, tzinfo=UTC),
    }
    second = {
        "tenant": "globex",
        "event_id": "b",
        "uncached_input": 2 * BLOCK_TOKENS + 8_000,
        "cache_read_gpu": 8 * BLOCK_TOKENS,
        "output": 20_000,
        "blocks": [*blocks[:8], "f" * 16, "e" * 16],
        "hit_blocks": 8,
        "time": datetime(2026, 11, 10, 12, 0, 1, tzinfo=UTC),
    }
    return first, second


def amounts(book: Engine) -> dict[str, tuple[int, int, int]]:
    """List, savings (both in pico-units) and cents to pay, by tenant."""
    rows = list_invoices(book, PERIOD)
    return {row.tenant: (row.list_pico, row.savings_pico, row.total_minor) for row in rows}


def bytes_of(rows: list[InvoiceRow]) -> list[tuple[str | None, str, str, datetime]]:
    return [(row.number, row.document, row.document_sha256, row.drafted_at) for row in rows]


def test_from_rows_to_final_invoices_exactly(book: Engine, warehouse: Client) -> None:
    insert(warehouse, *shared_prefix())
    closed = close_period(book, UsageReader(warehouse), PERIOD, NOW)
    assert (closed.drafted, closed.without_usage, closed.parked) == (["acme", "globex"], ["berlin"], {})
    # acme: 160,000 x 0.50 + 10,000 x 1.50 per million = 9.5 cents. globex: 168,000 in, 128,000 of it at a tenth, 20,000 out.
    assert amounts(book) == {"acme": (95_000_000_000, 0, 10), "globex": (114_000_000_000, 57_600_000_000, 6)}
    numbers = [row.number for row in finalize_period(book, PERIOD, "INV", NOW)]
    assert numbers == ["INV-000001", "INV-000002"]
    document = json.loads(find_invoice(book, "INV-000002").document)
    assert document["lines"][0]["net_pico"] == "56400000000"
    assert document["inputs"]["rate_cards"] == ["default@1"]
    assert document["inputs"]["cache_policy"] == "default@1"


def test_running_it_again_changes_nothing(book: Engine, warehouse: Client) -> None:
    insert(warehouse, *shared_prefix())
    reader = UsageReader(warehouse)
    close_period(book, reader, PERIOD, NOW)
    drafts = bytes_of(list_invoices(book))
    assert close_period(book, reader, PERIOD, NOW.replace(day=6)).unchanged == ["acme", "globex"]
    assert bytes_of(list_invoices(book)) == drafts
    finalize_period(book, PERIOD, "INV", NOW)
    final = bytes_of(list_invoices(book))
    insert(warehouse, {"tenant": "acme", "event_id": "late", "uncached_input": 1_000_000})
    again = close_period(book, reader, PERIOD, NOW.replace(day=7))
    assert again.final == ["acme", "globex"]
    assert again.late == {
        "acme": "the usage of 2026-11 has changed since invoice INV-000001; the next invoice carries the difference"
    }
    assert finalize_period(book, PERIOD, "INV", NOW.replace(day=7)) == []
    assert bytes_of(list_invoices(book)) == final


def test_a_draft_follows_its_usage(book: Engine, warehouse: Client) -> None:
    insert(warehouse, *shared_prefix())
    reader = UsageReader(warehouse)
    close_period(book, reader, PERIOD, NOW)
    insert(warehouse, {"tenant": "acme", "event_id": "more", "uncached_input": 1_000_000})
    assert close_period(book, reader, PERIOD, NOW).drafted == ["acme", "globex"]
    assert amounts(book)["acme"] == (595_000_000_000, 0, 60)


def test_the_policy_says_who_gets_the_saving(book: Engine, warehouse: Client) -> None:
    apply_declarations(book, read_mapping(content("retain")), "tester", NOW, publish)
    insert(warehouse, *shared_prefix())
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    assert amounts(book) == {"acme": (95_000_000_000, 0, 10), "globex": (114_000_000_000, 0, 11)}


def test_the_cost_of_filling_is_shared_by_use(book: Engine, warehouse: Client) -> None:
    apply_declarations(book, read_mapping(content("shapley_use")), "tester", NOW, publish)
    insert(warehouse, *shared_prefix())
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    # Eight blocks of two uses each: filling cost 8 x 16,000 x 0.45 per million more than reading; each pays half of that.
    half = 8 * BLOCK_TOKENS * 450_000 // 2
    found = amounts(book)
    assert {tenant: savings for tenant, (_, savings, _) in found.items()} == {
        "acme": half,
        "globex": 57_600_000_000 - half,
    }


@pytest.mark.parametrize("policy", [None, "shapley_use"])
def test_what_the_finance_queries_say_of_savings_is_on_the_invoices(
    book: Engine, warehouse: Client, policy: str | None
) -> None:
    apply_declarations(book, read_mapping(content(policy)), "tester", NOW, publish)
    insert(warehouse, *shared_prefix(), {"tenant": "berlin", "event_id": "x", "output": 9, "pool": "tenant:berlin"})
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    finalize_period(book, PERIOD, "INV", NOW)
    month = {"start": date(2026, 11, 1), "end": date(2026, 12, 1)}
    saved = warehouse.query(query("cache_hit_rate_and_savings"), parameters=month).named_results()
    by_tenant = {row["tenant"]: row["saving_pico"] for row in saved}
    spent = warehouse.query(query("spend_by_tenant_and_month"), parameters={"time_zone": "UTC"}).named_results()
    invoices = list_invoices(book, PERIOD)
    assert {row["tenant"]: row["list_pico"] for row in spent} == {one.tenant: one.list_pico for one in invoices}
    # Who hit saved it; whom it is given to is the policy's business, and the whole of it is the same.
    assert by_tenant == {"acme": 0, "globex": 57_600_000_000, "berlin": 0}
    assert sum(one.savings_pico for one in invoices) == sum(by_tenant.values())


def test_a_month_is_the_tenants_own(book: Engine, warehouse: Client) -> None:
    inside = {"tenant": "berlin", "uncached_input": 1_000_000, "pool": "tenant:berlin"}
    insert(
        warehouse,
        {**inside, "event_id": "1", "time": datetime(2026, 10, 31, 22, 59, 59, tzinfo=UTC)},  # still October there
        {**inside, "event_id": "2", "time": datetime(2026, 10, 31, 23, 0, 0, tzinfo=UTC)},
        {**inside, "event_id": "3", "time": datetime(2026, 11, 30, 22, 59, 59, 999_999, tzinfo=UTC)},
        {**inside, "event_id": "4", "time": datetime(2026, 11, 30, 23, 0, 0, tzinfo=UTC)},  # December
    )
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    assert amounts(book) == {"berlin": (1_000_000_000_000, 0, 100)}


def test_events_without_a_price_hold_their_tenant_and_nobody_else(book: Engine, warehouse: Client) -> None:
    insert(warehouse, *shared_prefix(), {"tenant": "globex", "event_id": "x", "disposition": "unrated", "model": "new"})
    closed = close_period(book, UsageReader(warehouse), PERIOD, NOW)
    assert closed.drafted == ["acme"]
    assert closed.parked["globex"].startswith("1 events have no price yet")
    assert [(row.tenant, row.period) for row in list_parked(book)] == [("globex", PERIOD)]
    assert [row.tenant for row in finalize_period(book, PERIOD, "INV", NOW)] == ["acme"]


def test_a_rollup_that_differs_parks_its_tenant_until_it_agrees(book: Engine, warehouse: Client) -> None:
    insert(warehouse, *shared_prefix())
    hour = datetime(2026, 11, 10, 13, tzinfo=UTC)  # without any usage of acme's
    columns = ["hour", "tenant", "feature", "model", "currency", "events", "metered_pico"]
    warehouse.insert("usage_hourly", [[hour, "acme", "chat", "m", "USD", 1, 7]], column_names=columns)
    reader = UsageReader(warehouse)
    closed = close_period(book, reader, PERIOD, NOW)
    assert closed.drafted == ["globex"]
    assert "the hourly rollup differs from the raw rows in 1 hours" in closed.parked["acme"]
    warehouse.command(
        "ALTER TABLE usage_hourly DELETE WHERE tenant = 'acme' AND metered_pico = 7 SETTINGS mutations_sync = 1"
    )
    assert close_period(book, reader, PERIOD, NOW).drafted == ["acme"]
    assert list_parked(book) == []


def test_an_event_rated_by_a_card_that_nobody_declared(book: Engine, warehouse: Client) -> None:
    insert(warehouse, *shared_prefix(), {"tenant": "berlin", "event_id": "x", "rate_card": "gone@1", "output": 5})
    closed = close_period(book, UsageReader(warehouse), PERIOD, NOW)
    assert closed.drafted == ["acme", "globex"]
    assert "gone@1 has no price for m, yet event x was rated by it" in closed.parked["berlin"]


def test_a_running_month_is_closed_only_early(book: Engine, warehouse: Client) -> None:
    insert(warehouse, *shared_prefix())
    reader = UsageReader(warehouse)
    within_grace = datetime(2026, 12, 3, 23, 59, tzinfo=UTC)
    with pytest.raises(PeriodOpenError, match="2026-11 may be closed from 2026-12-04 00:00 UTC"):
        close_period(book, reader, PERIOD, within_grace)
    assert close_period(book, reader, PERIOD, within_grace, early=True).drafted == ["acme", "globex"]


def test_one_tenant_alone(book: Engine, warehouse: Client) -> None:
    insert(warehouse, *shared_prefix())
    reader = UsageReader(warehouse)
    assert close_period(book, reader, PERIOD, NOW, only="globex").drafted == ["globex"]
    with pytest.raises(NotFoundError, match="no tenant is called 'nobody'"):
        close_period(book, reader, PERIOD, NOW, only="nobody")


def test_names_of_invoices(book: Engine, warehouse: Client) -> None:
    insert(warehouse, *shared_prefix())
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    assert find_invoice(book, "acme/2026-11").status == "draft"
    with pytest.raises(NotFoundError, match="no invoice is called 'INV-9'"):
        find_invoice(book, "INV-9")
