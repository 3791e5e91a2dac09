"""Payments: invoices into Stripe and back, and the double that stands in for Stripe where there is no account."""

from taximeter_billing.payments.invoices import PushInvoice, PushLine, PushResult
from taximeter_billing.payments.push import push_invoice, stripe_client

__all__ = ["PushInvoice", "PushLine", "PushResult", "push_invoice", "stripe_client"]
