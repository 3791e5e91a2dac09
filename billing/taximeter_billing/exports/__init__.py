"""Invoices for elsewhere: CSV of their detail, FOCUS 1.2, PDF, HTML. Documents in, text or bytes out."""

from taximeter_billing.exports.charge_rows import Charge, invoice_charges
from taximeter_billing.exports.detail_csv import detail_csv
from taximeter_billing.exports.focus import focus_csv, focus_rows
from taximeter_billing.exports.focus_rules import violations
from taximeter_billing.exports.formats import ExportError, ExportFormat, Rendered, render
from taximeter_billing.exports.invoice_source import ExportedInvoice, Issuer, from_document

__all__ = [
    "Charge",
    "ExportError",
    "ExportFormat",
    "ExportedInvoice",
    "Issuer",
    "Rendered",
    "detail_csv",
    "focus_csv",
    "focus_rows",
    "from_document",
    "invoice_charges",
    "render",
    "violations",
]
