"""An invoice as FOCUS 1.2 rows (FinOps Open Cost and Usage Specification), with FOCUS 1.3's allocation columns. Pure.

An invoice's BilledCost adds up to what is to be paid, exactly; EffectiveCost, ListCost and ContractedCost are not rounded.
Whatever is known only at the period's end (credits, discounts, tiers, savings that a policy moved) is a charge of its own, as
FOCUS has it for reductions "awarded after the fact".
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

from taximeter_billing.domain.storage import STORAGE
from taximeter_billing.exports.charge_rows import SAVINGS, TIERS, Charge, invoice_charges
from taximeter_billing.exports.delimited import Cell, csv_text, plain
from taximeter_billing.exports.focus_columns import NAMES
from taximeter_billing.exports.focus_rules import violations
from taximeter_billing.exports.invoice_source import ExportedInvoice
from taximeter_billing.exports.units import UNITS
from taximeter_schemas.money import from_pico
from taximeter_schemas.periods import billing_month

# Kind of charge: its category and frequency. What takes something off is a credit, whatever is added an adjustment.
_CATEGORIES = {
    "usage": ("Usage", "Usage-Based"),
    "true_up": ("Usage", "Usage-Based"),
    STORAGE: ("Usage", "Usage-Based"),
    "reservation": ("Purchase", "Recurring"),
    "minimum": ("Adjustment", "Recurring"),
    "void": ("Adjustment", "One-Time"),
    "covered": ("Adjustment", "Usage-Based"),
    "credit": ("Credit", "One-Time"),
    "discount": ("Credit", "Recurring"),
    "allowance": ("Credit", "Recurring"),
    SAVINGS: ("Credit", "Usage-Based"),
    TIERS: ("Credit", "Usage-Based"),
}
_RATIO = Context(prec=15, rounding=ROUND_HALF_EVEN)


def focus_csv(invoices: Iterable[ExportedInvoice]) -> str:
    """A FOCUS file of these invoices. An AssertionError says that a row breaks a rule: a mistake of ours."""
    rows = [row for invoice in invoices for row in focus_rows(invoice)]
    broken = violations(rows)
    assert not broken, "; ".join(broken[:5])
    return csv_text(NAMES, rows)


def focus_rows(invoice: ExportedInvoice) -> list[dict[str, Cell]]:
    """The rows of one invoice, by column."""
    return [_row(invoice, charge) for charge in invoice_charges(invoice.document)]


def _row(invoice: ExportedInvoice, charge: Charge) -> dict[str, Cell]:
    document = invoice.document
    category, frequency = _CATEGORIES.get(charge.kind, ("Adjustment", "One-Time"))
    if category == "Credit" and charge.effective_pico > 0:
        category = "Adjustment"
    issuer = invoice.issuer.name
    row: dict[str, Cell] = {
        "BilledCost": from_pico(charge.billed_pico),
        "BillingAccountId": invoice.tenant,
        "BillingAccountName": invoice.customer,
        "BillingCurrency": invoice.currency,
        "BillingPeriodStart": _utc(document["period"]["start"]),
        "BillingPeriodEnd": _utc(document["period"]["end"]),
        "ChargeCategory": category,
        "ChargeDescription": _described(charge),
        "ChargeFrequency": frequency,
        "ChargePeriodStart": _utc(document["period"]["start"]),
        "ChargePeriodEnd": _utc(document["period"]["end"]),
        "ContractedCost": from_pico(charge.list_pico),
        "EffectiveCost": from_pico(charge.effective_pico),
        "InvoiceId": invoice.number,
        "InvoiceIssuerName": issuer,
        "ListCost": from_pico(charge.list_pico),
        "ProviderName": issuer,
        "PublisherName": issuer,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "LLM inference",
        "ServiceSubcategory": "Generative AI",
        "x_CachePolicy": str(document["inputs"]["cache_policy"]) or None,
        "x_ChargeKind": charge.kind,
        "x_DocumentSha256": invoice.sha256,
        "x_InvoiceLine": Decimal(charge.line),
    }
    if charge.feature:
        row |= _tagged(invoice, charge)
    if charge.quantity is not None and charge.price_pico is not None:
        row |= _priced(charge)
    if charge.kind == "true_up":
        row |= _correction(charge, str(document["period"]["time_zone"]))
    if charge.reallocated:
        row |= _allocated(invoice, charge)
    return row


def _described(charge: Charge) -> str:
    unit = UNITS.get(charge.unit_class)
    what = unit.meter if unit is not None and charge.kind == "usage" else charge.label
    return f"{charge.feature}, {charge.model}: {what}" if charge.feature else what or charge.kind


def _tagged(invoice: ExportedInvoice, charge: Charge) -> dict[str, Cell]:
    line = invoice.document["lines"][charge.line - 1]
    return {
        "Tags": _json({"feature": charge.feature, "model": charge.model}),
        "x_EventSetHash": str(line["receipt"].get("event_set_hash", "")) or None,
        "x_Feature": charge.feature,
        "x_Model": charge.model,
        "x_RateCard": charge.rate_card or None,
        "x_TokenClass": charge.unit_class if charge.kind == "usage" else None,
    }


def _priced(charge: Charge) -> dict[str, Cell]:
    unit = UNITS[charge.unit_class]
    quantity, price = unit.quantity(charge.quantity or 0), unit.price(charge.price_pico or 0)
    sku = charge.model or charge.id
    row: dict[str, Cell] = {
        "ContractedUnitPrice": price,
        "ListUnitPrice": price,
        "PricingCategory": "Standard",
        "PricingQuantity": quantity,
        "PricingUnit": unit.name,
        "SkuId": f"{sku}/{charge.unit_class}",
        "SkuMeter": unit.meter,
        "SkuPriceDetails": _json({"x_RateCard": charge.rate_card, "x_PriceScope": charge.scope}),
        "SkuPriceId": "/".join(filter(None, (charge.rate_card, charge.scope, sku, charge.unit_class))),
    }
    if charge.kind in {"usage", STORAGE}:
        row |= {"ConsumedQuantity": quantity, "ConsumedUnit": unit.name}
    return row


def _correction(charge: Charge, time_zone: str) -> dict[str, Cell]:
    """Late usage of a month that was invoiced before."""
    month = billing_month(charge.detail["period"], time_zone)
    return {
        "ChargeClass": "Correction",
        "ChargePeriodStart": _utc(month.start.isoformat()),
        "ChargePeriodEnd": _utc(month.end.isoformat()),
    }


def _allocated(invoice: ExportedInvoice, charge: Charge) -> dict[str, Cell]:
    """The policy and this charge's part of what the cache pool saved, the origin that all of its tenants share.

    The ratio has 15 digits; the two amounts beside it are exact.
    """
    known = {name: int(amount) for name, amount in invoice.document["savings_known"].items()}
    saved, share = sum(known.values()), -charge.effective_pico
    ratio = _RATIO.divide(Decimal(share), Decimal(saved)) if saved else Decimal(0)
    # JSON by hand where a float would be written: a ratio is a number, and exact.
    element = (
        f'{{"AllocatedRatio":{plain(ratio)},"UsageUnit":{json.dumps(invoice.currency)},'
        f'"UsageQuantity":{plain(from_pico(share))},"x_SharePico":"{share}","x_PoolSavedPico":"{saved}"}}'
    )
    shares = _json({f"x_Known{name.title()}Pico": str(amount) for name, amount in sorted(known.items())})
    return {
        "AllocatedMethodId": str(invoice.document["inputs"]["cache_policy"]),
        "AllocatedMethodDetails": f'{{"Elements":[{element}],{shares[1:]}' if known else f'{{"Elements":[{element}]}}',
        "AllocatedResourceId": f"{invoice.tenant}/{charge.feature}/{charge.model}",
        "AllocatedResourceName": f"{invoice.customer}: {charge.feature}, {charge.model}",
        "AllocatedTags": _json({"tenant": invoice.tenant, "feature": charge.feature, "model": charge.model}),
    }


def _utc(moment: str) -> str:
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
