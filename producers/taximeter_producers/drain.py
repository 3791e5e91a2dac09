"""Offers the spool's oldest segment to the broker until each of its records is acknowledged, then drops it."""

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import itemgetter

from confluent_kafka import KafkaError, Message, Producer

from taximeter_producers.errors import SpoolError
from taximeter_producers.frames import SpoolRecord
from taximeter_producers.kafka_client import refused_for_good
from taximeter_producers.spool import Segment, Spool

_RETRY_SECONDS = 0.5
_log = logging.getLogger(__name__)


class Drain:
    """One segment at a time, its records in order. `on_report` hears whether each was acknowledged."""

    def __init__(self, spool: Spool, topic: str, on_report: Callable[[KafkaError | None], None]) -> None:
        self._spool = spool
        self._topic = topic
        self._on_report = on_report
        self._segment: Segment | None = None
        self._unsent: deque[tuple[int, SpoolRecord]] = deque()
        self._failed: list[tuple[int, SpoolRecord]] = []
        self._in_flight = 0
        self._retry_at = 0.0

    def advance(self, client: Producer, now: float) -> None:
        """Send what can be sent now; never waits. `now` is monotonic seconds.

        Raises SpoolError when the disk fails, KafkaException when the client takes no more messages.
        """
        if now < self._retry_at or (self._failed and self._in_flight):
            return
        if self._failed:
            # Only now is it known what failed: back into the order in which the records were spooled.
            self._unsent = deque(sorted([*self._failed, *self._unsent], key=itemgetter(0)))
            self._failed = []
        if self._segment is None and (segment := self._spool.oldest()) is not None:
            self._unsent.extend(enumerate(segment.read()))
            self._segment = segment
        self._send(client, now)
        if self._segment is not None and not (self._unsent or self._in_flight or self._failed):
            self._spool.drop(self._segment)
            self._segment = None

    def pause(self, now: float) -> None:
        """Rest for a moment: the queue is full, the broker is away, or the disk fails."""
        self._retry_at = now + _RETRY_SECONDS

    def _send(self, client: Producer, now: float) -> None:
        while self._unsent:
            place, record = self._unsent[0]
            report = partial(self._on_delivered, place, record)
            try:
                client.produce(self._topic, record.value, record.key, on_delivery=report)
            except BufferError:
                self.pause(now)
                return
            self._in_flight += 1
            self._unsent.popleft()

    def _on_delivered(self, place: int, record: SpoolRecord, error: KafkaError | None, _message: Message) -> None:
        self._in_flight -= 1
        if error is not None and refused_for_good(error) and self.set_aside(record, error):
            return
        self._on_report(error)
        if error is not None:
            self._failed.append((place, record))
            self.pause(time.monotonic())

    def set_aside(self, record: SpoolRecord, error: KafkaError) -> bool:
        """Keep what can never be delivered apart, on disk, and say so. False when the disk fails."""
        try:
            self._spool.set_aside(record, str(error))
        except SpoolError as problem:
            _log.error("%s", problem)
            return False
        _log.error("the broker refuses an event for good: %s", error, extra={"key": record.key.decode()})
        return True
