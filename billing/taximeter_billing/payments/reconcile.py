"""Compares our invoices with Stripe's, by number, total, currency and every line."""

from collections import Counter

import stripe

from taximeter_billing.payments.invoices import PushInvoice, lines_for_stripe
from taximeter_billing.payments.metadata import noted
from taximeter_billing.payments.state import read_state


def differences(
    client: stripe.StripeClient, invoice: PushInvoice, stripe_id: str, *, voided: bool = False
) -> list[str]:
    """What differs between an invoice and its twin in Stripe, in words; nothing when they agree. Raises stripe.StripeError.

    `voided`: ours is, so its twin must be void or deleted, and nothing else matters.
    """
    if voided:
        status = read_state(client, stripe_id).stripe_status
        return [] if status in {"void", "gone"} else [f"ours is void, Stripe's is {status}"]
    found = client.v1.invoices.retrieve(stripe_id)
    problems = []
    if (number := noted(found, "taximeter_invoice")) != invoice.number:
        problems.append(f"Stripe's number is {number}, ours {invoice.number}")
    if (tenant := noted(found, "taximeter_tenant")) != invoice.tenant:
        problems.append(f"Stripe's tenant is {tenant}, ours {invoice.tenant}")
    if found.total != invoice.total_minor:
        problems.append(f"Stripe's total is {found.total}, ours {invoice.total_minor} (minor units)")
    if found.currency != invoice.currency.lower():
        problems.append(f"Stripe's currency is {found.currency}, ours {invoice.currency.lower()}")
    if found.status in {"draft", "void", "uncollectible"}:
        problems.append(f"Stripe's status is {found.status}")
    theirs = [
        (noted(line, "taximeter_line") or "?", line.amount)
        for line in client.v1.invoices.line_items.list(stripe_id, {"limit": 100}).auto_paging_iter()
    ]
    return problems + _line_differences(invoice, theirs)


def _line_differences(invoice: PushInvoice, theirs: list[tuple[str, int]]) -> list[str]:
    ours = {str(place): line for place, line in enumerate(lines_for_stripe(invoice))}
    amounts = dict(theirs)
    problems = [
        f"line {place} ({line.description}) is {amounts.get(place, 'missing')} in Stripe,"
        f" ours {line.amount_minor} (minor units)"
        for place, line in ours.items()
        if amounts.get(place) != line.amount_minor
    ]
    seen = Counter(place for place, _amount in theirs)
    extra = [amount for place, amount in theirs if place not in ours]
    problems += [f"Stripe has a line of {amount} (minor units) that is not ours" for amount in extra]
    problems += [
        f"line {place} is in Stripe {count} times" for place, count in seen.items() if count > 1 and place in ours
    ]
    return problems
