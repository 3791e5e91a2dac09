"""Recurring days: a month after January the 31st is February's last day, and after that March the 31st again. Pure."""

from calendar import monthrange
from collections.abc import Iterator
from datetime import date


def anchored(first: date) -> Iterator[date]:
    """The first day and every monthly return of it: its own day of the month, or the month's last where there is none.

    Each is counted from the first, so a short month does not move the ones after it.
    """
    for months in range(12 * (date.max.year - first.year) - first.month + 13):
        years, month = divmod(first.month - 1 + months, 12)
        year = first.year + years
        yield date(year, month + 1, min(first.day, monthrange(year, month + 1)[1]))
