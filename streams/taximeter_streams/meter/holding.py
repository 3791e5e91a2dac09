"""Messages that were fetched and are not being written yet. Whatever a partition holds here is dropped when it is lost."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import lt

from confluent_kafka import Message

from taximeter_streams.meter.batch import Arrivals

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """What waits of one partition, in offset order: parallel lists, because an object for a message adds up."""

    since: float
    offsets: list[int] = field(default_factory=list)
    arrived_at_ms: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)


class Held:
    """What waits to be written, by partition; the partition that has waited longest is next."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}

    def __len__(self) -> int:
        return sum(len(waiting.offsets) for waiting in self._waiting.values())

    def end(self, partition: int) -> int | None:
        """The offset behind the last message held of the partition; None when none is."""
        waiting = self._waiting.get(partition)
        return waiting.offsets[-1] + 1 if waiting else None

    @property
    def since(self) -> float | None:
        """Since when the one that has waited longest waits (monotonic seconds)."""
        return next((waiting.since for waiting in self._waiting.values()), None)

    def expected(self, offsets: Mapping[int, int], in_hand: Iterable[tuple[int, Arrivals]]) -> dict[int, int]:
        """The least offset that is new of each partition that is ours. `offsets` says where each stands in the warehouse.

        A batch in hand whose partition has gone and come back behind its beginning is not written: its end is to be fetched.
        """
        expected = dict(offsets)
        for partition, arrivals in in_hand:
            if offsets.get(partition, arrivals.first + 1) <= arrivals.first:
                expected[partition] = max(expected[partition], arrivals.last + 1)
        return {partition: max(offset, self.end(partition) or 0) for partition, offset in expected.items()}

    def take(self, messages: list[Message], expected: Mapping[int, int], now: float) -> None:
        """Hold what was fetched. `expected` names the partitions that are ours, and the least offset that is new of each.

        Whole lists at a time: a call for each message adds up.
        """
        for error in filter(None, [message.error() for message in messages]):
            _log.warning("consumer: %s", error)
        good = [message for message in messages if message.error() is None]
        places = [partition_of(message) for message in good]
        for partition in sorted(set(places)):
            # A rebalance within the call may have taken the partition away, or moved its position.
            least = expected.get(partition)
            if least is None:
                continue
            own = [message for message, place in zip(good, places, strict=True) if place == partition]
            offsets = [offset_of(message) for message in own]
            if offsets[0] < least or not all(map(lt, offsets, offsets[1:])):
                own = sorted((one for one in own if offset_of(one) >= least), key=offset_of)
                offsets = [offset_of(message) for message in own]
            if own:
                waiting = self._waiting.setdefault(partition, _Waiting(now))
                waiting.offsets += offsets
                waiting.arrived_at_ms += [max(0, message.timestamp()[1]) for message in own]
                waiting.payloads += [message.value() or b"" for message in own]

    def next(self) -> tuple[int, Arrivals] | None:
        """Take out what is to be written next: of one partition, up to where the month of arrival changes."""
        if not self._waiting:
            return None
        partition = next(iter(self._waiting))
        waiting = self._waiting.pop(partition)
        months = Arrivals(waiting.offsets, waiting.arrived_at_ms, waiting.payloads).months()
        arrivals = next(months)
        if size := len(waiting.offsets) - len(arrivals):
            # First again: a partition's months must not be written out of turn, nor others wait for long.
            rest = _Waiting(
                waiting.since, waiting.offsets[-size:], waiting.arrived_at_ms[-size:], waiting.payloads[-size:]
            )
            self._waiting = {partition: rest, **self._waiting}
        return partition, arrivals

    def drop(self, partition: int) -> None:
        """Forget what is held of a partition: it is lost, or is read again from elsewhere."""
        self._waiting.pop(partition, None)

    def clear(self) -> None:
        """Forget everything."""
        self._waiting.clear()


def partition_of(message: Message) -> int:
    """Which partition the message is from."""
    return int(message.partition() or 0)


def offset_of(message: Message) -> int:
    """Where it stands in its partition."""
    return int(message.offset() or 0)
