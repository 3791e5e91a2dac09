"""The detail of an invoice as CSV: one row for each class and price of a line, then what else was counted. Pure.

`net` is exact; `amount` carries the rounding and sums to what is to be paid.
"""

from taximeter_billing.exports.charge_rows import Charge, invoice_charges
from taximeter_billing.exports.delimited import Cell, csv_text
from taximeter_billing.exports.invoice_source import ExportedInvoice
from taximeter_billing.exports.units import UNITS
from taximeter_schemas.money import from_pico

COLUMNS = (
    "invoice", "tenant", "period", "currency", "line", "kind", "id", "feature", "model", "rate_card", "price_scope", "item",
    "quantity", "unit", "list_unit_price", "list", "net", "amount",
)  # fmt: skip


def detail_csv(invoice: ExportedInvoice) -> str:
    """The CSV. Amounts are in the currency's major unit."""
    return csv_text(COLUMNS, detail_rows(invoice))


def detail_rows(invoice: ExportedInvoice) -> list[dict[str, Cell]]:
    """Its rows, by column."""
    return [_row(invoice, charge) for charge in invoice_charges(invoice.document)]


def _row(invoice: ExportedInvoice, charge: Charge) -> dict[str, Cell]:
    unit = UNITS.get(charge.unit_class) if charge.quantity is not None else None
    counted = unit is not None and charge.quantity is not None and charge.price_pico is not None
    return {
        "invoice": invoice.reference,
        "tenant": invoice.tenant,
        "period": str(invoice.document["period"]["label"]),
        "currency": invoice.currency,
        "line": charge.line,
        "kind": charge.kind,
        "id": charge.id or None,
        "feature": charge.feature or None,
        "model": charge.model or None,
        "rate_card": charge.rate_card or None,
        "price_scope": charge.scope or None,
        "item": charge.label,
        "quantity": unit.quantity(charge.quantity or 0) if unit and counted else None,
        "unit": unit.name if unit and counted else None,
        "list_unit_price": unit.price(charge.price_pico or 0) if unit and counted else None,
        "list": from_pico(charge.list_pico),
        "net": from_pico(charge.effective_pico),
        "amount": from_pico(charge.billed_pico),
    }
