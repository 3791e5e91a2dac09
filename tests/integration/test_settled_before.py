"""What tenants share in a month is settled by the same declarations on all their invoices, whatever is declared in between."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from taximeter_billing.closing import close_period, finalize_period, find_invoice, list_invoices, list_parked
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.lifecycle import void_invoice
from taximeter_billing.verifying import verify_invoice
from taximeter_billing.warehouse import UsageReader
from tests.integration.test_billing import content, insert, publish, shared_prefix

DECLARED, CHANGED = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 12, 6, tzinfo=UTC)
CLOSED, LATER = datetime(2026, 12, 5, tzinfo=UTC), datetime(2026, 12, 7, tzinfo=UTC)
NOVEMBER, DECEMBER = "2026-11", "2026-12"
SAVED = 57_600_000_000
"""What the cache saved acme and globex in pico-units: 8 blocks of 16,000 tokens at 0.45 USD a million."""


def declare(book: Engine, whole: dict[str, Any], at: datetime = CHANGED) -> None:
    apply_declarations(book, read_mapping(whole), "tester", at, publish)


def by(policy: str = "shapley_use", version: int = 1, **fields: Any) -> dict[str, Any]:
    """Acme and globex in one pool, by a policy of that kind and version."""
    whole = content(policy)
    whole["cache_policies"][0] |= {"version": version, **fields}
    return whole


def apart() -> dict[str, Any]:
    """The same, and globex has left the pool."""
    whole = by()
    whole["cache_pools"] = [{"id": "pool", "tenants": ["acme"]}]
    return whole


def zone_moved() -> dict[str, Any]:
    whole = by()
    whole["tenants"][1]["time_zone"] = "Asia/Tokyo"
    return whole


def joined() -> dict[str, Any]:
    """The same, and a tenant that used nothing in November has joined the pool."""
    whole = by()
    whole["tenants"].append({"id": "hooli", "cache_policy": "shapley_use"})
    whole["cache_pools"][0]["tenants"].append("hooli")
    return whole


def saved(book: Engine, period: str = NOVEMBER) -> int:
    """What the final invoices of a month give back of what the cache saved."""
    return sum(row.savings_pico for row in list_invoices(book, period) if row.status == "final")


@pytest.fixture
def invoiced(book: Engine, warehouse: Client, reader: UsageReader) -> Engine:
    """November is closed; acme's invoice is final and globex's a draft."""
    declare(book, by(), DECLARED)
    insert(warehouse, *shared_prefix())
    assert close_period(book, reader, NOVEMBER, CLOSED).drafted == ["acme", "globex"]
    assert [row.number for row in finalize_period(book, NOVEMBER, "INV", CLOSED, "acme")] == ["INV-000001"]
    return book


CHANGES = [
    # What is declared, what acme was invoiced by, and what it would be now.
    (by("beneficiary"), "shapley_use@1", "beneficiary@1"),
    (by(version=2, unattributed="provider"), "shapley_use@1", "shapley_use@2"),
    (apart(), "shapley_use@1 with acme (UTC)", "shapley_use@1"),
    (zone_moved(), "shapley_use@1 with globex (UTC)", "shapley_use@1 with globex (Asia/Tokyo)"),
]


@pytest.mark.parametrize(("changed", "then", "now"), CHANGES)
def test_a_tenant_whose_pool_was_invoiced_by_something_else_waits(
    invoiced: Engine, reader: UsageReader, changed: dict[str, Any], then: str, now: str
) -> None:
    declare(invoiced, changed)
    closed = close_period(invoiced, reader, NOVEMBER, LATER)
    assert (closed.final, closed.drafted, list(closed.parked)) == (["acme"], [], ["globex"])
    assert closed.parked["globex"] == (
        f"acme was invoiced (INV-000001) by cache policy {then}, and by what is declared now, what it shares with globex would be"
        f" settled by cache policy {now}: the two invoices would not add up. Void INV-000001, or declare the tenants as they were"
        " until this month is invoiced, and close it again"
    )
    assert finalize_period(invoiced, NOVEMBER, "INV", LATER) == []


@pytest.mark.parametrize("changed", [by("beneficiary"), by(version=2, unattributed="provider"), apart()])
def test_either_way_out_gives_back_what_was_saved(
    invoiced: Engine, reader: UsageReader, changed: dict[str, Any]
) -> None:
    declare(invoiced, changed)
    close_period(invoiced, reader, NOVEMBER, LATER)
    finalize_period(invoiced, NOVEMBER, "INV", LATER)
    if changed == by("beneficiary") or changed == apart():
        declare(invoiced, by(), LATER)
    else:
        void_invoice(invoiced, "INV-000001", "settled by version 2", "tester", LATER)
    close_period(invoiced, reader, NOVEMBER, LATER)
    finalize_period(invoiced, NOVEMBER, "INV", LATER)
    assert saved(invoiced) == SAVED
    assert list_parked(invoiced) == []
    assert all(verify_invoice(invoiced, reader, f"{tenant}/{NOVEMBER}").proven for tenant in ("acme", "globex"))


def test_a_draft_from_before_the_change_belongs_to_the_invoice(invoiced: Engine) -> None:
    declare(invoiced, by("beneficiary"))
    finalize_period(invoiced, NOVEMBER, "INV", LATER)
    assert saved(invoiced) == SAVED


def test_a_tenant_that_used_nothing_holds_nobody(invoiced: Engine, reader: UsageReader) -> None:
    declare(invoiced, joined())
    assert close_period(invoiced, reader, NOVEMBER, LATER).parked == {}
    finalize_period(invoiced, NOVEMBER, "INV", LATER)
    assert saved(invoiced) == SAVED


def test_a_change_after_all_are_invoiced_holds_nobody_and_late_usage_is_settled_as_then(
    invoiced: Engine, warehouse: Client, reader: UsageReader
) -> None:
    finalize_period(invoiced, NOVEMBER, "INV", CLOSED)
    declare(invoiced, by("retain"))
    _, hit = shared_prefix()
    late = {**hit, "event_id": "late", "time": hit["time"] + timedelta(seconds=1), "inserted_at": LATER}
    insert(warehouse, late)
    assert close_period(invoiced, reader, NOVEMBER, LATER).parked == {}
    end = datetime(2027, 1, 5, tzinfo=UTC)
    closed = close_period(invoiced, reader, DECEMBER, end)
    assert closed.parked == {}
    charged = sum(row.net_pico for row in list_invoices(invoiced, DECEMBER)) + sum(closed.refunds.values())
    # What that event is metered at, whoever bears it: 40,000 tokens at the full price, 128,000 at a tenth, 20,000 of output.
    assert charged == 40_000 * 500_000 + 128_000 * 50_000 + 20_000 * 1_500_000


def test_late_usage_of_an_invoiced_tenant_holds_nobody(
    invoiced: Engine, warehouse: Client, reader: UsageReader
) -> None:
    insert(warehouse, {"tenant": "acme", "event_id": "late", "uncached_input": 1_000_000, "inserted_at": LATER})
    closed = close_period(invoiced, reader, NOVEMBER, LATER)
    assert (closed.parked, list(closed.late), closed.drafted) == ({}, ["acme"], ["globex"])
    finalize_period(invoiced, NOVEMBER, "INV", LATER)
    assert saved(invoiced) == SAVED


def test_one_tenant_drafted_alone_holds_the_drafts_that_it_shares_with(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book, by(), DECLARED)
    insert(warehouse, *shared_prefix())
    close_period(book, reader, NOVEMBER, CLOSED)
    declare(book, by("beneficiary"))
    closed = close_period(book, reader, NOVEMBER, LATER, only="acme")
    assert closed.drafted == ["acme"]
    assert closed.parked == {
        "globex": "drafted by cache policy shapley_use@1, and what it shares with acme is settled by cache policy beneficiary@1"
        " now; close the period again"
    }
    assert [row.tenant for row in finalize_period(book, NOVEMBER, "INV", LATER)] == ["acme"]
    closed = close_period(book, reader, NOVEMBER, LATER)
    assert (closed.drafted, closed.parked) == (["globex"], {})
    finalize_period(book, NOVEMBER, "INV", LATER)
    assert saved(book) == SAVED


def stored(ttl_seconds: int) -> dict[str, Any]:
    """Keeping blocks has a price, and acme has left globex's pool for one where they stay for that long."""
    whole = content()
    whole["rate_cards"][0]["prices"][0]["cache_storage"] = "1"
    whole["cache_pools"] = [{"id": "pool", "tenants": ["globex"]}, {"id": "other", "tenants": ["acme"]}]
    version = {10_800: 1, 3600: 2}[ttl_seconds]
    whole["cache_policies"] = [
        {"id": "kept", "kind": "beneficiary", "ttl_seconds": 7200},
        {"id": "short", "kind": "beneficiary", "version": version, "ttl_seconds": ttl_seconds},
    ]
    for tenant, policy in zip(whole["tenants"], ("short", "kept", "kept"), strict=True):
        tenant["cache_policy"] = policy
    return whole


def test_what_a_pool_kept_is_settled_alike_for_who_has_left_it(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book, stored(10_800), DECLARED)
    insert(warehouse, *shared_prefix())
    close_period(book, reader, NOVEMBER, CLOSED)
    finalize_period(book, NOVEMBER, "INV", CLOSED, "acme")
    declare(book, stored(3600))
    reason = close_period(book, reader, NOVEMBER, LATER).parked["globex"]
    assert "by cache policy short@1 (storage by creator, ttl_seconds 7200)" in reason
    assert "would be settled by cache policy kept@1 (storage by creator, ttl_seconds 3600)" in reason
    void_invoice(book, "INV-000001", "another time to live", "tester", LATER)
    assert close_period(book, reader, NOVEMBER, LATER).drafted == ["globex", "acme"]
    lines = [
        line
        for name in ("acme", "globex")
        for line in json.loads(find_invoice(book, f"{name}/{NOVEMBER}").document)["lines"]
    ]
    assert {line["receipt"]["detail"]["ttl_seconds"] for line in lines if line["kind"] == "storage"} == {"3600"}
