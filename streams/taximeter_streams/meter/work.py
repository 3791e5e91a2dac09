"""What the loop has in hand: the batch that is being written, the one that comes next, and what is held behind them."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass

from confluent_kafka import Message

from taximeter_streams.meter.batch import Arrivals, Batch
from taximeter_streams.meter.holding import Held
from taximeter_streams.meter.pricing import Pricing

BATCH_EVENTS_MIN = 500
"""However slow the machine, a batch may hold that many."""


class LostPartitionError(RuntimeError):
    """The partition went to another worker, or the worker is stopping, while a step was being repeated."""


@dataclass(slots=True)
class Work:
    """A batch on its way."""

    partition: int
    arrivals: Arrivals
    batch: Batch | None = None
    """Once it is folded."""
    pricing: Pricing | None = None
    """By which it was folded."""
    position: int = -1
    """Where the partition stood when its writing began."""
    insert: Future[None] | None = None
    """Once it is under way."""
    finished: bool = False
    """Marked, told and committed."""


class InHand:
    """All that was fetched and is not done, and how much that may be."""

    def __init__(self, batch_events_max: int) -> None:
        self.writing: Work | None = None
        self.next: Work | None = None
        """To be written next, taken out of what is held. It may be folded already."""
        self._held = Held()
        self._events_max = self._events_max_now = batch_events_max

    @property
    def room(self) -> int:
        """How many messages may be fetched, beside those that are being written."""
        return self._events_max_now - len(self._held) - (len(self.next.arrivals) if self.next else 0)

    @property
    def held_since(self) -> float | None:
        """Since when what is held waits (monotonic seconds); None when nothing is."""
        return self._held.since

    def take(self, messages: list[Message], positions: Mapping[int, int], now: float) -> None:
        """Hold what was fetched. `positions` names the partitions that are ours, and where each stands in the warehouse."""
        self._held.take(messages, self.expected(positions), now)

    def expected(self, positions: Mapping[int, int]) -> dict[int, int]:
        """The partitions that are ours, and the first offset of each that was not fetched yet."""
        in_hand = [(work.partition, work.arrivals) for work in (self.writing, self.next) if work]
        return self._held.expected(positions, in_hand)

    def take_next(self) -> Work | None:
        """The batch that comes next, out of what is held unless it was taken before; None when nothing is held."""
        if self.next is None and (taken := self._held.next()):
            self.next = Work(*taken)
        return self.next

    def begin(self) -> Work | None:
        """The batch that comes next is being written from now on."""
        self.writing, self.next = self.take_next(), None
        return self.writing

    def await_insert(self) -> None:
        """One insert at a time: one that is under way comes to its end."""
        if self.writing is not None and self.writing.insert is not None:
            wait([self.writing.insert])

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget what was fetched of these partitions and is not being written."""
        for partition in partitions:
            self._held.drop(partition)
            if self.next is not None and self.next.partition == partition:
                self.next = None

    def clear(self) -> None:
        """Forget all that is not being written."""
        self._held.clear()
        self.next = None

    def shrink(self) -> None:
        """A batch took too long: the next ones are smaller."""
        least = min(BATCH_EVENTS_MIN, self._events_max)
        self._events_max_now = max(least, self._events_max_now // 2)

    def grow(self) -> None:
        """A batch is done: the next ones may be a little larger, until they are as large as they may be."""
        self._events_max_now = min(self._events_max, self._events_max_now + self._events_max // 100 + 1)
