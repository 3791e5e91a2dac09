"""How an invoice stands at Stripe: asked there, never believed from an event. Events come late, twice and in any order."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import stripe

from taximeter_billing.payments.metadata import noted
from taximeter_billing.payments.webhooks import StripeEvent

SETTLED_DISPUTES = frozenset({"won", "warning_closed", "prevented"})
"""Disputes that ended without money going back."""


class PaymentStatus(StrEnum):
    """Where the money is."""

    DRAFT = "draft"
    OPEN = "open"
    FAILED = "failed"
    """Open, and the last attempt to collect it failed."""
    PAID = "paid"
    DISPUTED = "disputed"
    """Paid, and the payer's bank wants or took the money back."""
    UNCOLLECTIBLE = "uncollectible"
    VOID = "void"
    GONE = "gone"
    """Stripe does not know the invoice (any more)."""


@dataclass(frozen=True, slots=True)
class PaymentState:
    """An invoice at Stripe, now. Amounts in minor units; `number` is ours, or None for an invoice that is not ours."""

    stripe_invoice_id: str
    status: PaymentStatus
    stripe_status: str
    number: str | None = None
    paid_minor: int = 0
    remaining_minor: int = 0
    credited_minor: int = 0
    attempts: int = 0
    disputes: tuple[str, ...] = ()
    """Of each dispute its id and Stripe's word for where it stands: "du_1: needs_response"."""


def read_state(client: stripe.StripeClient, stripe_invoice_id: str) -> PaymentState:
    """Ask Stripe how the invoice stands. Raises stripe.StripeError when it does not answer."""
    try:
        found = client.v1.invoices.retrieve(stripe_invoice_id)
    except stripe.InvalidRequestError as error:
        if error.http_status == 404 or error.code == "resource_missing":
            return PaymentState(stripe_invoice_id, PaymentStatus.GONE, "gone")
        raise
    disputes = _disputes(client, stripe_invoice_id) if found.amount_paid else []
    stripe_status = found.status or "unknown"
    if any(one.status not in SETTLED_DISPUTES for one in disputes):
        status = PaymentStatus.DISPUTED
    elif stripe_status == "open" and found.attempted and found.amount_remaining:
        status = PaymentStatus.FAILED
    else:
        status = PaymentStatus(stripe_status)
    return PaymentState(
        stripe_invoice_id,
        status,
        stripe_status,
        noted(found, "taximeter_invoice"),
        found.amount_paid,
        found.amount_remaining,
        found.pre_payment_credit_notes_amount + found.post_payment_credit_notes_amount,
        found.attempt_count,
        tuple(sorted(f"{one.id}: {one.status}" for one in disputes)),
    )


def invoice_of(client: stripe.StripeClient, event: StripeEvent) -> str | None:
    """The id of the invoice that an event is about; None when it is about none. Raises stripe.StripeError."""
    if event.invoice_id is not None:
        return event.invoice_id
    if event.payment_intent is None:
        return None
    payment: Any = {"payment": {"type": "payment_intent", "payment_intent": event.payment_intent}}
    found = client.v1.invoice_payments.list(payment).data
    return _id(found[0].invoice) if found else None


def _disputes(client: stripe.StripeClient, stripe_invoice_id: str) -> list[stripe.Dispute]:
    payments = client.v1.invoice_payments.list({"invoice": stripe_invoice_id, "limit": 100}).auto_paging_iter()
    intents = [_id(one.payment.payment_intent) for one in payments if one.payment.type == "payment_intent"]
    return [
        dispute
        for intent in intents
        if intent is not None
        for dispute in client.v1.disputes.list({"payment_intent": intent, "limit": 100}).auto_paging_iter()
    ]


def _id(reference: Any) -> str | None:
    """Stripe names another object by its id, or shows it whole."""
    return reference if reference is None or isinstance(reference, str) else str(reference.id)
