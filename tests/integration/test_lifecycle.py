"""An invoice from its period to its end: contracts, credits, late usage, voids, credit notes; each proven from raw rows."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter_billing import ledger
from taximeter_billing.alerting import negative_margin_alerts
from taximeter_billing.closing import close_period, finalize_period, find_invoice, list_invoices
from taximeter_billing.credit_notes import give_back, list_notes
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.declarations.prices import read_rate_card
from taximeter_billing.domain.margin import summed
from taximeter_billing.errors import FrozenError, NotFoundError
from taximeter_billing.explaining import explain_line
from taximeter_billing.lifecycle import list_parked, review, void_invoice
from taximeter_billing.margins import margins_of_month
from taximeter_billing.verifying import verify_invoice
from taximeter_billing.warehouse import UsageReader
from taximeter_billing.what_if import what_if
from taximeter_schemas.cache_policies import load_cache_policy
from taximeter_schemas.money import from_pico, to_pico
from tests.credit_accounts import accounts
from tests.integration.test_billing import content, insert, publish, shared_prefix

DECLARED = datetime(2026, 10, 1, tzinfo=UTC)
CLOSED = datetime(2026, 12, 5, tzinfo=UTC)
NOVEMBER, DECEMBER, JANUARY = "2026-11", "2026-12", "2027-01"
MILLION = 1_000_000


def contracts() -> dict[str, Any]:
    """What acme agreed: half price beyond two million tokens, 10% off, 50 cents of credit a month, at least 1 USD."""
    tiers = [{"up_to": 2 * MILLION, "price": "0.50"}, {"price": "0.25"}]
    return {
        "plans": [
            {
                "id": "pro",
                "tariffs": [{"id": "input", "meter": "input", "mode": "graduated", "tiers": tiers}],
                "discounts": [{"id": "ten", "percent": "10", "label": "launch"}],
            }
        ],
        "contracts": [
            {"id": "acme-1", "tenant": "acme", "plan": "pro", "starts": "2026-10-01T00:00:00Z", "minimum": {"amount": "1"}}
        ],
        "credits": [
            {"id": "gift", "tenant": "acme", "amount": "0.50", "kind": "promotional", "monthly": True,
             "effective_at": "2026-11-01T00:00:00Z"}
        ],
    }  # fmt: skip


def declare(book: Engine, more: dict[str, Any] | None = None, at: datetime = DECLARED) -> None:
    apply_declarations(book, read_mapping({**content(), **(more or {})}), "tester", at, publish)


def usage(warehouse: Client, event: str, tokens: int, inserted: datetime, **more: Any) -> None:
    """Uncached input of acme's (unless said otherwise), inserted then."""
    row = {
        "tenant": "acme",
        "event_id": event,
        "uncached_input": tokens,
        "inserted_at": inserted,
        "attributes": {},
        **more,
    }
    insert(warehouse, row)


def net(book: Engine, reference: str) -> int:
    return find_invoice(book, reference).net_pico


def kinds(book: Engine, reference: str) -> dict[str, int]:
    document = json.loads(find_invoice(book, reference).document)
    return {line["kind"]: int(line["net_pico"]) for line in document["lines"]}


def test_a_contract_on_an_invoice_in_the_order_of_computing(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book, contracts())
    usage(warehouse, "a", 6 * MILLION, CLOSED - timedelta(days=20))
    close_period(book, reader, NOVEMBER, CLOSED)
    # 3.00 at the card; 2.00 by tiers; 10% off: 1.80; 0.50 of it from the credit; the minimum of 1 is reached.
    assert kinds(book, "acme/2026-11") == {
        "usage": to_pico("2.00"), "discount": -to_pico("0.20"), "credit": -to_pico("0.50"),
    }  # fmt: skip
    row = find_invoice(book, "acme/2026-11")
    assert (row.list_pico, row.adjustments_pico, row.total_minor) == (to_pico("3"), -to_pico("1.70"), 130)
    line = json.loads(row.document)["lines"][0]
    assert line["receipt"]["tiers"][0]["pooled_to"] == 6 * MILLION
    assert line["receipt"]["components"][0] == {
        "price": "m input=500000", "class": "uncached_input", "quantity": 6 * MILLION, "price_pico": "500000",
        "amount_pico": str(to_pico("3")), "list_pico": str(to_pico("3")),
    }  # fmt: skip
    assert verify_invoice(book, reader, "acme/2026-11").proven


def test_a_tenant_that_used_nothing_owes_its_minimum(book: Engine, reader: UsageReader) -> None:
    declare(book, {**contracts(), "credits": []})
    closed = close_period(book, reader, NOVEMBER, CLOSED)
    assert closed.drafted == ["acme"]
    assert kinds(book, "acme/2026-11") == {"minimum": to_pico("1")}
    assert verify_invoice(book, reader, "acme/2026-11").proven


def test_credits_are_booked_when_an_invoice_is_final_and_lapse_after(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book, contracts())
    usage(warehouse, "a", MILLION // 2, CLOSED - timedelta(days=20))
    close_period(book, reader, NOVEMBER, CLOSED)
    close_period(book, reader, NOVEMBER, CLOSED)
    assert balances(book) == {"gift/2026-11-01": to_pico("0.50")}
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    # 0.25 less 10% was paid; what was left lapsed with the month.
    assert balances(book) == {"gift/2026-11-01": 0}
    assert accounts(book) == {
        "grant:gift/2026-11-01": 0,
        "source:promotional": -to_pico("0.50"),
        "invoice:INV-000001": to_pico("0.225"),
        "lapsed": to_pico("0.275"),
    }
    assert verify_invoice(book, reader, "INV-000001").proven


def test_late_usage_is_a_true_up_on_the_next_invoice(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book, {**contracts(), "credits": []})
    usage(warehouse, "a", 6 * MILLION, CLOSED - timedelta(days=20))
    close_period(book, reader, NOVEMBER, CLOSED)
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    final = find_invoice(book, "INV-000001").document
    usage(warehouse, "late", 2 * MILLION, CLOSED + timedelta(days=1))
    usage(warehouse, "b", 4 * MILLION, CLOSED + timedelta(days=9), time=datetime(2026, 12, 9, tzinfo=UTC))
    in_january = CLOSED + timedelta(days=31)
    # The contract ends meanwhile; late usage is priced by what held when its month was invoiced.
    declare(book, {**contracts(), "credits": [], "plans": [{"id": "pro"}]}, CLOSED + timedelta(days=2))
    close_period(book, reader, DECEMBER, in_january)
    # Two million more at 0.25, less 10%.
    assert kinds(book, "acme/2026-12") == {"usage": to_pico("2"), "true_up": to_pico("0.45")}
    assert verify_invoice(book, reader, "acme/2026-12").proven
    finalize_period(book, DECEMBER, "INV", in_january)
    assert find_invoice(book, "INV-000001").document == final
    assert verify_invoice(book, reader, "INV-000001").proven
    # What is trued up once is not trued up again.
    assert close_period(book, reader, JANUARY, in_january + timedelta(days=31)).parked == {}
    assert kinds(book, "acme/2027-01") == {"minimum": to_pico("1")}


def test_an_invoice_that_replaces_a_voided_one_does_not_charge_late_usage_twice(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    usage(warehouse, "a", 2 * MILLION, CLOSED - timedelta(days=20))
    close_period(book, reader, NOVEMBER, CLOSED)
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    usage(warehouse, "late", 2 * MILLION, CLOSED + timedelta(days=1))
    later = CLOSED + timedelta(days=31)
    close_period(book, reader, DECEMBER, later)
    finalize_period(book, DECEMBER, "INV", later)
    assert kinds(book, "acme/2026-12") == {"true_up": to_pico("1")}
    void_invoice(book, "INV-000001", "wrong address", "tester", later)
    close_period(book, reader, NOVEMBER, later)
    finalize_period(book, NOVEMBER, "INV", later)
    assert net(book, "acme/2026-11") == to_pico("2")
    # The new invoice holds the late usage, which the one of December charged already.
    closed = close_period(book, reader, JANUARY, later + timedelta(days=31))
    assert closed.refunds == {"acme": -to_pico("1")}
    finalize_period(book, JANUARY, "INV", later + timedelta(days=31))
    assert close_period(book, reader, "2027-02", later + timedelta(days=62)).refunds == {}


def test_a_voided_event_comes_back_as_a_credit_note(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    usage(warehouse, "a", 2 * MILLION, CLOSED - timedelta(days=20))
    usage(warehouse, "wrong", MILLION, CLOSED - timedelta(days=20))
    close_period(book, reader, NOVEMBER, CLOSED)
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    usage(warehouse, "v", 0, CLOSED + timedelta(days=1), attributes={"voids": "wrong"})
    usage(warehouse, "b", MILLION, CLOSED + timedelta(days=9), time=datetime(2026, 12, 9, tzinfo=UTC))
    later = CLOSED + timedelta(days=31)
    closed = close_period(book, reader, DECEMBER, later)
    assert closed.refunds == {"acme": -to_pico("0.50")}
    assert kinds(book, "acme/2026-12") == {"usage": to_pico("0.50")}
    finalize_period(book, DECEMBER, "INV", later)
    [note] = list_notes(book)
    assert (note.number, note.invoice, note.status, note.total_minor) == ("CN-000001", "INV-000001", "final", -50)
    assert close_period(book, reader, JANUARY, later + timedelta(days=31)).refunds == {}
    assert len(list_notes(book)) == 1


def test_an_amended_event_counts_in_place_of_the_first(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    usage(warehouse, "wrong", MILLION, CLOSED - timedelta(days=20))
    usage(warehouse, "right", 3 * MILLION, CLOSED - timedelta(days=19), attributes={"amends": "wrong"})
    close_period(book, reader, NOVEMBER, CLOSED)
    assert kinds(book, "acme/2026-11") == {"usage": to_pico("2"), "void": -to_pico("0.50")}


def test_a_correction_of_nothing_parks_its_tenant_and_nobody_else(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    insert(warehouse, *shared_prefix())
    usage(warehouse, "v", 0, CLOSED - timedelta(days=19), attributes={"voids": "nothing"})
    closed = close_period(book, reader, NOVEMBER, CLOSED)
    assert closed.parked == {"acme": "event nothing of test is voided or amended, and is not in the period"}
    assert closed.drafted == ["globex"]


def test_an_event_that_was_not_rated_by_its_price_parks_its_tenant(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    declare(book)
    insert(warehouse, *shared_prefix())
    usage(warehouse, "odd", 5, CLOSED - timedelta(days=19), tenant="berlin", pool="tenant:berlin", reasoning=0)
    # Rated as if it had no output.
    warehouse.command("ALTER TABLE usage_log UPDATE output = 7 WHERE event_id = 'odd' SETTINGS mutations_sync = 1")
    warehouse.command("ALTER TABLE usage_hourly UPDATE output = 7 WHERE tenant = 'berlin' SETTINGS mutations_sync = 1")
    closed = close_period(book, reader, NOVEMBER, CLOSED)
    assert closed.drafted == ["acme", "globex"]
    assert "quantity times price differs from the events' own cost" in closed.parked["berlin"]


def test_void_and_draft_again(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book, contracts())
    usage(warehouse, "a", 6 * MILLION, CLOSED - timedelta(days=20))
    close_period(book, reader, NOVEMBER, CLOSED)
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    void_invoice(book, "INV-000001", "wrong address", "tester", CLOSED)
    with pytest.raises(FrozenError, match="INV-000001 is void"):
        void_invoice(book, "INV-000001", "again", "tester", CLOSED)
    assert balances(book) == {"gift/2026-11-01": to_pico("0.50")}
    assert close_period(book, reader, NOVEMBER, CLOSED).drafted == ["acme"]
    [again] = finalize_period(book, NOVEMBER, "INV", CLOSED)
    assert (again.number, again.revision, again.total_minor) == ("INV-000002", 2, 130)
    assert [row.status for row in list_invoices(book, NOVEMBER)] == ["void", "final"]
    assert find_invoice(book, "acme/2026-11").number == "INV-000002"


def test_a_draft_whose_credit_was_spent_elsewhere_is_not_finalized(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    grant = {"id": "g", "tenant": "acme", "amount": "0.50", "effective_at": "2026-10-01T00:00:00Z"}
    declare(book, {"credits": [grant]})
    usage(warehouse, "a", 4 * MILLION, CLOSED - timedelta(days=20))
    usage(warehouse, "o", 4 * MILLION, CLOSED - timedelta(days=40), time=datetime(2026, 10, 9, tzinfo=UTC))
    close_period(book, reader, "2026-10", CLOSED)
    close_period(book, reader, NOVEMBER, CLOSED)
    assert len(finalize_period(book, "2026-10", "INV", CLOSED)) == 1
    assert finalize_period(book, NOVEMBER, "INV", CLOSED) == []
    assert [row.reason for row in list_parked(book)] == ["credit g has changed since the draft; close the period again"]
    close_period(book, reader, NOVEMBER, CLOSED)
    [row] = finalize_period(book, NOVEMBER, "INV", CLOSED)
    assert row.total_minor == 200


def test_review_and_giving_back(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    usage(warehouse, "a", 2 * MILLION, CLOSED - timedelta(days=20))
    usage(warehouse, "g", 2 * MILLION, CLOSED - timedelta(days=20), tenant="globex")
    close_period(book, reader, NOVEMBER, CLOSED)
    review(book, "acme/2026-11", "tester", CLOSED)
    assert [row.tenant for row in finalize_period(book, NOVEMBER, "INV", CLOSED, reviewed_only=True)] == ["acme"]
    note = give_back(book, "INV-000001", "0.40", "slow answers", "CN", "tester", CLOSED)
    assert (note.number, note.total_minor) == ("CN-000001", -40)
    with pytest.raises(FrozenError, match=r"0.60 USD is left"):
        give_back(book, "INV-000001", "0.61", "more", "CN", "tester", CLOSED)
    assert give_back(book, "INV-000001", None, "the rest", "CN", "tester", CLOSED).total_minor == -60
    with pytest.raises(FrozenError, match="needs a final invoice"):
        give_back(book, voided_number(book), "1", "x", "CN", "tester", CLOSED)
    with pytest.raises(NotFoundError):
        give_back(book, "INV-9", "1", "x", "CN", "tester", CLOSED)


def voided_number(book: Engine) -> str:
    """A number that only a void invoice has."""
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    void_invoice(book, "INV-000002", "a mistake", "tester", CLOSED)
    return "INV-000002"


def test_a_line_is_explained_down_to_its_events(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    insert(warehouse, *shared_prefix())
    close_period(book, reader, NOVEMBER, CLOSED)
    found = explain_line(book, reader, "globex/2026-11", 1)
    assert found.agrees and found.events_all == 1
    assert [event.event_id for event in found.events] == ["b"]
    parts = {part["class"]: int(part["amount_pico"]) for part in found.line["receipt"]["components"]}
    assert sum(parts.values()) == found.metered_pico == 56_400_000_000
    with pytest.raises(NotFoundError, match="has lines 1 to 1, not 2"):
        explain_line(book, reader, "globex/2026-11", 2)


def test_verifying_names_what_differs(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    insert(warehouse, *shared_prefix())
    close_period(book, reader, NOVEMBER, CLOSED)
    finalize_period(book, NOVEMBER, "INV", CLOSED)
    assert verify_invoice(book, reader, "INV-000001").proven
    # A row that pretends to have been there.
    insert(warehouse, {"tenant": "acme", "event_id": "forged", "output": 1_000})
    found = verify_invoice(book, reader, "INV-000001")
    assert not found.proven
    assert any(line.startswith("inputs.events: 1 on the invoice, 2 derived") for line in found.differences)


def test_what_if(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    declare(book)
    insert(warehouse, *shared_prefix())
    dearer = {"model": "m", "uncached_input": "1.00", "cache_read_gpu": "0.05", "output": "1.50"}
    card = read_rate_card({"version": 2, "effective_from": "2026-12-01T00:00:00Z", "prices": [dearer]})
    found = what_if(book, reader, NOVEMBER, card=card)
    # acme pays for 160,000 uncached tokens, globex for 40,000 of them.
    assert {one.tenant: one.change_pico for one in found.differences} == {
        "acme": 160_000 * 500_000,
        "globex": 40_000 * 500_000,
    }
    assert [one.tenant for one in found.complaints] == ["acme", "globex"]
    retained = what_if(book, reader, NOVEMBER, policy=load_cache_policy({"id": "r", "kind": "retain"}, {}))
    assert [(one.tenant, one.change_pico) for one in retained.complaints] == [("globex", 57_600_000_000)]
    lacking = read_rate_card(
        {"version": 2, "effective_from": "2026-12-01T00:00:00Z", "prices": [{**dearer, "model": "n"}]}
    )
    idle = content()
    idle["tenants"].append({"id": "idle"})
    idle["cache_pools"][0]["tenants"].append("idle")
    declare(book, idle)
    # The pool's savings cannot be shared without that price; who used nothing has no part in them.
    refused = what_if(book, reader, NOVEMBER, card=lacking).blocked
    assert refused == dict.fromkeys(("acme", "globex"), "default@2 has no price for m, which acme used (event a)")
    assert list_invoices(book) == []


def test_margins_by_what_a_gpu_second_costs(book: Engine, warehouse: Client, reader: UsageReader) -> None:
    costs = [
        {"id": "gpus", "version": 1, "effective_from": "2026-01-01T00:00:00Z",
         "prices": [{"model": "m", "uncached_input": "0", "output": "0", "gpu_second": "0.001"}]},
        {"id": "power", "version": 1, "effective_from": "2026-11-11T00:00:00Z",
         "prices": [{"model": "m", "uncached_input": "0.10", "output": "0"}]},
    ]  # fmt: skip
    with pytest.raises(NotFoundError, match="no cost card is declared"):
        margins_of_month(book, reader, NOVEMBER)
    declare(book, {"cost_cards": costs, **contracts()})
    usage(warehouse, "a", 2 * MILLION, CLOSED, gpu_seconds=400.0)
    usage(
        warehouse, "late", MILLION, CLOSED, gpu_seconds=2000.0, tenant="globex", time=datetime(2026, 11, 12, tzinfo=UTC)
    )
    found = margins_of_month(book, reader, NOVEMBER)
    # acme: 1.00 less 10%, and 0.10 to reach its minimum, against 0.40. globex: 0.50 against 2.00 and, by then, 0.10 of power.
    assert {
        key: (str(from_pico(one.revenue_pico)), str(from_pico(one.cost_pico))) for key, one in found.margins.items()
    } == {
        ("acme", "chat", "m"): ("0.900000000000", "0.400000000000"),
        ("acme", "", ""): ("0.100000000000", "0E-12"),
        ("globex", "chat", "m"): ("0.500000000000", "2.100000000000"),
    }
    assert set(found.negative) == {("globex", "chat", "m")}
    [alert] = negative_margin_alerts(NOVEMBER, found.negative, CLOSED)
    assert (alert.tenant, alert.feature, alert.spent_pico) == ("globex", "chat", to_pico("2.10"))
    assert negative_margin_alerts(NOVEMBER, found.negative, CLOSED + timedelta(days=1))[0].id == alert.id
    assert summed(found.margins, "model")["m", "USD"].margin_pico == to_pico("-1.10")


def test_provisioned_throughput_covers_what_fits_in_its_minutes(
    book: Engine, warehouse: Client, reader: UsageReader
) -> None:
    held = {"id": "r", "model": "m", "units": 1, "tokens_per_minute": 1000, "unit_hour": "0.06"}
    terms = {"id": "c", "tenant": "acme", "starts": "2026-11-30T00:00:00Z", "reservations": [held]}
    declare(book, {"contracts": [terms]})
    at = datetime(2026, 11, 30, 12, 0, 10, tzinfo=UTC)
    for name, tokens, second in (("a", 600, 0), ("b", 600, 1), ("c", 500, 2), ("d", 600, 60)):
        tier = {"service_tier": "provisioned", "time": at + timedelta(seconds=second)}
        usage(warehouse, name, tokens, CLOSED, **tier)
    usage(warehouse, "standard", 600, CLOSED, time=at)
    close_period(book, reader, NOVEMBER, CLOSED)
    # Of the first minute 1,000 of 1,700 tokens fit, of the second all 600; a day of minutes at 0.001 is owed in any case.
    assert kinds(book, "acme/2026-11") == {
        "usage": 2_900 * 500_000,
        "covered": -1_600 * 500_000,
        "reservation": to_pico("0.001") * 24 * 60,
    }
    assert verify_invoice(book, reader, "acme/2026-11").proven


def balances(book: Engine) -> dict[str, int]:
    with Session(book) as session:
        return ledger.balances(session)
