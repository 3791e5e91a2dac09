"""Errors of payments.

PaymentError
├── MissingKeyError         no Stripe key, or something that is none
├── LiveKeyError            a live Stripe key without permission to use it
├── NegativeInvoiceError    Stripe bills nothing below zero; a credit note is needed
├── TotalMismatchError      Stripe's total is not ours; the draft was left as it is
├── LinesMismatchError      Stripe's lines are not ours; the draft was left as it is
├── NotVoidableError        the invoice is paid at Stripe; a credit note is needed
├── DuplicateInvoiceError   Stripe has more than one invoice under our number
├── StripeRefusedError      Stripe refused a request, or did not answer
└── WebhookRefusedError     a webhook that Stripe did not sign, or too old, or not an event
"""

from taximeter_billing.errors import BillingError


class PaymentError(BillingError):
    """Something about payments failed."""

    status = 502
    code = "payment_error"


class MissingKeyError(PaymentError):
    """TAXIMETER_STRIPE_API_KEY must be a secret key of Stripe: sk_test_..., or sk_live_... where that is allowed."""

    code = "stripe_key_missing"


class LiveKeyError(PaymentError):
    """A live Stripe key needs TAXIMETER_STRIPE_LIVE=true."""

    code = "live_key_refused"


class NegativeInvoiceError(PaymentError):
    """Stripe bills nothing below zero; give the tenant a credit note instead."""

    code = "negative_invoice"


class TotalMismatchError(PaymentError):
    """Stripe's total is not the invoice's; the draft in Stripe was left as it is and not finalized."""

    code = "total_mismatch"


class LinesMismatchError(PaymentError):
    """Stripe's lines are not the invoice's; the draft in Stripe was left as it is and not finalized."""

    code = "lines_mismatch"


class NotVoidableError(PaymentError):
    """What is paid at Stripe cannot be voided; issue a credit note."""

    status = 409
    code = "not_voidable"


class DuplicateInvoiceError(PaymentError):
    """Stripe has more than one invoice under this number; void or delete all but one, then push again."""

    code = "duplicate_invoice"


class StripeRefusedError(PaymentError):
    """Stripe refused a request, or did not answer."""

    code = "stripe_refused"


class WebhookRefusedError(PaymentError):
    """The webhook was not signed with our secret, is older than allowed, or is no event."""

    status = 400
    code = "webhook_refused"
