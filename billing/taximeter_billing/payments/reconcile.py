"""Compares our invoices with Stripe's, by total, currency and lines."""

from typing import Any

import stripe

from taximeter_billing.payments.invoices import PushInvoice, lines_for_stripe


def differences(client: stripe.StripeClient, invoice: PushInvoice, stripe_id: str) -> list[str]:
    """What differs between an invoice and its twin in Stripe, in words; nothing when they agree. Raises stripe.StripeError."""
    found = client.v1.invoices.retrieve(stripe_id)
    problems = []
    if found.total != invoice.total_minor:
        problems.append(f"Stripe's total is {found.total}, ours {invoice.total_minor} (minor units)")
    if found.currency != invoice.currency.lower():
        problems.append(f"Stripe's currency is {found.currency}, ours {invoice.currency.lower()}")
    if found.status in {"draft", "void", "uncollectible"}:
        problems.append(f"Stripe's status is {found.status}")
    ours = sorted(line.amount_minor for line in lines_for_stripe(invoice))
    listed: Any = client.v1.invoices.line_items.list(stripe_id, {"limit": 100})
    theirs = sorted(line.amount for line in listed.auto_paging_iter())
    if ours != theirs:
        problems.append(f"Stripe has {len(theirs)} lines, ours are {len(ours)}, or their amounts differ")
    return problems
