"""Renders invoices in a format by its name."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from taximeter_billing.errors import BillingError
from taximeter_billing.exports.delimited import csv_text
from taximeter_billing.exports.detail_csv import COLUMNS, detail_rows
from taximeter_billing.exports.focus import focus_csv
from taximeter_billing.exports.invoice_source import ExportedInvoice
from taximeter_billing.exports.page import invoice_page


class ExportFormat(StrEnum):
    """What an invoice can be exported as."""

    PDF = "pdf"
    HTML = "html"
    CSV = "csv"
    JSON = "json"
    FOCUS = "focus"


class ExportError(BillingError):
    """Nothing can be exported so."""

    status = 422
    code = "not_exportable"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A file: its bytes, what they are, and what to call them."""

    content: bytes
    media_type: str
    name: str


_MEDIA = {
    ExportFormat.PDF: ("application/pdf", "pdf"),
    ExportFormat.HTML: ("text/html; charset=utf-8", "html"),
    ExportFormat.CSV: ("text/csv; charset=utf-8", "csv"),
    ExportFormat.JSON: ("application/json", "json"),
    ExportFormat.FOCUS: ("text/csv; charset=utf-8", "focus.csv"),
}
OF_MANY = (ExportFormat.CSV, ExportFormat.FOCUS)
"""Formats that hold any number of invoices; the others hold one."""


def render(invoices: Sequence[ExportedInvoice], form: ExportFormat, name: str) -> Rendered:
    """Render. Raises ExportError for several invoices in a format that holds one."""
    if len(invoices) != 1 and form not in OF_MANY:
        raise ExportError(f"{form} holds one invoice; a period is exported as {' or '.join(OF_MANY)}")
    media_type, suffix = _MEDIA[form]
    safe = "".join(character if character.isalnum() or character in "-_." else "-" for character in name)
    return Rendered(_content(invoices, form), media_type, f"{safe}.{suffix}")


def _content(invoices: Sequence[ExportedInvoice], form: ExportFormat) -> bytes:
    match form:
        case ExportFormat.PDF:
            from taximeter_billing.exports.pdf import invoice_pdf  # fonts and pictures, loaded when they are needed

            return invoice_pdf(invoices[0])
        case ExportFormat.HTML:
            return invoice_page(invoices[0]).encode()
        case ExportFormat.JSON:
            return invoices[0].canonical.encode()
        case ExportFormat.CSV:
            return csv_text(COLUMNS, [row for invoice in invoices for row in detail_rows(invoice)]).encode()
        case ExportFormat.FOCUS:
            return focus_csv(invoices).encode()
