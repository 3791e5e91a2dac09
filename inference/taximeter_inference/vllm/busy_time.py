"""GPU-seconds: how the worker's busy time is shared among the sequences that ran in it. Pure.

The rule. The worker is busy while at least one sequence is between its first scheduling and its last token, and every
moment of that is split equally among the sequences that are. A sequence is settled when it ends: of each span that it ran
in, it gets what is not given away yet, divided by itself and those known to be still running there. Whoever ends last in a
span gets the rest. So the shares add up to the busy time exactly, whatever ends when; a sequence whose start was not known
while others settled (it had no token yet) cannot take back what they got.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


class BusyTime:
    """The ledger of busy time. Times are seconds of one monotonic clock; spans lie in order and never overlap."""

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._left: list[float] = []
        """Seconds of each span that are not given away."""
        self._floor = 0.0
        self.busy_seconds = 0.0
        """The union of all intervals settled so far."""

    def settle(self, start: float, end: float, others: Sequence[float]) -> float:
        """The share, in seconds, of a sequence that ran from `start` to `end`; `others` are the starts of those still running."""
        start = max(start, self._floor)
        if end <= start:
            return 0.0
        self._cover(start, end)
        running_since = sorted(others)
        for cut in (start, end, *running_since):
            self._cut(cut)
        share = 0.0
        for index in range(bisect_left(self._starts, start), bisect_left(self._starts, end)):
            given = self._left[index] / (1 + bisect_right(running_since, self._starts[index]))
            self._left[index] -= given
            share += given
        return share

    def forget(self, before: float) -> None:
        """Drop spans that end before that time: nothing that ran then is still to be settled."""
        count = bisect_right(self._ends, before)
        if count:
            self._floor = max(self._floor, self._ends[count - 1])
            del self._starts[:count], self._ends[:count], self._left[:count]

    def _cut(self, at: float) -> None:
        """Split the span that holds this moment, so that a span has the same runners throughout."""
        index = bisect_left(self._ends, at)
        if index == len(self._ends) or not self._starts[index] < at < self._ends[index]:
            return
        whole = self._ends[index] - self._starts[index]
        left = self._left[index] * ((at - self._starts[index]) / whole)
        self._starts.insert(index + 1, at)
        self._ends.insert(index, at)
        self._left.insert(index, left)
        self._left[index + 1] -= left

    def _cover(self, start: float, end: float) -> None:
        """Add the spans of [start, end] that nothing covered so far."""
        at, index = start, bisect_right(self._ends, start)
        while at < end:
            until = min(end, self._starts[index]) if index < len(self._starts) else end
            if until > at:
                self._starts.insert(index, at)
                self._ends.insert(index, until)
                self._left.insert(index, until - at)
                self.busy_seconds += until - at
            at = self._ends[index]
            index += 1
