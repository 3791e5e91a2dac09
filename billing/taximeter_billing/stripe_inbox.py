"""What Stripe tells, taken once, and what each invoice's payment comes to.

A webhook is noted in the book under its event's id before it is answered, so a repeated delivery changes nothing and a crash
loses nothing. Handling it means to ask Stripe how the invoice stands now; in which order events come does not matter.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import stripe
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from taximeter_billing.book import InvoiceRow, PaymentRow, StripeEventRow, writing
from taximeter_billing.payments.state import PaymentState, PaymentStatus, invoice_of, read_state
from taximeter_billing.payments.webhooks import StripeEvent

NOT_ABOUT_INVOICES = "not about an invoice"
NOT_OURS = "not an invoice of ours"
RETRY_SECONDS_MAX = 600
_KINDS = ("invoice.", "invoice_payment.", "credit_note.", "charge.dispute.")


@dataclass(frozen=True, slots=True)
class Handled:
    """An event that was handled, or tried: `waits` says that it will be tried again."""

    event_id: str
    kind: str
    outcome: str
    waits: bool = False


def take_event(book: Engine, event: StripeEvent, now: datetime) -> bool:
    """Note an event, durably. False when it was noted before."""
    row = StripeEventRow(
        id=event.id,
        kind=event.kind,
        created_at=datetime.fromtimestamp(event.created, UTC),
        received_at=now,
        invoice_id=event.invoice_id,
        payment_intent=event.payment_intent,
        outcome="",
        tries=0,
        retry_at=now,
    )
    try:
        with writing(book) as session:
            session.add(row)
    except IntegrityError:
        return False
    return True


def handle_waiting(book: Engine, client: stripe.StripeClient, clock: Callable[[], datetime]) -> list[Handled]:
    """Handle each noted event whose time has come. One that fails waits longer each time, and holds up no other."""
    with Session(book, expire_on_commit=False) as session:
        due = StripeEventRow.handled_at.is_(None), StripeEventRow.retry_at <= clock()
        rows = list(session.scalars(select(StripeEventRow).where(*due).order_by(StripeEventRow.received_at)))
    handled = []
    for row in rows:
        try:
            outcome, waits = _handle(book, client, row, clock), False
        except stripe.StripeError as error:
            outcome, waits = f"Stripe: {error.user_message or error}", True
        with writing(book) as session:
            kept = session.get_one(StripeEventRow, row.id)
            kept.outcome, kept.tries = outcome, kept.tries + 1
            if waits:
                kept.retry_at = clock() + timedelta(seconds=min(RETRY_SECONDS_MAX, 2**kept.tries))
            else:
                kept.handled_at = clock()
        handled.append(Handled(row.id, row.kind, outcome, waits))
    return handled


def refresh_payment(
    book: Engine, client: stripe.StripeClient, stripe_invoice_id: str, clock: Callable[[], datetime]
) -> PaymentState | None:
    """Ask Stripe how the invoice stands, and note it. None for an invoice that is not ours. Raises stripe.StripeError."""
    while True:
        with Session(book) as session:
            before = session.get(PaymentRow, stripe_invoice_id)
            seen = before.seen if before is not None else 0
        state = read_state(client, stripe_invoice_id)
        if _noted(book, state, seen, clock()):
            return state if _is_ours(book, state) else None


def list_events(book: Engine, *, waiting: bool = False, limit: int = 100) -> list[StripeEventRow]:
    """What Stripe told, newest first; `waiting` leaves out what was handled."""
    statement = select(StripeEventRow).order_by(StripeEventRow.received_at.desc()).limit(limit)
    if waiting:
        statement = statement.where(StripeEventRow.handled_at.is_(None))
    with Session(book, expire_on_commit=False) as session:
        return list(session.scalars(statement))


def payments_of(book: Engine, numbers: Iterable[str]) -> dict[str, PaymentRow]:
    """How these invoices stood at Stripe when it was asked last, by our number."""
    with Session(book, expire_on_commit=False) as session:
        rows = session.scalars(select(PaymentRow).where(PaymentRow.number.in_(list(numbers))))
        return {row.number: row for row in rows}


def _handle(book: Engine, client: stripe.StripeClient, row: StripeEventRow, clock: Callable[[], datetime]) -> str:
    if not row.kind.startswith(_KINDS):
        return NOT_ABOUT_INVOICES
    event = StripeEvent(row.id, row.kind, 0, False, None, None, None, None, row.invoice_id, row.payment_intent)
    stripe_invoice_id = invoice_of(client, event)
    if stripe_invoice_id is None:
        return NOT_ABOUT_INVOICES
    state = refresh_payment(book, client, stripe_invoice_id, clock)
    return NOT_OURS if state is None else f"{_number(book, state) or stripe_invoice_id} is {state.status}"


def _noted(book: Engine, state: PaymentState, seen: int, now: datetime) -> bool:
    """Keep what was seen, unless somebody looked in the meantime: then what we saw may be older than what is kept."""
    try:
        with writing(book) as session:
            number = _find(session, state)
            if number is None:
                return True
            kept = session.get(PaymentRow, state.stripe_invoice_id, with_for_update=True)
            if (kept.seen if kept is not None else 0) != seen:
                return False
            values = {
                "number": number,
                "status": str(state.status),
                "paid_minor": state.paid_minor,
                "remaining_minor": state.remaining_minor,
                "credited_minor": state.credited_minor,
                "attempts": state.attempts,
                "disputes": "; ".join(state.disputes),
                "seen": seen + 1,
                "checked_at": now,
            }
            if kept is None:
                session.add(PaymentRow(stripe_invoice_id=state.stripe_invoice_id, **values))
            else:
                for name, value in values.items():
                    setattr(kept, name, value)
            invoice = session.scalar(select(InvoiceRow).where(InvoiceRow.number == number))
            if invoice is not None and invoice.stripe_invoice_id in (None, state.stripe_invoice_id):
                invoice.stripe_status = str(state.status)
    except IntegrityError:  # somebody noted the first look just before us
        return False
    return True


def _find(session: Session, state: PaymentState) -> str | None:
    """Our number for it: noted in the book when it was pushed, else what the invoice itself says, if we know that number."""
    pushed = session.scalar(select(InvoiceRow.number).where(InvoiceRow.stripe_invoice_id == state.stripe_invoice_id))
    if pushed is not None or state.status is PaymentStatus.GONE or state.number is None:
        return pushed
    return session.scalar(select(InvoiceRow.number).where(InvoiceRow.number == state.number))


def _number(book: Engine, state: PaymentState) -> str | None:
    with Session(book) as session:
        return _find(session, state)


def _is_ours(book: Engine, state: PaymentState) -> bool:
    return _number(book, state) is not None
