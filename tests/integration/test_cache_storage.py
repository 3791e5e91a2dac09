"""Keeping blocks in cache as a line of its own: over a month's end, with late usage, proven, and in what-if."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from taximeter_billing.closing import close_period, finalize_period, find_invoice
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.declarations.prices import read_rate_card
from taximeter_billing.explaining import explain_line
from taximeter_billing.exports import detail_csv, focus_csv
from taximeter_billing.exports.invoice_source import from_document
from taximeter_billing.verifying import verify_invoice
from taximeter_billing.warehouse import UsageReader
from taximeter_billing.what_if import what_if
from taximeter_schemas.cache_policies import load_cache_policy
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
