"""The book of record: what was declared, by whom, and the invoices. SQLite by default, Postgres by address."""

from taximeter_billing.book.engine import open_book, upgrade, writing
from taximeter_billing.book.tables import (
    ApiKeyRow,
    AuditRow,
    CreditEntryRow,
    CreditNoteRow,
    DeclaredRow,
    FindingRow,
    InvoiceRow,
    OutboxRow,
    ParkedRow,
    PaymentRow,
    SeriesRow,
    StripeEventRow,
)

__all__ = [
    "ApiKeyRow",
    "AuditRow",
    "CreditEntryRow",
    "CreditNoteRow",
    "DeclaredRow",
    "FindingRow",
    "InvoiceRow",
    "OutboxRow",
    "ParkedRow",
    "PaymentRow",
    "SeriesRow",
    "StripeEventRow",
    "open_book",
    "upgrade",
    "writing",
]
