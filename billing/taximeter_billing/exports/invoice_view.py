"""An invoice as people read it: lines by feature, savings, adjustments, total; the same for the page and the PDF. Pure.

Every amount shown is text. The column "amount" is in minor units and adds up to the total; list prices and savings, which are
often below a cent, have four more places.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from taximeter_billing.domain.storage import STORAGE
from taximeter_billing.exports.charge_rows import keeps_its_own
from taximeter_billing.exports.invoice_source import ExportedInvoice
from taximeter_schemas.money import currency_exponent, format_pico

_KINDS = {
    "void": "Voided usage",
    "covered": "Covered by a reservation",
    "storage": "Cache storage",
    "reservation": "Reservation",
    "allowance": "Free allowance",
    "discount": "Discount",
    "true_up": "Late usage",
    "credit": "Credit",
    "minimum": "Minimum",
}


@dataclass(frozen=True, slots=True)
class UsageView:
    """A usage line. `line` is its number in the document."""

    line: int
    model: str
    requests: str
    input: str
    cached: str
    output: str
    listed: str
    savings: str
    tiers: str
    amount: str


@dataclass(frozen=True, slots=True)
class FeatureView:
    """A feature's lines and their sum."""

    name: str
    lines: list[UsageView]
    amount: str


@dataclass(frozen=True, slots=True)
class AdjustmentView:
    """A line beside usage."""

    line: int
    kind: str
    text: str
    amount: str


@dataclass(frozen=True, slots=True)
class InvoiceView:
    """All that is shown of an invoice."""

    title: str
    final: bool
    status: str
    issuer: str
    issuer_address: list[str]
    issuer_tax_id: str
    customer: str
    customer_id: str
    email: str
    period: str
    days: str
    issued: str
    currency: str
    features: list[FeatureView]
    adjustments: list[AdjustmentView]
    listed: str
    savings: str
    tiers: str
    usage: str
    exact: str
    rounding: str
    total: str
    savings_note: str
    policy: str
    receipt: list[tuple[str, str]]
    has_tiers: bool


def view(invoice: ExportedInvoice) -> InvoiceView:
    """What to show."""
    document, currency = invoice.document, invoice.currency
    usage = [line for line in document["lines"] if line.get("kind", "usage") == "usage"]
    others = [line for line in document["lines"] if line.get("kind", "usage") != "usage"]
    tiers = sum(int(line["tier_pico"]) for line in usage)
    period = document["period"]
    return InvoiceView(
        title={"draft": "Draft invoice", "void": f"Void invoice {invoice.number}"}.get(
            invoice.status, f"Invoice {invoice.number}"
        ),
        final=invoice.status == "final",
        status=invoice.status,
        issuer=invoice.issuer.name,
        issuer_address=[line.strip() for line in invoice.issuer.address.splitlines() if line.strip()],
        issuer_tax_id=invoice.issuer.tax_id,
        customer=invoice.customer,
        customer_id=invoice.tenant,
        email=str(document["tenant"]["email"] or ""),
        period=str(period["label"]),
        days=f"{period['start'][:10]} to before {period['end'][:10]}, {period['time_zone']}",
        issued=f"{invoice.finalized_at:%Y-%m-%d}" if invoice.finalized_at else "not final: it may change",
        currency=currency,
        features=_features(usage, currency),
        adjustments=[_adjustment(line, currency) for line in others],
        listed=_fine(document["list_pico"], currency),
        savings=_fine(-int(document["savings_pico"]), currency),
        tiers=_fine(tiers, currency),
        usage=_minor(sum(int(line["amount_minor"]) for line in usage), currency),
        exact=format_pico(int(document["net_pico"]), currency),
        rounding=format_pico(-int(document["rounding"]["rounded_off_pico"]), currency),
        total=_minor(document["total_minor"], currency),
        savings_note=" ".join(filter(None, (_savings_note(document, usage), _storage_note(others)))),
        policy=str(document["inputs"]["cache_policy"]),
        receipt=_receipt(invoice),
        has_tiers=any(int(line["tier_pico"]) for line in usage),
    )


def _features(usage: list[Mapping[str, Any]], currency: str) -> list[FeatureView]:
    found = []
    for name in sorted({str(line["feature"]) for line in usage}):
        own = [line for line in usage if line["feature"] == name]
        amount = _minor(sum(int(line["amount_minor"]) for line in own), currency)
        found.append(FeatureView(name, [_usage(line, currency) for line in own], amount))
    return found


def _usage(line: Mapping[str, Any], currency: str) -> UsageView:
    tokens = line["tokens"]
    return UsageView(
        line=int(line["line"]),
        model=str(line["model"]),
        requests=f"{line['events']:,}",
        input=f"{tokens['uncached_input'] + tokens['cache_read'] + tokens['cache_write']:,}",
        cached=f"{tokens['cache_read']:,}",
        output=f"{tokens['output']:,}",
        listed=_fine(line["list_pico"], currency),
        savings=_fine(-int(line["savings_pico"]), currency),
        tiers=_fine(line["tier_pico"], currency),
        amount=_minor(line["amount_minor"], currency),
    )


def _adjustment(line: Mapping[str, Any], currency: str) -> AdjustmentView:
    kind = str(line["kind"])
    text = str(line["model"])
    text = text[:1].upper() + text[1:]
    return AdjustmentView(int(line["line"]), _KINDS.get(kind, kind), text, _minor(line["amount_minor"], currency))


def _savings_note(document: Mapping[str, Any], usage: list[Mapping[str, Any]]) -> str:
    """How the cache savings came to be shared, and how well they are known."""
    known = {name: int(amount) for name, amount in document["savings_known"].items()}
    whole = sum(known.values())
    policy = document["inputs"]["cache_policy"]
    if not whole:
        return f"Cache policy {policy}: nothing was saved by the cache in this period."
    moved = any(not keeps_its_own(line) for line in usage)
    how = "shared between the tenants of your cache pool" if moved else "each saving kept by the request that hit"
    shares = [
        f"{_percent(known.get(name, 0), whole)} {said}"
        for name, said in (
            ("exact", "known exactly, from block hashes"),
            ("inferred", "inferred from token counts"),
            ("unattributed", "attributed to nobody"),
        )
        if known.get(name) or name == "exact"
    ]
    return f"Cache policy {policy}: {how}. Of what the pool saved, {', '.join(shares)}."


def _storage_note(others: list[Mapping[str, Any]]) -> str:
    details = [line["receipt"]["detail"] for line in others if line["kind"] == STORAGE]
    if not details:
        return ""
    start, end, known = (details[0].get(name, "")[:10] for name in ("from", "to", "fillers_known_since"))
    return (
        f"Cache storage: {start} to before {end} in UTC. It is a price for time, so allowances and discounts on usage leave it"
        f" alone; credits pay it. Who filled a block before {known} is not known any more: those who hit it bear it."
    )


def _percent(part: int, whole: int) -> str:
    thousandths = (2000 * part + whole) // (2 * whole)
    return f"{thousandths // 10}.{thousandths % 10}%"


def _receipt(invoice: ExportedInvoice) -> list[tuple[str, str]]:
    inputs = invoice.document["inputs"]
    cards = inputs["rate_card_sha256"].items()
    rows = [
        ("Receipt (SHA-256 of the document)", invoice.sha256),
        ("Events", f"{inputs['events']:,}, set hash {inputs['event_set_hash']}"),
        *((f"Prices {name}", digest) for name, digest in cards),
        *(("Agreement", str(name)) for name in inputs["agreements"]),
    ]
    return [row for row in rows if row[1]]


def _fine(amount_pico: str | int, currency: str) -> str:
    return format_pico(int(amount_pico), currency, currency_exponent(currency) + 4).removesuffix(f" {currency}")


def _minor(amount_minor: str | int, currency: str) -> str:
    return f"{Decimal(amount_minor).scaleb(-currency_exponent(currency)):,}"
