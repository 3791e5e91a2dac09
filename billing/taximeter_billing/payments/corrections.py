"""Taking back at Stripe what was taken back in the book: void an invoice, or issue a credit note over a part of it.

Both look at what is there before they write, and both are harmless when they are done again, also when Stripe has forgotten
the idempotency key.
"""

from dataclasses import dataclass
from typing import Any

import stripe

from taximeter_billing.payments.errors import NotVoidableError, StripeRefusedError, TotalMismatchError
from taximeter_billing.payments.keys import IdempotencyKeys
from taximeter_billing.payments.metadata import noted


@dataclass(frozen=True, slots=True)
class PushCreditNote:
    """A credit note of ours: its number, the invoice that it corrects, how much goes back in minor units, and why."""

    number: str
    invoice_number: str
    stripe_invoice_id: str
    currency: str
    amount_minor: int
    memo: str


@dataclass(frozen=True, slots=True)
class CreditNoteResult:
    """The credit note at Stripe. `created` says whether this call made it."""

    stripe_credit_note_id: str
    amount_minor: int
    status: str
    created: bool


def void_invoice(client: stripe.StripeClient, number: str, stripe_invoice_id: str) -> str:
    """Void the invoice (a draft is deleted). Returns "void" or "deleted"; doing it again changes nothing.

    Raises NotVoidableError for one that is paid, and StripeRefusedError.
    """
    keys = IdempotencyKeys(number)
    try:
        found = client.v1.invoices.retrieve(stripe_invoice_id)
        if found.status == "draft":
            client.v1.invoices.delete(stripe_invoice_id)
            return "deleted"
        if found.status in {"open", "uncollectible"}:
            found = client.v1.invoices.void_invoice(
                stripe_invoice_id, None, keys.options("void", [stripe_invoice_id, found.status])
            )
        elif found.status == "paid":
            raise NotVoidableError(f"{number} is paid at Stripe ({stripe_invoice_id}); issue a credit note")
        return found.status or "unknown"
    except stripe.StripeError as error:
        if error.code == "resource_missing":
            return "deleted"
        raise StripeRefusedError(f"Stripe: {error.user_message or error}") from error


def push_credit_note(client: stripe.StripeClient, note: PushCreditNote) -> CreditNoteResult:
    """Issue the credit note at Stripe, once. On a paid invoice the amount goes to the customer's balance there.

    Raises TotalMismatchError when there is one of our number over another amount or in another currency, StripeRefusedError.
    """
    try:
        found, created = _find(client, note), False
        if found is None:
            found, created = _create(client, note), True
    except stripe.StripeError as error:
        raise StripeRefusedError(f"Stripe: {error.user_message or error}") from error
    if (found.total, found.currency) != (note.amount_minor, note.currency.lower()):
        raise TotalMismatchError(
            f"{note.number}: Stripe's {found.id} is over {found.total} {found.currency}, ours over"
            f" {note.amount_minor} {note.currency.lower()} (minor units)"
        )
    return CreditNoteResult(found.id, found.total, found.status, created)


def _find(client: stripe.StripeClient, note: PushCreditNote) -> stripe.CreditNote | None:
    listed = client.v1.credit_notes.list({"invoice": note.stripe_invoice_id, "limit": 100})
    ours = (one for one in listed.auto_paging_iter() if noted(one, "taximeter_credit_note") == note.number)
    return next(ours, None)


def _create(client: stripe.StripeClient, note: PushCreditNote) -> stripe.CreditNote:
    invoice = client.v1.invoices.retrieve(note.stripe_invoice_id)
    params: Any = {
        "invoice": note.stripe_invoice_id,
        "amount": note.amount_minor,
        "memo": note.memo[:500],
        "metadata": {"taximeter_credit_note": note.number, "taximeter_invoice": note.invoice_number},
    }
    if invoice.status == "paid":
        params["credit_amount"] = note.amount_minor
    keys = IdempotencyKeys(note.number)
    return client.v1.credit_notes.create(params, keys.options("credit-note", params))
