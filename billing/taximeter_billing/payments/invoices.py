"""What is pushed: an invoice in whole minor units, with everything that identifies it. Pure."""

from dataclasses import dataclass
from datetime import datetime

LINES_MAX = 250
"""Stripe takes at most this many lines; an invoice with more is pushed with its lines summed by feature."""


@dataclass(frozen=True, slots=True)
class PushLine:
    """One line: what for, and how much in minor units (cents of USD, yen of JPY)."""

    feature: str
    description: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class PushInvoice:
    """A finalized invoice as payments need it."""

    number: str
    tenant: str
    tenant_name: str
    email: str | None
    currency: str
    period_start: datetime
    period_end: datetime
    lines: tuple[PushLine, ...]
    total_minor: int


@dataclass(frozen=True, slots=True)
class PushResult:
    """The invoice in Stripe. `created` says whether this call made it."""

    stripe_invoice_id: str
    customer_id: str
    total_minor: int
    status: str
    created: bool


def lines_for_stripe(invoice: PushInvoice) -> list[PushLine]:
    """The lines as they are, or summed by feature where there are more than Stripe takes. Lines of 0 say nothing and stay out."""
    lines = [line for line in invoice.lines if line.amount_minor]
    if len(lines) <= LINES_MAX:
        return lines
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.feature] = sums.get(line.feature, 0) + line.amount_minor
    return [PushLine(feature, f"{feature} (all models)", amount) for feature, amount in sorted(sums.items()) if amount]
