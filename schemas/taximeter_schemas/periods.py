"""Billing and budget periods: half-open spans [start, end) of a tenant's own calendar, as instants in UTC.

A month in Berlin begins at Berlin's midnight, so its length in hours changes with the clock; all arithmetic here is on
local dates, and only the ends are turned into UTC.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from taximeter_schemas.errors import PeriodError


class PeriodKind(StrEnum):
    """How long a period lasts. A prepaid wallet's lasts for ever: it never resets."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    LIFETIME = "lifetime"


FOR_EVER = ("lifetime", datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))
"""The one period of a lifetime: its label, start and end."""


@dataclass(frozen=True, slots=True)
class Period:
    """A half-open span [start, end) in UTC, named as its tenant names it ("2026-11", "2026-11-24", "2026-11-24T08")."""

    label: str
    start: datetime
    end: datetime

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


def zone(name: str) -> ZoneInfo:
    """The IANA time zone of that name. Raises PeriodError when there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise PeriodError(f"no such time zone: {name!r}") from None


def billing_month(label: str, time_zone: str) -> Period:
    """The month "YYYY-MM" in that time zone. Raises PeriodError when the label is not a month of 1970 to 2199."""
    if not re.fullmatch(r"(19[7-9]|2[01][0-9])[0-9]-(0[1-9]|1[0-2])", label):
        raise PeriodError(f"not a month (YYYY-MM): {label!r}")
    first = date(int(label[:4]), int(label[5:]), 1)
    return _span(label, first, _next_month(first), zone(time_zone))


def period_containing(moment: datetime, kind: PeriodKind, time_zone: str) -> Period:
    """The period of that kind which holds the moment (aware, any zone), in the tenant's time zone."""
    if kind is PeriodKind.LIFETIME:
        return Period(*FOR_EVER)
    local_zone = zone(time_zone)
    local = moment.astimezone(local_zone)
    if kind is PeriodKind.HOUR:
        # Hours are counted in UTC from the local clock's own minute, so an hour that occurs twice stays two hours.
        start = moment.astimezone(UTC) - timedelta(
            minutes=local.minute, seconds=local.second, microseconds=local.microsecond
        )
        return Period(start.astimezone(local_zone).strftime("%Y-%m-%dT%H%z"), start, start + timedelta(hours=1))
    if kind is PeriodKind.DAY:
        return _span(local.date().isoformat(), local.date(), local.date() + timedelta(days=1), local_zone)
    first = local.date().replace(day=1)
    return _span(f"{first:%Y-%m}", first, _next_month(first), local_zone)


def _next_month(first: date) -> date:
    return (first + timedelta(days=32)).replace(day=1)


def _span(label: str, first: date, after: date, local_zone: ZoneInfo) -> Period:
    start = datetime.combine(first, time(), local_zone).astimezone(UTC)
    return Period(label, start, datetime.combine(after, time(), local_zone).astimezone(UTC))
