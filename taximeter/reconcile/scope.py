"""How much of the past a reconciliation looks at, and how patiently it looks while traffic goes on. Pure values."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

Progress = Callable[[str], None]
"""Told what is being compared, one line each."""


@dataclass(frozen=True, slots=True)
class Scope:
    """One tenant or all; from a moment on (event time for usage, time of arrival for messages) or from the beginning."""

    tenant: str | None = None
    since: datetime | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """What the named queries take."""
        return {"tenant": self.tenant or "", "since": self.since or BEGINNING}


@dataclass(frozen=True, slots=True)
class Pace:
    """Between a block of raw rows and its rollups lies a moment, so a difference counts only when several looks see the same."""

    looks: int = 3
    """How often the same difference must be seen, and never none."""
    looks_max: int = 30
    """A cell that is being written differs in another way each time; after so many looks it counts all the same."""
    pause_seconds: float = 1.0
    settle_seconds: float = 5.0
    """A cell is repaired only when nothing about it changes for that long."""
    behind_seconds_max: float = 30.0
    """How long the meter may take to reach where the log ended when the reconciliation began."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Days of event time, [start, end)."""

    start: datetime
    end: datetime
