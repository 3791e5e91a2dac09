"""Webhooks from Stripe: the signature checked over the raw bytes, and what Taximeter needs to know of the event.

Stripe delivers an event at least once and in no order. Whoever acts on one notes `event.id` in the same transaction and passes
over an event whose id is noted already.
"""

import json
from contextlib import suppress
from dataclasses import dataclass

import stripe

from taximeter_billing.payments.errors import WebhookRefusedError

TOLERANCE_SECONDS = 300


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """One event: what happened (`invoice.paid`) to which object, and our own names for it where the object carries them."""

    id: str
    kind: str
    created: int
    live: bool
    object_id: str | None
    status: str | None
    invoice_number: str | None
    tenant: str | None
    invoice_id: str | None = None
    """Stripe's id of the invoice that the object is or belongs to."""
    payment_intent: str | None = None
    """Stripe's id of the payment that a dispute is about."""


def read_event(body: bytes, signature: str, secrets: str, tolerance_seconds: int = TOLERANCE_SECONDS) -> StripeEvent:
    """Check a delivery and read it. `signature` is the header Stripe-Signature. Raises WebhookRefusedError.

    `secrets` are one or more secrets of the endpoint, divided by commas: two while one takes over from the other.
    """
    known = [secret for part in secrets.split(",") if (secret := part.strip())]
    if not known:
        raise WebhookRefusedError("there is no webhook secret, so nothing can be believed")
    for secret in known[:-1]:
        with suppress(WebhookRefusedError):
            return _read(body, signature, secret, tolerance_seconds)
    return _read(body, signature, known[-1], tolerance_seconds)


def _read(body: bytes, signature: str, secret: str, tolerance_seconds: int) -> StripeEvent:
    try:
        event = stripe.Webhook.construct_event(body, signature, secret, tolerance_seconds)
        thing = json.loads(body)["data"]["object"]
        metadata = thing.get("metadata") or {}
        return StripeEvent(
            id=event.id,
            kind=event.type,
            created=event.created,
            live=event.livemode,
            object_id=thing.get("id"),
            status=thing.get("status"),
            invoice_number=metadata.get("taximeter_invoice"),
            tenant=metadata.get("taximeter_tenant"),
            invoice_id=thing.get("id") if thing.get("object") == "invoice" else thing.get("invoice"),
            payment_intent=thing.get("payment_intent"),
        )
    except stripe.SignatureVerificationError as error:
        raise WebhookRefusedError(f"not signed by Stripe: {error.user_message}") from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise WebhookRefusedError("signed, but not an event") from error
