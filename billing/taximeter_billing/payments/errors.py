"""Errors of payments.

PaymentError
├── LiveKeyError          a live Stripe key without permission to use it
├── NegativeInvoiceError  Stripe bills nothing below zero; a credit note is needed
├── TotalMismatchError    Stripe's total is not ours; the draft was left as it is
└── StripeRefusedError    Stripe refused a request, or did not answer
"""

from taximeter_billing.errors import BillingError


class PaymentError(BillingError):
    """Something about payments failed."""

    status = 502
    code = "payment_error"


class LiveKeyError(PaymentError):
    """A live Stripe key needs TAXIMETER_STRIPE_LIVE=true."""

    code = "live_key_refused"


class NegativeInvoiceError(PaymentError):
    """Stripe bills nothing below zero; give the tenant a credit note instead."""

    code = "negative_invoice"


class TotalMismatchError(PaymentError):
    """Stripe's total is not the invoice's; the draft in Stripe was left as it is and not finalized."""

    code = "total_mismatch"


class StripeRefusedError(PaymentError):
    """Stripe refused a request, or did not answer."""

    code = "stripe_refused"
