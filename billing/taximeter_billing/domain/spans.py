"""Cuts a period where what was agreed changes: contracts begin or end, prices change, credits open or lapse. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

from taximeter_billing.domain.contracts import Agreement
from taximeter_billing.domain.credits import Grant
from taximeter_schemas.periods import Period


@dataclass(frozen=True, slots=True)
class Span:
    """A part [start, end) of a period in which one agreement holds, or none, and every grant is either open or not."""

    start: datetime
    end: datetime
    agreement: Agreement | None


def spans_of(period: Period, agreements: Iterable[Agreement], grants: Iterable[Grant]) -> list[Span]:
    """The period's spans, in order; at least one."""
    known = list(agreements)
    moments = {period.start, period.end}
    for held in known:
        moments |= {held.starts, held.ends}
        moments |= {tariff.effective_from for tariff in held.terms.tariffs if tariff.effective_from}
    for grant in grants:
        moments |= {grant.effective_at} | ({grant.expires_at} if grant.expires_at else set())
    inside = sorted(moment.astimezone(UTC) for moment in moments if period.start <= moment <= period.end)
    return [
        Span(start, end, next((held for held in known if held.holds_at(start)), None))
        for start, end in pairwise(inside)
    ]


def cuts_us(spans: list[Span]) -> tuple[int, ...]:
    """The moments between the spans, in microseconds since the epoch."""
    return tuple(microseconds(span.start) for span in spans[1:])


def microseconds(moment: datetime) -> int:
    """An instant in whole microseconds since the epoch, exactly."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def days_held(held: Agreement, period: Period, time_zone: str) -> tuple[int, int]:
    """On how many of the period's local days an agreement is in force at midnight's beginning or starts, and of how many."""
    local = ZoneInfo(time_zone)
    first = max(period.start, held.starts).astimezone(local).date()
    # An agreement that ends within a day does not count that day; one that starts within it does.
    after = min(period.end, held.ends).astimezone(local).date()
    whole = (period.end.astimezone(local).date() - period.start.astimezone(local).date()).days
    return max(0, min(whole, (after - first).days)), whole
