"""Takes invoices out of the book for export."""

from sqlalchemy import Engine

from taximeter_billing.book import InvoiceRow
from taximeter_billing.exports.formats import OF_MANY, ExportError, ExportFormat, Rendered, render
from taximeter_billing.exports.invoice_source import ExportedInvoice, Issuer, from_document
from taximeter_billing.lifecycle import find_invoice, list_invoices
from taximeter_billing.settings import BillingSettings
from taximeter_schemas.periods import billing_month


def export_invoice(book: Engine, settings: BillingSettings, reference: str, form: ExportFormat) -> Rendered:
    """One invoice, by its number or as TENANT/PERIOD. Raises NotFoundError."""
    invoice = as_exported(find_invoice(book, reference), settings)
    return render([invoice], form, invoice.reference)


def export_period(
    book: Engine, settings: BillingSettings, period: str, form: ExportFormat, *, drafts: bool = False
) -> Rendered:
    """All final invoices of a month, and its drafts if they are wanted. Void ones are left out: they bill nothing.

    Raises PeriodError for what is no month, ExportError when there are none or the format holds one.
    """
    billing_month(period, "UTC")
    if form not in OF_MANY:
        raise ExportError(f"a period is exported as {' or '.join(OF_MANY)}, not as {form}")
    wanted = {"final", "draft"} if drafts else {"final"}
    rows = [row for row in list_invoices(book, period) if row.status in wanted]
    if not rows:
        raise ExportError(f"{period} has no final invoice{' and no draft' if drafts else '; drafts may be asked for'}")
    return render([as_exported(row, settings) for row in rows], form, f"{period}")


def as_exported(row: InvoiceRow, settings: BillingSettings) -> ExportedInvoice:
    """A row of the book with the issuer of the settings."""
    issuer = Issuer(settings.issuer_name, settings.issuer_address.replace("\\n", "\n"), settings.issuer_tax_id)
    return from_document(row.document, row.status, row.number, row.document_sha256, row.finalized_at, issuer)
