"""Moments as people write them on a command line: a day, a time, or how long ago. Pure."""

import re
from datetime import UTC, datetime, timedelta

_AGO = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class MomentError(ValueError):
    """That is no moment; write 2026-11-01, 2026-11-01T08:00Z, or how long ago: 90m, 36h, 7d, 2w."""

    def __str__(self) -> str:
        return f"{self.args[0]!r} is no moment; write 2026-11-01, 2026-11-01T08:00Z, or how long ago: 90m, 36h, 7d, 2w"


def moment_of(text: str, now: datetime) -> datetime:
    """The moment in UTC; a time without an offset is UTC. Raises MomentError."""
    if found := _AGO.fullmatch(text.strip()):
        return now - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise MomentError(text) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
