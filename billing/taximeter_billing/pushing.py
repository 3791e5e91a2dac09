"""Pushes the finalized invoices of a period, and notes in the book what Stripe said."""

import json
from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import InvoiceRow
from taximeter_billing.payments import PushInvoice, PushLine, PushResult, push_invoice, stripe_client
from taximeter_billing.settings import BillingSettings

TRIES_MAX = 5
"""How often an invoice is tried when Stripe is busy or away, with doubling waits, before the push stops there."""


def push_period(
    book: Engine, settings: BillingSettings, period: str, tenant: str | None = None
) -> Iterator[tuple[InvoiceRow, PushResult]]:
    """Push each finalized invoice of the month, one after the other. Doing it again changes nothing. Raises PaymentError."""
    client = stripe_client(settings.stripe_api_key, settings.stripe_url, live=settings.stripe_live)
    with Session(book, expire_on_commit=False) as session:
        statement = select(InvoiceRow).where(InvoiceRow.period == period, InvoiceRow.status == "final")
        rows = list(session.scalars(statement.order_by(InvoiceRow.number)))
    for row in rows:
        if tenant not in (None, row.tenant):
            continue
        result = push_invoice(client, as_push(row), tries_max=TRIES_MAX)
        with Session(book) as session, session.begin():
            kept = session.get_one(InvoiceRow, row.id)
            kept.stripe_invoice_id, kept.stripe_status = result.stripe_invoice_id, result.status
        yield row, result


def as_push(row: InvoiceRow) -> PushInvoice:
    """An invoice of the book as payments need it."""
    document = json.loads(row.document)
    return PushInvoice(
        number=row.number or "",
        tenant=row.tenant,
        tenant_name=document["tenant"]["name"],
        email=document["tenant"]["email"],
        currency=row.currency,
        period_start=datetime.fromisoformat(document["period"]["start"]),
        period_end=datetime.fromisoformat(document["period"]["end"]),
        lines=tuple(
            PushLine(line["feature"], f"{line['feature']}: {line['model']}", int(line["amount_minor"]))
            for line in document["lines"]
        ),
        total_minor=row.total_minor,
    )
