"""Nothing is paid twice, and nothing comes back that was not paid: corrections, credits that paid, months in any order, and what
a tenant cannot change once it was invoiced."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter_billing import ledger
from taximeter_billing.closing import close_period, finalize_period, find_invoice
from taximeter_billing.credit_notes import give_back, list_notes
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.errors import FrozenError
from taximeter_billing.lifecycle import list_parked, void_invoice
from taximeter_billing.verifying import verify_invoice
from taximeter_billing.warehouse import UsageReader
from taximeter_schemas.money import to_pico
from tests import credit_accounts
from tests.integration.test_billing import content, publish
from tests.integration.test_lifecycle import (
    CLOSED,
    DECEMBER,
    DECLARED,
    JANUARY,
    MILLION,
    NOVEMBER,
    declare,
    kinds,
    usage,
)

DAY = timedelta(days=1)
LATER = CLOSED + 31 * DAY
LAST = LATER + 31 * DAY
USED = datetime(2026, 11, 10, tzinfo=UTC)


def gift(amount: str, **more: Any) -> dict[str, Any]:
    return {"id": "gift", "tenant": "acme", "amount": amount, "effective_at": "2026-11-01T00:00:00Z", **more}


def final(book: Engine, reader: UsageReader, label: str, now: datetime) -> None:
    close_period(book, reader, label, now)
    finalize_period(book, label, "INV", now)


def accounts(book: Engine) -> dict[str, int]:
    """The ledger's accounts that are not at nothing."""
    return {name: pico for name, pico in credit_accounts.accounts(book).items() if pico}


def test_what_credits_paid_goes_back_to_them(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book, {"credits": [gift("1"), gift("0.50", id="first", priority=1)]})
    usage(warehouse, "a", 4 * MILLION, USED)
    usage(warehouse, "b", 2 * MILLION, USED)
    final(book, reader, NOVEMBER, CLOSED)
    assert kinds(book, "INV-000001")["credit"] < 0
    assert find_invoice(book, "INV-000001").total_minor == 150
    # 2.00 of 3.00 USD are taken back: the money that was to be paid, and half of what paid last.
    usage(warehouse, "v", 0, CLOSED + DAY, attributes={"voids": "a"})
    final(book, reader, DECEMBER, LATER)
    note = list_notes(book)[0]
    assert (note.net_pico, note.total_minor) == (-to_pico("2"), -150)
    assert json.loads(note.document)["grants_pico"] == {"gift": str(to_pico("0.50"))}
    assert accounts(book) == {
        "source:paid": -to_pico("1.50"), "invoice:INV-000001": to_pico("1"), "grant:gift": to_pico("0.50"),
    }  # fmt: skip
    # The rest goes back to the credits, the last to pay first; then nothing is left to give.
    usage(warehouse, "w", 0, LATER + DAY, attributes={"voids": "b"})
    final(book, reader, JANUARY, LAST)
    assert [note.total_minor for note in list_notes(book)] == [-150, 0]
    assert accounts(book) == {
        "source:paid": -to_pico("1.50"), "grant:gift": to_pico("1"), "grant:first": to_pico("0.50"),
    }  # fmt: skip
    with pytest.raises(FrozenError, match="is left"):
        give_back(book, "INV-000001", None, "slow answers", "CN", "tester", LAST)
    assert verify_invoice(book, reader, "INV-000001").proven


def test_what_was_given_back_already_is_not_given_back_again(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    usage(warehouse, "a", 2 * MILLION, USED)
    final(book, reader, NOVEMBER, CLOSED)
    usage(warehouse, "v", 0, CLOSED + DAY, attributes={"voids": "a"})
    close_period(book, reader, DECEMBER, LATER)
    # Between the draft of the note and its issue somebody gives 60 cents back.
    give_back(book, "INV-000001", "0.60", "slow answers", "CN", "tester", LATER)
    finalize_period(book, DECEMBER, "INV", LATER)
    assert sorted(note.total_minor for note in list_notes(book)) == [-60, -40]
    assert close_period(book, reader, JANUARY, LAST).refunds == {}


def test_a_true_up_that_a_later_invoice_charged_comes_back_whole(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    usage(warehouse, "a", 2 * MILLION, USED)
    final(book, reader, NOVEMBER, CLOSED)
    usage(warehouse, "late", 4 * MILLION, CLOSED + DAY)
    final(book, reader, DECEMBER, LATER)
    assert kinds(book, "acme/2026-12") == {"true_up": to_pico("2")}
    for event in ("a", "late"):
        usage(warehouse, f"v{event}", 0, LATER + DAY, attributes={"voids": event})
    final(book, reader, JANUARY, LAST)
    assert [(note.invoice, note.total_minor) for note in list_notes(book)] == [("INV-000001", -300)]


def test_a_credit_note_of_a_voided_invoice_is_void_with_it(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book, {"credits": [gift("1")]})
    usage(warehouse, "a", 4 * MILLION, USED)
    usage(warehouse, "b", 4 * MILLION, USED)
    final(book, reader, NOVEMBER, CLOSED)
    usage(warehouse, "v", 0, CLOSED + DAY, attributes={"voids": "a"})
    final(book, reader, DECEMBER, LATER)
    assert [note.total_minor for note in list_notes(book)] == [-200]
    void_invoice(book, "INV-000001", "wrong address", "tester", LATER)
    assert accounts(book) == {"source:paid": -to_pico("1"), "grant:gift": to_pico("1")}
    final(book, reader, NOVEMBER, LATER)
    assert (find_invoice(book, "acme/2026-11").total_minor, list_notes(book)[0].status) == (100, "void")
    late = close_period(book, reader, JANUARY, LAST)
    assert (late.refunds, late.drafted) == ({}, [])


def test_a_credit_pays_the_month_in_which_it_was_open_whichever_is_invoiced_first(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book, {"credits": [gift("5", expires_at="2026-12-01T00:00:00Z")]})
    usage(warehouse, "a", 2 * MILLION, USED)
    usage(warehouse, "b", 2 * MILLION, USED, time=USED + 30 * DAY)
    final(book, reader, DECEMBER, LATER)
    assert accounts(book) == {"source:paid": -to_pico("5"), "lapsed": to_pico("5")}
    final(book, reader, NOVEMBER, LATER)
    assert [find_invoice(book, f"acme/{label}").total_minor for label in (NOVEMBER, DECEMBER)] == [0, 100]
    paid = {"source:paid": -to_pico("5"), "invoice:INV-000002": to_pico("1"), "lapsed": to_pico("4")}
    assert accounts(book) == paid
    # Voided and drafted again, it may draw on all of it once more.
    void_invoice(book, "INV-000002", "wrong address", "tester", LATER)
    usage(warehouse, "c", 2 * MILLION, LATER)
    final(book, reader, NOVEMBER, LAST)
    assert find_invoice(book, "acme/2026-11").total_minor == 0
    assert accounts(book) == {"source:paid": -to_pico("5"), "invoice:INV-000003": to_pico("2"), "lapsed": to_pico("3")}
    assert verify_invoice(book, reader, "INV-000003").proven
    with Session(book) as session:
        assert ledger.balances(session) == {"gift": 0}


def test_an_invoice_for_nothing_used_is_proven_also_when_something_comes(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    agreed = {"id": "c", "tenant": "acme", "starts": "2026-10-01T00:00:00Z", "minimum": {"amount": "1"}}
    declare(book, {"contracts": [agreed]})
    final(book, reader, NOVEMBER, CLOSED)
    usage(warehouse, "late", 4 * MILLION, CLOSED + DAY)
    assert verify_invoice(book, reader, "INV-000001").proven


def test_usage_of_a_tenant_that_was_pruned_is_named(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    usage(warehouse, "a", 2 * MILLION, USED)
    usage(warehouse, "b", 2 * MILLION, USED, tenant="gone")
    closed = close_period(book, reader, NOVEMBER, CLOSED)
    assert (closed.drafted, closed.undeclared) == (["acme"], ["gone"])
    assert close_period(book, reader, DECEMBER, LATER).undeclared == []


def test_usage_of_a_month_without_an_invoice_is_not_forgotten(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    usage(warehouse, "a", 2 * MILLION, USED)
    # Berlin's November begins when it is still October in UTC, and globex' own last hour of October has nothing to do with it.
    usage(warehouse, "b", 2 * MILLION, USED, tenant="berlin", time=datetime(2026, 10, 31, 23, 30, tzinfo=UTC))
    final(book, reader, NOVEMBER, CLOSED)
    usage(warehouse, "c", 2 * MILLION, CLOSED, tenant="globex", time=datetime(2026, 10, 31, 23, 30, tzinfo=UTC))
    usage(warehouse, "d", 2 * MILLION, CLOSED, time=datetime(2025, 12, 1, tzinfo=UTC))
    assert close_period(book, reader, DECEMBER, LATER).uninvoiced == {"2025-12": ["acme"], "2026-10": ["globex"]}
    assert close_period(book, reader, DECEMBER, LATER, only="berlin").uninvoiced == {}
    # Voided, it has none either.
    void_invoice(book, "INV-000002", "wrong address", "tester", LATER)
    assert close_period(book, reader, DECEMBER, LATER).uninvoiced[NOVEMBER] == ["berlin"]
    for month in ("2025-12", "2026-10", NOVEMBER):
        final(book, reader, month, LATER)
    assert close_period(book, reader, DECEMBER, LATER).uninvoiced == {}
    assert find_invoice(book, "globex/2026-10").total_minor == 100


@pytest.mark.parametrize(
    ("events", "reason", "net"),
    [
        ({"x": {"voids": "x"}}, "take back themselves: x > x", None),
        ({"x": {"amends": "y"}, "y": {"amends": "x"}}, "take back themselves: x > y > x", None),
        # Two in the place of one would both be paid,
        ({"x": {}, "y": {"amends": "x"}, "z": {"amends": "x"}}, "x of test is amended by y and by z", None),
        # unless one of them is void; a void that was sent twice takes back once; amendments follow one another.
        ({"x": {}, "y": {"amends": "x"}, "z": {"amends": "x"}, "v": {"voids": "y"}}, None, "1"),
        ({"x": {}, "y": {}, "v": {"voids": "x"}, "w": {"voids": "x"}}, None, "1"),
        ({"x": {}, "y": {"amends": "x"}, "z": {"amends": "y"}}, None, "1"),
        # One event may take back one and stand in the place of another. Voiding a void does not bring anything back.
        ({"x": {}, "y": {}, "z": {"voids": "x", "amends": "y"}}, None, "1"),
        ({"x": {}, "y": {}, "v": {"voids": "x"}, "w": {"voids": "v"}}, None, "1"),
    ],
)  # fmt: skip
def test_corrections_of_corrections(
    book: Engine, warehouse: Client, reader: UsageReader, events: dict[str, Any], reason: str | None, net: str | None
) -> None:
    declare(book)
    for event, attributes in events.items():
        tokens = 0 if event in "vw" else 2 * MILLION
        usage(warehouse, event, tokens, USED, attributes=attributes)
    parked = close_period(book, reader, NOVEMBER, CLOSED).parked
    if reason is not None:
        assert reason in parked["acme"]
    else:
        assert find_invoice(book, "acme/2026-11").net_pico == to_pico(net or "")
        assert verify_invoice(book, reader, "acme/2026-11").proven


def test_an_amount_in_one_currency_is_none_in_another(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    usage(warehouse, "a", 2 * MILLION, USED)
    apply_declarations(book, read_mapping(moved(currency="JPY", rate_card="yen")), "tester", CLOSED, publish)
    assert (
        "was rated in USD (default@1), and its invoice is in JPY"
        in close_period(book, reader, NOVEMBER, CLOSED).parked["acme"]
    )
    apply_declarations(book, read_mapping(moved()), "tester", CLOSED, publish)
    assert close_period(book, reader, NOVEMBER, CLOSED).drafted == ["acme"]


@pytest.mark.parametrize("change", [{"currency": "JPY", "rate_card": "yen"}, {"time_zone": "America/New_York"}])
def test_currency_and_time_zone_stay_once_something_was_invoiced(
    book: Engine, warehouse: Client, reader: UsageReader, change: dict[str, str]
) -> None:
    declare(book)
    usage(warehouse, "a", 2 * MILLION, USED)
    close_period(book, reader, NOVEMBER, CLOSED)
    # A draft is no invoice yet: it is made again.
    apply_declarations(book, read_mapping(moved(**change)), "tester", CLOSED, publish)
    assert finalize_period(book, NOVEMBER, "INV", CLOSED) == []
    assert "time zone or currency has changed" in list_parked(book, NOVEMBER)[0].reason
    apply_declarations(book, read_mapping(moved()), "tester", CLOSED, publish)
    final(book, reader, NOVEMBER, CLOSED)
    for prune in (False, True):  # not by way of deleting it either
        apply_declarations(book, read_mapping({}), "tester", CLOSED, publish, prune=prune)
        with pytest.raises(FrozenError, match=r"was invoiced \(INV-000001\)"):
            apply_declarations(book, read_mapping(moved(**change)), "tester", CLOSED, publish)
    apply_declarations(book, read_mapping(moved(name="Acme Stores")), "tester", CLOSED, publish)


def moved(**change: str) -> dict[str, Any]:
    """The tenants, acme with something else about it and in no pool."""
    price = {"model": "m", "uncached_input": "75", "cache_read_gpu": "7.5", "output": "225"}
    yen = {"id": "yen", "version": 1, "currency": "JPY", "effective_from": DECLARED.isoformat(), "prices": [price]}
    whole = content()
    whole["cache_pools"] = [{"id": "pool", "tenants": ["globex"]}]
    whole["rate_cards"].append(yen)
    whole["tenants"][0] |= change
    return whole
