"""Exports of invoices: what they add up to, and what every row keeps to."""

import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taximeter_billing.domain.credits import Grant
from taximeter_billing.exports import ExportedInvoice, detail_csv, focus_csv, focus_rows, invoice_charges, violations
from taximeter_billing.exports.delimited import csv_text, plain
from taximeter_billing.exports.focus_columns import ALLOCATION, MANDATORY, NAMES
from taximeter_schemas.money import currency_exponent, from_pico, pico_per_minor_unit, to_pico
from taximeter_schemas.tenants import Tenant
from tests.exported_invoices import busy, exported, parcel


def payable(invoice: ExportedInvoice) -> Decimal:
    return Decimal(invoice.document["total_minor"]).scaleb(-currency_exponent(invoice.currency))


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def total(rows: list[dict[str, Any]], column: str) -> Decimal:
    return sum((Decimal(row[column]) for row in rows if row[column]), Decimal(0))


def test_the_detail_adds_up_to_what_is_to_be_paid() -> None:
    invoice = busy()
    rows = read(detail_csv(invoice))
    assert total(rows, "amount") == payable(invoice)
    assert total(rows, "net") == from_pico(int(invoice.document["net_pico"]))
    kinds = Counter(row["kind"] for row in rows)
    assert kinds == {"usage": 8, "tiers": 3, "cache_savings": 1, "discount": 1, "true_up": 1, "credit": 1, "minimum": 1}


def test_quantity_times_unit_price_is_the_list_price() -> None:
    usage = [row for row in read(detail_csv(busy())) if row["kind"] == "usage"]
    for row in usage:
        assert Decimal(row["quantity"]) * Decimal(row["list_unit_price"]) == Decimal(row["list"])


def test_billed_adds_up_to_the_payable_and_the_rest_is_exact() -> None:
    invoice = busy()
    rows = read(focus_csv([invoice]))
    assert total(rows, "BilledCost") == payable(invoice)
    assert total(rows, "EffectiveCost") == from_pico(int(invoice.document["net_pico"]))
    usage = [row for row in rows if row["x_ChargeKind"] == "usage"]
    assert total(usage, "ListCost") == from_pico(int(invoice.document["list_pico"])) == total(usage, "ContractedCost")


def test_every_kind_of_charge_has_its_category() -> None:
    kinds = {row["x_ChargeKind"]: (row["ChargeCategory"], row.get("ChargeClass")) for row in focus_rows(busy())}
    assert kinds == {
        "usage": ("Usage", None),
        "tiers": ("Credit", None),
        "cache_savings": ("Credit", None),
        "discount": ("Credit", None),
        "true_up": ("Usage", "Correction"),
        "credit": ("Credit", None),
        "minimum": ("Adjustment", None),
    }


def test_late_usage_stands_in_its_own_month_and_in_this_bill() -> None:
    row = next(row for row in focus_rows(busy()) if row["x_ChargeKind"] == "true_up")
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z")
    assert row["BillingPeriodStart"] == "2026-11-01T00:00:00Z"


def test_a_month_is_the_tenants_own() -> None:
    invoice = exported([parcel("chat", 10)], tenant=Tenant(id="berlin", time_zone="Europe/Berlin"))
    assert focus_rows(invoice)[0]["BillingPeriodStart"] == "2026-10-31T23:00:00Z"


def test_only_savings_that_a_policy_moved_are_allocated() -> None:
    rows = focus_rows(busy())
    moved = [row for row in rows if row.get("AllocatedMethodId")]
    assert [(row["x_ChargeKind"], row["x_Feature"], row["x_Model"]) for row in moved] == [
        ("cache_savings", "search", "llama-70b")
    ]
    (row,) = moved
    assert (row["AllocatedMethodId"], row["AllocatedResourceId"]) == ("fair@3", "acme/search/llama-70b")
    details = json.loads(str(row["AllocatedMethodDetails"]), parse_float=Decimal)
    (element,) = details["Elements"]
    assert element["AllocatedRatio"] == Decimal("0.246913578024600")  # 1.234567890123 of the 5 that the pool saved
    assert (element["x_SharePico"], element["x_PoolSavedPico"]) == ("1234567890123", "5000000000000")
    assert details["x_KnownExactPico"] == "4000000000000"
    assert all(row.get(name) is None for row in rows if row not in moved for name in ALLOCATION)


def test_own_savings_stand_in_the_rows_that_made_them() -> None:
    rows = focus_rows(exported([parcel("chat", 10, cached=100)]))
    costs = {row["x_TokenClass"]: (row["ListCost"], row["EffectiveCost"]) for row in rows}
    assert costs == {
        "uncached_input": (Decimal("0.000030000000"), Decimal("0.000030000000")),
        "cache_read_gpu": (Decimal("0.000300000000"), Decimal("0.000030000000")),
    }


def test_tiers_that_change_what_savings_are_worth_move_none() -> None:
    tiers = [{"up_to": 500, "price": "3"}, {"price": "1"}]
    tariffs = [{"id": "in", "meter": "input", "mode": "graduated", "tiers": tiers}]
    rows = focus_rows(exported([parcel("chat", 1_000, cached=777), parcel("search", 3, cached=1)], tariffs=tariffs))
    assert [row["x_ChargeKind"] for row in rows].count("cache_savings") == 2
    assert not any(row.get("AllocatedMethodId") for row in rows)


def test_a_reservation_is_a_purchase_by_the_minute() -> None:
    held = [{"id": "r", "model": "llama-70b", "units": 2, "unit_hour": "0.60", "tokens_per_minute": 1000}]
    invoice = exported([parcel("chat", 10)], reservations=held)
    row = next(row for row in focus_rows(invoice) if row["x_ChargeKind"] == "reservation")
    assert (row["ChargeCategory"], row["PricingUnit"]) == ("Purchase", "Unit-Minutes")
    assert row["PricingQuantity"] == 2 * 30 * 24 * 60
    assert violations([row]) == []


def test_a_file_has_every_mandatory_column_and_ours_last() -> None:
    assert len(MANDATORY) == 21
    head = focus_csv([busy()]).split("\r\n")[0].split(",")
    assert head == list(NAMES)
    custom = [name.startswith("x_") for name in head]
    assert custom == sorted(custom)
    assert head[: custom.index(True)] == sorted(head[: custom.index(True)])


def test_a_draft_is_of_no_invoice_yet() -> None:
    assert {row["InvoiceId"] for row in focus_rows(busy(number=None))} == {None}


def test_the_same_invoice_is_the_same_bytes() -> None:
    assert focus_csv([busy()]) == focus_csv([busy()])
    assert detail_csv(busy()) == detail_csv(busy())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"BilledCost": None}, "BilledCost is null"),
        ({"BilledCost": "1"}, "BilledCost is no number"),
        ({"BillingCurrency": "usd"}, "is no currency"),
        ({"BillingPeriodEnd": "2026-12-01"}, "is no time in UTC"),
        ({"ChargeCategory": "Discount"}, "may not be 'Discount'"),
        ({"ChargeClass": "correction"}, "may not be"),
        ({"ProviderName": " "}, "is blank"),
        ({"PricingUnit": "1k tokens"}, "is no unit"),
        ({"PricingUnit": None}, "PricingUnit is needed"),
        ({"ConsumedUnit": None}, "null together"),
        ({"ConsumedUnit": None, "ConsumedQuantity": None}, "usage says what was consumed"),
        ({"ListCost": Decimal(1)}, "ListUnitPrice times PricingQuantity"),
        ({"ContractedCost": Decimal(1)}, "ContractedUnitPrice times PricingQuantity"),
        ({"ListUnitPrice": Decimal(-1)}, "not below 0"),
        ({"ChargeCategory": "Tax"}, "is null for tax"),
        ({"ChargeCategory": "Purchase"}, "a purchase is not usage-based"),
        ({"ChargeFrequency": None}, "ChargeFrequency is never null"),
        ({"ChargePeriodEnd": "2026-11-01T00:00:00Z"}, "begin before they end"),
        ({"AllocatedMethodId": "fair@3"}, "null together"),
        ({"AllocatedTags": "{}"}, "need a method"),
        ({"AllocatedMethodDetails": "[]"}, "is no JSON object"),
        ({"AllocatedMethodDetails": '{"Elements":[]}'}, "each with its AllocatedRatio"),
        ({"Tags": "feature=chat"}, "is no JSON"),
        ({"SkuId": None}, "a SKU's meter needs a SKU"),
        ({"SkuPriceId": None}, "details need a SKU price"),
        ({"ListCost": Decimal("1e-31")}, "too many digits"),
        ({"Discount": "1"}, "Discount is no column"),
    ],
)
def test_a_row_that_breaks_a_rule_is_told(changes: dict[str, Any], said: str) -> None:
    row = focus_rows(exported([parcel("chat", 10)]))[0]
    assert violations([row]) == []
    assert any(said in problem for problem in violations([{**row, **changes}])), violations([{**row, **changes}])


def test_a_spreadsheet_finds_no_formula_and_numbers_have_no_exponent() -> None:
    text = csv_text(("a", "b", "c"), [{"a": "=1+1", "b": Decimal("1E-12"), "c": None}])
    assert text == "a,b,c\r\n'=1+1,0.000000000001,\r\n"
    assert [plain(Decimal(text)) for text in ("0E-12", "10.500", "100", "-0.10")] == ["0", "10.5", "100", "-0.1"]


counts = st.integers(0, 10**9)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), counts, counts, counts, st.none() | st.integers(0, 10**15)), max_size=5),
    st.sampled_from(["USD", "JPY", "KWD"]),
    st.integers(0, 10**9),
    st.none() | st.sampled_from(["0.01", "33.33", "100"]),
)
def test_whatever_is_invoiced_its_export_adds_up_and_keeps_the_rules(
    used: list[tuple[str, int, int, int, int | None]], currency: str, credit: int, percent: str | None
) -> None:
    parcels = [
        parcel(feature, fresh, cached, output, saved_pico=None if saved is None else min(saved, cached * 3_000_000))
        for feature, fresh, cached, output, saved in used
    ]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    grants = (Grant("g", to_pico(credit), effective_at=start),) if credit else ()
    terms: dict[str, Any] = {"discounts": [{"id": "d", "percent": percent}]} if percent else {}
    invoice = exported(parcels, currency=currency, grants=grants, **terms)
    charges = invoice_charges(invoice.document)
    unit = pico_per_minor_unit(currency)
    assert sum(charge.billed_pico for charge in charges) == int(invoice.document["total_minor"]) * unit
    assert sum(charge.effective_pico for charge in charges) == int(invoice.document["net_pico"])
    assert violations(focus_rows(invoice)) == []
