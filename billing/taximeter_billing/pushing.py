"""Pushes the finalized invoices of a period, and compares what was pushed; notes in the book what Stripe said."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import stripe
from sqlalchemy import ColumnElement, Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import InvoiceRow
from taximeter_billing.payments import PushInvoice, PushLine, PushResult, push_invoice, stripe_client
from taximeter_billing.payments.errors import PaymentError
from taximeter_billing.payments.push import RETRIES
from taximeter_billing.payments.reconcile import differences
from taximeter_billing.settings import BillingSettings
from taximeter_billing.stripe_inbox import refresh_payment

TRIES_MAX = 5
"""How often an invoice is tried when Stripe is busy or away, with doubling waits, before the push stops there."""


def push_period(
    book: Engine, settings: BillingSettings, period: str, tenant: str | None = None
) -> Iterator[tuple[InvoiceRow, PushResult | PaymentError]]:
    """Push each finalized invoice of the month, one after the other. Doing it again changes nothing.

    One that fails comes with its error, and the others go on. Raises PaymentError when there is no key to begin with.
    """
    client = payments_client(settings)
    for row in _rows(book, InvoiceRow.period == period, InvoiceRow.status == "final"):
        if tenant not in (None, row.tenant):
            continue
        try:
            result = push_invoice(client, as_push(row), tries_max=TRIES_MAX)
        except PaymentError as error:
            yield row, error
            continue
        with Session(book) as session, session.begin():
            kept = session.get_one(InvoiceRow, row.id)
            kept.stripe_invoice_id, kept.stripe_status = result.stripe_invoice_id, result.status
        yield row, result


def compare_pushed(
    book: Engine, settings: BillingSettings, period: str | None = None
) -> Iterator[tuple[InvoiceRow, list[str]]]:
    """Compare every pushed invoice with Stripe's by total and lines, and note how its payment stands.

    Yields each with what differs, in words. Raises PaymentError without a key.
    """
    client = payments_client(settings)
    pushed: list[ColumnElement[bool]] = [InvoiceRow.stripe_invoice_id.is_not(None)]
    if period is not None:
        pushed.append(InvoiceRow.period == period)
    for row in _rows(book, *pushed):
        stripe_id = row.stripe_invoice_id or ""
        try:
            problems = differences(client, as_push(row), stripe_id)
            refresh_payment(book, client, stripe_id, lambda: datetime.now(UTC))
        except stripe.StripeError as error:
            problems = [f"Stripe: {error.user_message or error}"]
        yield row, problems


def payments_client(settings: BillingSettings, retries: int = RETRIES) -> stripe.StripeClient:
    """Stripe, or its double, as the settings say. Raises MissingKeyError and LiveKeyError."""
    return stripe_client(settings.stripe_api_key, settings.stripe_url, live=settings.stripe_live, retries=retries)


def _rows(book: Engine, *conditions: ColumnElement[bool]) -> list[InvoiceRow]:
    with Session(book, expire_on_commit=False) as session:
        return list(session.scalars(select(InvoiceRow).where(*conditions).order_by(InvoiceRow.number)))


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
