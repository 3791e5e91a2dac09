"""Pushes the finalized invoices of a period, and compares what was pushed; notes in the book what Stripe said."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import stripe
from sqlalchemy import ColumnElement, Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import CreditNoteRow, InvoiceRow, writing
from taximeter_billing.credit_notes import list_notes
from taximeter_billing.payments import PushInvoice, PushLine, PushResult, push_invoice, stripe_client
from taximeter_billing.payments.corrections import PushCreditNote, push_credit_note, void_invoice
from taximeter_billing.payments.errors import PaymentError, StripeRefusedError
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
        with writing(book) as session:
            kept = session.get_one(InvoiceRow, row.id)
            kept.stripe_invoice_id, kept.stripe_status = result.stripe_invoice_id, result.status
        yield row, result


def push_corrections(
    book: Engine, settings: BillingSettings, period: str, tenant: str | None = None
) -> Iterator[tuple[str, str | PaymentError]]:
    """Void at Stripe what the book has voided, and issue the month's credit notes there. Doing it again changes nothing.

    Yields the number of each with what was done, or with its error. Raises PaymentError when there is no key to begin with.
    """
    client = payments_client(settings)
    standing = InvoiceRow.stripe_status.not_in(("void", "deleted"))
    for row in _rows(book, InvoiceRow.period == period, InvoiceRow.status == "void", standing):
        if tenant in (None, row.tenant) and row.stripe_invoice_id:
            yield row.number or "", _void(book, client, row, row.stripe_invoice_id)
    for note in list_notes(book, period):
        pushed = _rows(book, InvoiceRow.number == note.invoice, InvoiceRow.stripe_invoice_id.is_not(None))
        if tenant in (None, note.tenant) and note.status == "final" and not note.stripe_credit_note_id and pushed:
            yield note.number or "", _credit(book, client, note, pushed[0].stripe_invoice_id or "")


def _void(book: Engine, client: stripe.StripeClient, row: InvoiceRow, stripe_id: str) -> str | PaymentError:
    try:
        status = void_invoice(client, row.number or "", stripe_id)
    except PaymentError as error:
        return error
    with writing(book) as session:
        session.get_one(InvoiceRow, row.id).stripe_status = status
    return f"{stripe_id} is {status}"


def _credit(book: Engine, client: stripe.StripeClient, note: CreditNoteRow, stripe_id: str) -> str | PaymentError:
    if note.total_minor == 0:
        return "less than the smallest unit; nothing to give back at Stripe"
    wanted = PushCreditNote(
        note.number or "", note.invoice, stripe_id, note.currency, -note.total_minor, f"{note.number}: {note.reason}"
    )
    try:
        result = push_credit_note(client, wanted)
    except PaymentError as error:
        return error
    with writing(book) as session:
        session.get_one(CreditNoteRow, note.id).stripe_credit_note_id = result.stripe_credit_note_id
    return f"{result.stripe_credit_note_id} {'created' if result.created else 'was there'}, {result.status}"


def compare_pushed(
    book: Engine, settings: BillingSettings, period: str | None = None
) -> Iterator[tuple[InvoiceRow, list[str]]]:
    """Compare every pushed invoice with Stripe's by total and lines, and note how its payment stands.

    Yields each with what differs, in words; an invoice that Stripe refuses to show differs. Raises PaymentError without a key,
    and StripeRefusedError once Stripe does not answer: nothing is known of that invoice and of those after it.
    """
    client = payments_client(settings)
    pushed: list[ColumnElement[bool]] = [InvoiceRow.stripe_invoice_id.is_not(None)]
    if period is not None:
        pushed.append(InvoiceRow.period == period)
    for row in _rows(book, *pushed):
        stripe_id = row.stripe_invoice_id or ""
        try:
            problems = differences(client, as_push(row), stripe_id, voided=row.status == "void")
            refresh_payment(book, client, stripe_id, lambda: datetime.now(UTC))
        except stripe.InvalidRequestError as error:
            problems = [f"Stripe: {error.user_message or error}"]
        except stripe.StripeError as error:
            raise StripeRefusedError(f"{row.number} was not compared: Stripe: {error.user_message or error}") from error
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
