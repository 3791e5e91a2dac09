"""A worker in the meter's group: it fetches, and knows which partitions are its own and where each of them stands.

All of it is called by the loop, or by librdkafka while the loop fetches or waits.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import Consumer, KafkaException, TopicPartition

from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_streams.meter import metrics
from taximeter_streams.meter.holding import partition_of
from taximeter_streams.meter.publishing import PublishError
from taximeter_streams.meter.pulse import Pulse
from taximeter_streams.meter.recovery import Recovery
from taximeter_streams.meter.settings import MeterSettings
from taximeter_streams.meter.work import InHand, LostPartitionError, Work

RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 10.0

FETCH_EVENTS_MAX = 5_000
"""Taken from Kafka's client at once: its messages are objects, and live until their payloads are held."""

FETCH_SECONDS_MAX = 0.2
"""How long one look for messages takes: a batch may wait for longer to fill than a worker may be silent."""

TRANSIENT = (ClickHouseError, OSError, PublishError, KafkaException)
"""What passes by itself: the step is repeated."""
_log = logging.getLogger(__name__)


class Membership:
    """The only one that talks to the consumer. What was fetched goes into `in_hand`, and is dropped with its partition."""

    def __init__(
        self,
        settings: MeterSettings,
        recovery: Recovery,
        pulse: Pulse,
        in_hand: InHand,
        stopping: threading.Event,
        before_leaving: Callable[[set[int]], None],
    ) -> None:
        self.positions: dict[int, int] = {}
        """The partitions that are ours, and the offset to go on from in each."""
        self.unconfirmed: set[int] = set()
        """Partitions whose first batch since their assignment has not been seen in the warehouse yet."""
        self._session_timeout_ms = settings.meter_session_timeout_ms
        self._recovery = recovery
        self._pulse = pulse
        self._in_hand = in_hand
        self._stopping = stopping
        self._before_leaving = before_leaving
        """Called with partitions that are to be given up in order. They are ours until it returns."""
        self._waiting = False
        """Whether a step is to be repeated, and nothing may be fetched until then."""
        self._consumer = _open_consumer(settings)

    def join(self) -> None:
        """Ask the group for partitions."""
        self._consumer.subscribe(
            [USAGE_EVENTS.name], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def leave(self) -> None:
        """Give all partitions up, and end."""
        # librdkafka aborts when it is closed before a subscription that came right after an unsubscription took effect.
        self._consumer.unsubscribe()
        self._consumer.close()

    def rejoin(self) -> None:
        """Forget every partition, and ask the group for them again: assignment recovers each from the warehouse."""
        _log.warning("asking for all partitions anew, %.1f s after the last poll", self._pulse.silent_seconds)
        self._pulse.assigned = False
        self.positions.clear()
        self._in_hand.clear()
        # Where the batch itself took that long, the next one must not; it grows back little by little.
        self._in_hand.shrink()
        self._consumer.unsubscribe()
        self.join()
        # This silence is dealt with: it must not be met a second time.
        self._pulse.heard_at = time.monotonic()

    def heard(self) -> None:
        """Note that Kafka was heard now. After a silence longer than the session allows, nothing in hand is ours."""
        if self._pulse.paused_too_long():
            self.rejoin()
        self._pulse.heard_at = time.monotonic()

    def fetch(self, seconds: float) -> None:
        """Fetch for so long, or until there is no more room."""
        began_at = now = time.monotonic()
        until = began_at + seconds
        while (room := self._in_hand.room) > 0 and (left := until - now) > 0 and not self._stopping.is_set():
            messages = self._consumer.consume(min(room, FETCH_EVENTS_MAX), min(left, FETCH_SECONDS_MAX))
            # A pause within the call, too: what it returned was fetched before.
            self.heard()
            self._in_hand.take(messages, self.positions, began_at)
            now = time.monotonic()

    def begin(self, work: Work) -> None:
        """Note where the partition stands as the writing of a batch begins. Raises LostPartitionError."""
        position = self.positions.get(work.partition)
        if position is None or work.arrivals.first < position:
            raise LostPartitionError(f"partition {work.partition} has moved on")
        work.position = position
        self.check_owned(work)

    def owns(self, work: Work) -> bool:
        """Whether its partition is still where it stood. Not after a pause, a loss, or a loss and a new assignment."""
        return not self._pulse.paused_too_long() and self.positions.get(work.partition) == work.position

    def check_owned(self, work: Work) -> None:
        """Refuse to write what may have another owner by now. Raises LostPartitionError."""
        if self._pulse.paused_too_long():
            metrics.STALE.inc()
            self.rejoin()
        if not self.owns(work):
            raise LostPartitionError(f"partition {work.partition} may have another owner by now")

    def repeat(self, step: str, partition: int, action: Callable[[], None]) -> None:
        """Do it until it succeeds; meanwhile fetch nothing, keep the group membership, and say so in `ready`."""
        wait = RETRY_SECONDS_MIN
        while True:
            self._pulse.note(step, partition)
            try:
                action()
                self._pulse.trouble = None
                return
            except TRANSIENT as error:
                metrics.RETRIES.labels(step).inc()
                self._pulse.trouble = f"partition {partition}, {step}: {error}"
                _log.warning("%s failed, trying again in %.1f s: %s", step, wait, error, extra={"partition": partition})
            with self._paused():
                self._idle(wait)
            if self._stopping.is_set() or partition not in self.positions:
                raise LostPartitionError(f"partition {partition}: gave up {step}")
            wait = min(wait * 2, RETRY_SECONDS_MAX)

    def commit(self, partition: int) -> None:
        """Show the lag to Kafka's own tools. Nothing depends on it."""
        place = TopicPartition(USAGE_EVENTS.name, partition, self.positions[partition])
        try:
            self._consumer.commit(offsets=[place], asynchronous=True)
        except KafkaException as error:
            _log.info("commit: %s", error)

    def log_end(self, partition: int) -> int | None:
        """The partition's end as the last fetch saw it; None when it may have gone to another worker by now."""
        place = TopicPartition(USAGE_EVENTS.name, partition)
        with suppress(KafkaException):
            return int(self._consumer.get_watermark_offsets(place, cached=True)[1])
        return None

    @contextmanager
    def _paused(self) -> Iterator[None]:
        assigned = self._consumer.assignment()
        if assigned:
            self._consumer.pause(assigned)
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            still = self._consumer.assignment()
            if still:
                self._consumer.resume(still)

    def _idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._stopping.is_set():
            message = self._consumer.poll(min(left, 0.2))
            self.heard()
            self._pulse.note_wait()
            if message is not None and message.error() is None:
                position = self._in_hand.expected(self.positions).get(partition_of(message))
                if position is not None:  # fetched before the pause took effect: go back to it
                    self._consumer.seek(TopicPartition(USAGE_EVENTS.name, partition_of(message), position))

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        began_at = time.monotonic()
        self._forget({place.partition for place in partitions})
        for place in partitions:
            while not self._stopping.is_set():
                self._pulse.note("recovery", place.partition)
                try:
                    place.offset = self._recovery.recover(place.partition)
                    self.positions[place.partition] = place.offset
                    self.unconfirmed.add(place.partition)
                    break
                except TRANSIENT as error:
                    self._pulse.trouble = f"partition {place.partition}, recovery: {error}"
                    _log.warning("recovery failed, trying again: %s", error, extra={"partition": place.partition})
                    time.sleep(RETRY_SECONDS_MIN)
        consumer.assign(partitions)
        # librdkafka remembers a pause over a loss of the partition: one lost while it was paused would never be read again.
        if partitions:
            (consumer.pause if self._waiting else consumer.resume)(partitions)
        self._pulse.trouble, self._pulse.lost = None, frozenset()
        self._pulse.assigned = True
        self._pulse.heard_at = self._heard_since(began_at, consumer, partitions)
        _log.info("assigned", extra={"partitions": {place.partition: place.offset for place in partitions}})

    def _heard_since(self, began_at: float, consumer: Consumer, partitions: list[TopicPartition]) -> float:
        """When the group surely still counted on us: as recovery began, or, after a long one, now if it takes our commit."""
        asked_at = time.monotonic()
        if (asked_at - began_at) * 1000 < self._session_timeout_ms / 2:
            return began_at
        try:
            consumer.commit(offsets=partitions, asynchronous=False)
        except KafkaException as error:
            _log.warning("the group does not know us any more: %s", error)
            return began_at
        return asked_at

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        going = {place.partition for place in partitions}
        self._before_leaving(going)
        self._forget(going)

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lost = {place.partition for place in partitions}
        self._pulse.lost |= lost
        _log.warning("partitions lost: Kafka was not heard for a session", extra={"partitions": sorted(lost)})
        self._forget(lost)

    def _forget(self, partitions: set[int]) -> None:
        """Whatever was fetched of these partitions is not ours any more."""
        self._in_hand.await_insert()
        for partition in partitions:
            self.positions.pop(partition, None)
        self._in_hand.drop(partitions)


def _open_consumer(settings: MeterSettings) -> Consumer:
    """A member of the meter's group. It commits nothing by itself."""
    return Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "group.id": settings.meter_group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": settings.meter_session_timeout_ms,
            "heartbeat.interval.ms": max(500, settings.meter_session_timeout_ms // 5),
            "max.poll.interval.ms": max(300_000, settings.meter_session_timeout_ms),
            "queued.max.messages.kbytes": settings.meter_queue_kbytes_max,
            "fetch.wait.max.ms": 50,
            "allow.auto.create.topics": False,
        }
    )
