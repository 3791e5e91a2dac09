"""Notices messages that the framework passed over, so that they are read after all. Pure.

faust drops a message that is being handed over when partitions move, notes it as read, and takes the gap behind it for one
that the log itself has. So at a gap we go back to where it begins, once. What comes first then is what the log has next.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

P = TypeVar("P")


class Step(Enum):
    """What to do with a message."""

    HANDLE = "handle"
    PASS = "pass"
    """It was handed over before we went back; it comes again."""
    GO_BACK = "go back"
    """Messages are missing before it: read on from `Reading.expected`."""


@dataclass(slots=True)
class Reading(Generic[P]):
    """By partition, which offset must be read next (or something before it again), and the gap that is being closed."""

    expected: dict[P, int] = field(default_factory=dict)
    _gap_shown_by: dict[P, int] = field(default_factory=dict)

    def look(self, partition: P, offset: int) -> tuple[Step, int]:
        """What to do with this message, and how many offsets before it the log turned out not to have."""
        expected = self.expected.get(partition, offset)
        missing = 0
        if offset > expected:
            shown_by = self._gap_shown_by.get(partition)
            if shown_by is None:
                self._gap_shown_by[partition] = offset
                return Step.GO_BACK, 0
            if offset > shown_by:
                return Step.PASS, 0
            missing = offset - expected
        self._gap_shown_by.pop(partition, None)
        self.expected[partition] = offset + 1
        return Step.HANDLE, missing

    def keep(self, partitions: set[P]) -> None:
        """Partitions were assigned: one that stays is read on from where it was, one that was elsewhere begins anew."""
        self.expected = {one: offset for one, offset in self.expected.items() if one in partitions}
        self._gap_shown_by.clear()
