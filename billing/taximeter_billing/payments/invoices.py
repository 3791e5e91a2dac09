"""What is pushed: an invoice in whole minor units, with everything that identifies it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

LINES_MAX = 250
"""Stripe takes at most this many lines; an invoice with more is pushed with its lines summed by feature."""

METADATA_VALUE_CHARS_MAX = 500
DETAILS_MAX = 40
"""Stripe keeps 50 metadata entries of 500 characters each; a summed line's details may fill this many of them."""


@dataclass(frozen=True, slots=True)
class PushLine:
    """One line: what for, and how much in minor units (cents of USD, yen of JPY). `metadata` travels along."""

    feature: str
    description: str
    amount_minor: int
    metadata: tuple[tuple[str, str], ...] = ()


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
    """The lines as Stripe gets them, at most LINES_MAX, adding up to the same sum.

    Lines of 0 say nothing and stay out, unless there is no other. Too many lines are summed by feature, with what they were
    in the metadata; too many features end in one line for the smallest of them.
    """
    lines = [line for line in invoice.lines if line.amount_minor]
    if not lines:
        return [PushLine("none", "Nothing to pay for in this period", 0)]
    if len(lines) <= LINES_MAX:
        return lines
    features: dict[str, list[PushLine]] = {}
    for line in lines:
        features.setdefault(line.feature, []).append(line)
    summed = [_summed(feature, f"{feature} (all models)", parts) for feature, parts in sorted(features.items())]
    summed = [line for line in summed if line.amount_minor]
    if len(summed) <= LINES_MAX:
        return summed
    by_size = sorted(summed, key=lambda line: (-abs(line.amount_minor), line.feature))
    kept, rest = by_size[: LINES_MAX - 1], sorted(by_size[LINES_MAX - 1 :], key=lambda line: line.feature)
    return [*sorted(kept, key=lambda line: line.feature), _summed("others", f"{len(rest)} more features", rest)]


def _summed(feature: str, description: str, parts: list[PushLine]) -> PushLine:
    texts = [f"{part.description} = {part.amount_minor}" for part in parts]
    return PushLine(feature, description, sum(part.amount_minor for part in parts), tuple(_details(texts)))


def _details(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Texts packed into as few metadata entries as they need; where they need more than there are, the last says so."""
    packed: list[str] = []
    for text in texts:
        short = text[:METADATA_VALUE_CHARS_MAX]
        if packed and len(packed[-1]) + len(short) + 2 <= METADATA_VALUE_CHARS_MAX:
            packed[-1] += f"; {short}"
        else:
            packed.append(short)
    if len(packed) > DETAILS_MAX:
        packed = [*packed[: DETAILS_MAX - 1], "and more; the invoice itself has all of them"]
    return ((f"taximeter_detail_{place:02d}", text) for place, text in enumerate(packed, start=1))
