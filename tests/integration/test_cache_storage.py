"""Keeping blocks in cache as a line of its own: over a month's end, with late usage, proven, and in what-if."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from taximeter_billing import folding
from taximeter_billing.closing import close_period, finalize_period, find_invoice, list_invoices
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.declarations.prices import read_rate_card
from taximeter_billing.explaining import explain_line
from taximeter_billing.exports import detail_csv, focus_csv
from taximeter_billing.exports.invoice_source import from_document
from taximeter_billing.exports.page import invoice_page
from taximeter_billing.verifying import verify_invoice
from taximeter_billing.warehouse import UsageReader
from taximeter_billing.what_if import what_if
from taximeter_schemas.cache_policies import load_cache_policy
from taximeter_schemas.money import to_pico
from tests.exported_invoices import ISSUER
from tests.integration.test_billing import BLOCK_TOKENS, content, insert, publish, shared_prefix

DECLARED = datetime(2026, 10, 1, tzinfo=UTC)
NOVEMBER, DECEMBER, JANUARY = "2026-11", "2026-12", "2027-01"
CLOSED, LATER = datetime(2026, 12, 5, tzinfo=UTC), datetime(2027, 1, 5, tzinfo=UTC)
TURN = datetime(2026, 12, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
# 1 USD a million tokens and hour, in pico-units for one block and hour.
BLOCK_HOUR = BLOCK_TOKENS * 1_000_000
BLOCK = "0" * 16


def declared(borne_by: str = "creator", ttl_seconds: int | None = 7200) -> dict[str, Any]:
    whole = content()
    whole["rate_cards"][0]["prices"][0]["cache_storage"] = "1"
    stated = {} if ttl_seconds is None else {"ttl_seconds": ttl_seconds}
    whole["cache_policies"] = [{"id": "kept", "kind": "beneficiary", "storage": borne_by, **stated}]
    for tenant in whole["tenants"]:
        tenant["cache_policy"] = "kept"
    return whole


def declare(book: Engine, borne_by: str = "creator") -> None:
    apply_declarations(book, read_mapping(declared(borne_by)), "tester", DECLARED, publish)


def use(warehouse: Client, tenant: str, moment: datetime, *, hit: bool = False, **more: Any) -> None:
    """One block, filled or hit; inserted an hour later unless said otherwise."""
    counts = {"cache_read_gpu" if hit else "uncached_input": BLOCK_TOKENS, "hit_blocks": int(hit)}
    row = {"tenant": tenant, "event_id": f"{tenant}{moment:%d%H%M%S}", "time": moment, "blocks": [BLOCK], **counts}
    insert(warehouse, {**row, "inserted_at": moment + HOUR, "attributes": {}, **more})


def storage(book: Engine, reference: str) -> list[dict[str, Any]]:
    lines = json.loads(find_invoice(book, reference).document)["lines"]
    return [line for line in lines if line["kind"] == "storage"]


def hours(book: Engine, reference: str) -> float:
    """What the storage lines cost, in hours of one block."""
    return sum(int(line["net_pico"]) for line in storage(book, reference)) / BLOCK_HOUR


def test_a_residency_over_the_turn_of_a_month_is_paid_once(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    use(warehouse, "acme", TURN - 2 * HOUR)
    use(warehouse, "globex", TURN - HOUR, hit=True)
    close_period(book, reader, NOVEMBER, CLOSED)
    assert hours(book, "acme/2026-11") == 2
    assert storage(book, "globex/2026-11") == []
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    # It stays for an hour more, though nobody uses anything in December; then it is gone.
    close_period(book, reader, DECEMBER, LATER)
    assert hours(book, "acme/2026-12") == 1
    line = storage(book, "acme/2026-12")[0]
    assert line["receipt"]["detail"] == {
        "feature": "chat", "model": "m", "token_seconds": str(3600 * BLOCK_TOKENS), "price_pico_token_hour": "1000000",
        "rate_card": "default@1", "rate_card_sha256": line["receipt"]["detail"]["rate_card_sha256"],
        "cache_policy": "kept@1", "borne_by": "creator", "ttl_seconds": "7200",
        "from": "2026-12-01T00:00:00+00:00", "to": "2027-01-01T00:00:00+00:00",
        "fillers_known_since": "2026-10-31T00:00:00+00:00",
    }  # fmt: skip
    for reference in ("acme/2026-11", "globex/2026-11", "acme/2026-12"):
        assert verify_invoice(book, reader, reference).proven
    finalize_period(book, DECEMBER, "INV", LATER)
    assert close_period(book, reader, JANUARY, LATER + timedelta(days=31)).drafted == []


def test_hits_share_what_lies_in_their_month(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book, "shared")
    use(warehouse, "acme", TURN - 2 * HOUR)
    use(warehouse, "globex", TURN - HOUR, hit=True)
    use(warehouse, "globex", TURN + HOUR, hit=True)
    use(warehouse, "acme", TURN + 2 * HOUR, hit=True, model="m", feature="search")
    use(warehouse, "acme", TURN + 3 * HOUR, hit=True)
    close_period(book, reader, NOVEMBER, CLOSED)
    assert storage(book, "acme/2026-11") == []
    assert hours(book, "globex/2026-11") == 2
    close_period(book, reader, DECEMBER, LATER)
    # Five hours, a third of them for each hit; acme's two hits belong to two features.
    details = [
        line["receipt"]["detail"] for tenant in ("acme", "globex") for line in storage(book, f"{tenant}/2026-12")
    ]
    assert [(detail["feature"], detail["token_seconds"]) for detail in details] == [
        ("chat", "96000000"), ("search", "96000000"), ("chat", "96000000"),
    ]  # fmt: skip
    assert abs(hours(book, "acme/2026-12") + hours(book, "globex/2026-12") - 5) < 1e-9
    assert all(verify_invoice(book, reader, f"{tenant}/2026-12").proven for tenant in ("acme", "globex"))


def test_an_eviction_that_the_engine_tells_ends_it(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    start = datetime(2026, 11, 10, tzinfo=UTC)
    gone = start + HOUR / 2
    use(warehouse, "acme", start)
    use(warehouse, "globex", start + HOUR, attributes={"cache.evicted_at": f"{gone.timestamp():.3f}"})
    close_period(book, reader, NOVEMBER, CLOSED)
    assert (hours(book, "acme/2026-11"), hours(book, "globex/2026-11")) == (0.5, 2)


def test_a_late_event_changes_the_months_that_it_touches(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    use(warehouse, "acme", TURN - 2 * HOUR)
    close_period(book, reader, NOVEMBER, CLOSED)
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    use(warehouse, "acme", TURN + 10 * HOUR)
    close_period(book, reader, DECEMBER, LATER)
    finalize_period(book, DECEMBER, "INV", LATER)
    assert (hours(book, "acme/2026-11"), hours(book, "acme/2026-12")) == (2, 2)
    # A hit of November that came in January: the block stayed an hour more, and that hour lies in December.
    use(warehouse, "globex", TURN - HOUR, hit=True, inserted_at=LATER + HOUR)
    end = LATER + timedelta(days=31)
    close_period(book, reader, JANUARY, end)
    lines = json.loads(find_invoice(book, "acme/2027-01").document)["lines"]
    assert [(line["kind"], int(line["net_pico"])) for line in lines] == [("true_up", BLOCK_HOUR)]
    assert "storage_event_set_hash" in lines[0]["receipt"]["detail"]
    assert all(verify_invoice(book, reader, f"acme/{label}").proven for label in (NOVEMBER, DECEMBER, JANUARY))
    finalize_period(book, JANUARY, "INV", end)
    assert close_period(book, reader, "2027-02", end + timedelta(days=28)).refunds == {}


def test_what_late_usage_kept_in_a_month_without_an_invoice_is_not_forgotten(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    use(warehouse, "acme", TURN - 10 * HOUR)
    for period, moment in ((NOVEMBER, CLOSED), (DECEMBER, LATER)):
        close_period(book, reader, period, moment)
        finalize_period(book, period, "INV", moment)
    assert [invoice.period for invoice in list_invoices(book)] == [NOVEMBER], "it was gone before December"
    # Stored once December is over, and still in cache for its first hour.
    use(warehouse, "acme", TURN - HOUR, inserted_at=LATER)
    last = datetime(2027, 2, 5, tzinfo=UTC)
    assert close_period(book, reader, JANUARY, last).uninvoiced == {DECEMBER: ["acme"]}
    assert close_period(book, reader, DECEMBER, last).drafted == ["acme"]
    assert hours(book, "acme/2026-12") == 1
    assert close_period(book, reader, JANUARY, last).uninvoiced == {}


def test_a_month_in_which_nothing_is_due_for_what_came_late_is_not_named(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    use(warehouse, "acme", TURN - 10 * HOUR)
    close_period(book, reader, NOVEMBER, CLOSED)
    # It came when December was over, and its blocks were gone before December began.
    use(warehouse, "acme", TURN - 5 * HOUR, inserted_at=LATER)
    last = datetime(2027, 2, 5, tzinfo=UTC)
    assert close_period(book, reader, JANUARY, last).uninvoiced == {}
    assert close_period(book, reader, DECEMBER, last).drafted == []


def test_what_was_kept_before_a_tenants_own_month_began_is_not_forgotten(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    # December in Berlin, and still November in UTC, by which storage is settled.
    use(warehouse, "berlin", TURN - HOUR / 2, pool="tenant:berlin", inserted_at=LATER)
    last = datetime(2027, 2, 5, tzinfo=UTC)
    assert close_period(book, reader, JANUARY, last).uninvoiced == {NOVEMBER: ["berlin"], DECEMBER: ["berlin"]}
    for period in (NOVEMBER, DECEMBER):
        assert close_period(book, reader, period, last).drafted == ["berlin"]
    assert [hours(book, f"berlin/{period}") for period in (NOVEMBER, DECEMBER)] == [0.5, 1.5]
    assert close_period(book, reader, JANUARY, last).uninvoiced == {}


def test_a_storage_line_is_explained_and_exported(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    insert(warehouse, *shared_prefix())
    close_period(book, reader, NOVEMBER, CLOSED)
    row = find_invoice(book, "globex/2026-11")
    kinds = [line["kind"] for line in json.loads(row.document)["lines"]]
    assert kinds == ["usage", "storage"]
    found = explain_line(book, reader, "globex/2026-11", 2)
    assert [event.event_id for event in found.events] == ["b"]
    assert found.line["net_pico"] == str(2 * 2 * BLOCK_HOUR)
    exported = from_document(row.document, "draft", None, row.document_sha256, None, ISSUER)
    assert (
        "storage,chat|m|default@1|1000000,chat,m,default@1,,cache storage,1,Charges,0.064,0.064,0.064,0.06"
        in detail_csv(exported)
    )
    assert "cache storage" in focus_csv([exported])


def test_what_if_a_card_had_a_price_for_it(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    apply_declarations(book, read_mapping(content()), "tester", DECLARED, publish)
    insert(warehouse, *shared_prefix())
    policy = load_cache_policy({"kind": "beneficiary", "ttl_seconds": 3600}, {})
    card = read_rate_card({**declared()["rate_cards"][0], "version": 2})
    changes = {
        one.tenant: one.change_pico for one in what_if(book, reader, NOVEMBER, card=card, policy=policy).differences
    }
    # Ten blocks that acme filled and two of globex's, each for an hour; eight that were hit later for a second more, half up.
    assert changes == {"acme": 10 * BLOCK_HOUR + (8 * BLOCK_HOUR + 1800) // 3600, "globex": 2 * BLOCK_HOUR}
    refused = what_if(book, reader, NOVEMBER, card=card)
    assert "does not say how long they stay" in refused.blocked["acme"]


def test_allowances_and_discounts_leave_it_alone_and_credits_and_minimums_do_not(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    agreed = {
        "id": "c", "tenant": "acme", "starts": "2026-10-01T00:00:00Z", "minimum": {"amount": "1"},
        "discounts": [{"id": "all", "percent": "100"}],
        "allowances": [{"id": "f", "meter": "input", "quantity": 5 * BLOCK_TOKENS}],
    }  # fmt: skip
    gift = {"id": "gift", "tenant": "acme", "amount": "0.01", "effective_at": "2026-11-01T00:00:00Z"}
    content = read_mapping({**declared(), "contracts": [agreed], "credits": [gift]})
    apply_declarations(book, content, "tester", DECLARED, publish)
    use(warehouse, "acme", TURN - 2 * HOUR)
    close_period(book, reader, NOVEMBER, CLOSED)
    row = find_invoice(book, "acme/2026-11")
    lines = {line["kind"]: int(line["net_pico"]) for line in json.loads(row.document)["lines"]}
    # Everything else was free. The credit pays a part, and what was kept counts towards the minimum of 1 USD.
    assert lines["usage"] + lines["allowance"] == 0
    assert (lines["storage"], lines["credit"]) == (2 * BLOCK_HOUR, -to_pico("0.01"))
    assert lines["minimum"] == to_pico("1") - 2 * BLOCK_HOUR
    assert verify_invoice(book, reader, "acme/2026-11").proven
    exported = from_document(row.document, "draft", None, row.document_sha256, None, ISSUER)
    assert "so allowances and discounts on usage leave it alone; credits pay it" in invoice_page(exported)


def test_who_filled_a_block_too_long_ago_is_not_known_and_nothing_is_paid_twice(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    apply_declarations(book, read_mapping(declared(ttl_seconds=31 * 86_400)), "tester", DECLARED, publish)
    filled, kept_alive = datetime(2026, 10, 20, tzinfo=UTC), datetime(2026, 11, 15, tzinfo=UTC)
    use(warehouse, "acme", filled)
    use(warehouse, "globex", kept_alive, hit=True)
    use(warehouse, "berlin", datetime(2026, 12, 10, tzinfo=UTC), hit=True)
    drafted = []
    for label, now in ((NOVEMBER, CLOSED), (DECEMBER, LATER), (JANUARY, LATER + timedelta(days=31))):
        drafted.append(sorted(close_period(book, reader, label, now).drafted))
        finalize_period(book, label, "INV", now)
    assert drafted == [["acme", "globex"], ["berlin"], ["berlin"]]
    # Acme filled it and bears November. That lies before the 31 days that December looks back: from then on who hit it does.
    assert hours(book, "acme/2026-11") == 30 * 24
    assert [hours(book, f"{name}") for name in ("globex/2026-11", "berlin/2026-12", "berlin/2027-01")] == [
        0,
        31 * 24,
        9 * 24,
    ]
    assert storage(book, "berlin/2026-12")[0]["receipt"]["detail"]["fillers_known_since"][:10] == "2026-10-31"


@pytest.mark.parametrize("borne_by", ["creator", "shared"])
@pytest.mark.parametrize("by_event", [False, True])
def test_blocks_in_a_pool_that_a_tenant_has_left_are_paid_once(
    book: Engine,
    warehouse: Client,
    reader: UsageReader,
    borne_by: str,
    by_event: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by_event:
        monkeypatch.setattr(folding, "CELLS_MAX", -1)
    declare(book, borne_by)
    start = datetime(2026, 11, 10, tzinfo=UTC)
    use(warehouse, "acme", start)
    use(warehouse, "globex", start + HOUR, hit=True)
    use(warehouse, "acme", start + 2 * HOUR, hit=True)
    # From here on acme is in another pool, which has a block of the same name, and keeps it for another time.
    moved = declared(borne_by)
    moved["cache_pools"] = [{"id": "pool", "tenants": ["globex"]}, {"id": "other", "tenants": ["acme"]}]
    moved["cache_policies"].append({"id": "long", "kind": "retain", "storage": "shared", "ttl_seconds": 10_800})
    moved["tenants"][0]["cache_policy"] = "long"
    apply_declarations(book, read_mapping(moved), "tester", DECLARED + HOUR, publish)
    use(warehouse, "acme", start + 3 * HOUR, pool="other")
    use(warehouse, "globex", start + 3 * HOUR, hit=True)
    closed = close_period(book, reader, NOVEMBER, CLOSED)
    assert sorted(closed.drafted) == ["acme", "globex"]
    # Five hours of one block, and two of the other, for which the shorter time to live of both tenants holds.
    shares = {"creator": (7.0, 0), "shared": (2 + 5 / 3, 10 / 3)}[borne_by]
    assert [hours(book, f"{tenant}/2026-11") for tenant in ("acme", "globex")] == pytest.approx(shares, abs=1e-9)
    whole = sum(int(line["net_pico"]) for name in ("acme", "globex") for line in storage(book, f"{name}/2026-11"))
    assert whole == 7 * BLOCK_HOUR
    assert {line["receipt"]["detail"]["ttl_seconds"] for line in storage(book, "acme/2026-11")} == {"7200"}
    assert all(verify_invoice(book, reader, f"{tenant}/2026-11").proven for tenant in ("acme", "globex"))
    assert sorted(close_period(book, reader, NOVEMBER, CLOSED).unchanged) == ["acme", "globex"]
    # A hit in the one pool that comes late is an hour more for both together, and its own price for who hit.
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    use(warehouse, "globex", start + 4 * HOUR, hit=True, inserted_at=CLOSED + HOUR)
    late = close_period(book, reader, DECEMBER, LATER)
    charged = sum(find_invoice(book, f"{tenant}/2026-12").net_pico for tenant in late.drafted)
    assert charged + sum(late.refunds.values()) == BLOCK_HOUR + BLOCK_TOKENS * 50_000
