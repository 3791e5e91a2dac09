"""One meter worker: takes batches from Kafka, writes each exactly once, tells budgets, then commits.

The warehouse is the offset store. On assignment the worker asks it for the partition's last batch. Unless it knows that the
insert succeeded, it writes that batch again under its token (a no-op, or the repair of a rollup that a crash cut off). It sends
the batch's spend again and goes on behind it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from operator import lt
from typing import Any

from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from taximeter_producers.control import ControlFollower
from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_streams.meter import metrics
from taximeter_streams.meter.batch import Arrivals, Batch, Folding, Place
from taximeter_streams.meter.dedupe import DedupeIndex
from taximeter_streams.meter.log_end import LogEnd
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.publishing import Publisher, PublishError
from taximeter_streams.meter.settings import MeterSettings
from taximeter_streams.meter.spending import spend_records
from taximeter_streams.meter.warehouse import Warehouse

RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 10.0
BATCH_EVENTS_MIN = 500
"""However slow the machine, a batch may hold that many."""

STUCK_SECONDS_MAX = 8.0
"""A loop that has not come round for that long reports itself unhealthy, and names the partition and the step it is in."""

_TRANSIENT = (ClickHouseError, OSError, PublishError, KafkaException)
_log = logging.getLogger(__name__)


class LostPartitionError(RuntimeError):
    """The partition went to another worker, or the worker is stopping, while a step was being repeated."""


class Meter:
    """The loop. `alive` and `ready` are asked by the health server's thread."""

    def __init__(
        self,
        settings: MeterSettings,
        warehouse: Warehouse,
        index: DedupeIndex,
        publisher: Publisher,
        control: ControlFollower,
        folding: Folding,
    ) -> None:
        self._settings = settings
        self._warehouse = warehouse
        self._index = index
        self._publisher = publisher
        self._control = control
        self._folding = folding
        self._pricing = Pricing(control.snapshot())
        self._next_offset: dict[int, int] = {}
        self._unconfirmed: set[int] = set()
        """Partitions whose first batch since their assignment has not been seen in the warehouse yet."""
        self._batch_events_max = settings.meter_batch_events_max
        self._stopping = threading.Event()
        self._polled_at = time.monotonic()
        self._assigned = False
        self._waiting = False
        """Whether a step is to be repeated, and nothing may be fetched until then."""
        self._trouble: str | None = None
        self._doing: tuple[float, str, int | None] = (self._polled_at, "starting", None)
        """Since when (monotonic seconds), which step, of which partition."""
        publisher.on_wait = self._note_wait
        self._log_end = LogEnd(settings.kafka_bootstrap_servers)
        self.lag = metrics.Lag(self._next_offset.copy, self._log_end.end_of)
        self._consumer = Consumer(
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

    def alive(self) -> tuple[bool, dict[str, object]]:
        """Whether the loop still comes round. It does while it waits for Kafka or ClickHouse, unless a call never returns."""
        since, step, partition = self._doing
        seconds = time.monotonic() - since
        stuck = seconds > STUCK_SECONDS_MAX + self._settings.meter_linger_ms / 1000
        state: dict[str, object] = {"step": step, "seconds_in_step": round(seconds, 1)}
        return not stuck, state if partition is None else {"partition": partition, **state}

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether the worker is really working, and where it stands."""
        silent = time.monotonic() - self._polled_at
        stuck = silent > self._settings.meter_session_timeout_ms / 1000
        state: dict[str, object] = {
            "partitions": sorted(self._next_offset.copy()),
            "seconds_since_poll": round(silent, 1),
        }
        if stuck:
            state |= self.alive()[1]
        if self._trouble:
            state["trouble"] = self._trouble
        return self._assigned and not stuck and self._trouble is None, state

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Take and write batches until `stop` is called."""
        self._subscribe()
        try:
            while not self._stopping.is_set():
                self._note_poll()
                self._take_batches()
        finally:
            self._consumer.close()

    def _subscribe(self) -> None:
        self._consumer.subscribe(
            [USAGE_EVENTS.name], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def _take_batches(self) -> None:
        self._note("polling")
        messages = self._consumer.consume(self._batch_events_max, self._settings.meter_linger_ms / 1000)
        # A pause within the call, too: what it returned was fetched before.
        self._note_poll()
        for partition, arrivals in self._by_partition(messages):
            for batch in arrivals.months():
                try:
                    self._write(partition, batch)
                except LostPartitionError as lost:
                    _log.warning("batch given up: %s", lost, extra={"partition": partition})
                    break
        most = self._settings.meter_batch_events_max
        self._batch_events_max = min(most, self._batch_events_max + most // 100 + 1)

    def _by_partition(self, messages: list[Message]) -> Iterator[tuple[int, Arrivals]]:
        """What arrived, each partition's in offset order. Whole lists at a time: a call for each message adds up."""
        for error in filter(None, [message.error() for message in messages]):
            _log.warning("consumer: %s", error)
        good = [message for message in messages if message.error() is None]
        places = [_partition(message) for message in good]
        for partition in sorted(set(places)):
            # A rebalance within the call may have taken the partition away, or moved its position.
            expected = self._next_offset.get(partition)
            if expected is None:
                continue
            own = [message for message, place in zip(good, places, strict=True) if place == partition]
            offsets = [_offset(message) for message in own]
            if offsets[0] < expected or not all(map(lt, offsets, offsets[1:])):
                own = sorted((one for one in own if _offset(one) >= expected), key=_offset)
                offsets = [_offset(message) for message in own]
            if own:
                arrived_at_ms = [max(0, message.timestamp()[1]) for message in own]
                yield partition, Arrivals(offsets, arrived_at_ms, [message.value() or b"" for message in own])

    def _write(self, partition: int, arrivals: Arrivals) -> None:
        if partition not in self._next_offset or arrivals.first < self._next_offset[partition]:
            raise LostPartitionError(f"partition {partition} has moved on")
        position = self._next_offset[partition]
        self._check_own(partition, position)
        self._note("folding", partition)
        snapshot = self._control.snapshot()
        if self._pricing.snapshot is not snapshot:
            self._pricing = Pricing(snapshot)
        batch = self._folding.fold(arrivals, Place(self._settings.log_id, partition), self._index, self._pricing)
        # Rejected messages leave before the insert: after it, a crash would lose the only copy that names the reason.
        self._repeat("rejected", partition, lambda: self._publisher.send_rejected(batch.rejected, partition))
        self._repeat("insert", partition, lambda: self._insert(partition, position, batch, arrivals.last))
        batch.mark(self._index)
        self._next_offset[partition] = arrivals.last + 1
        spent = batch.spend(datetime.now(UTC))
        self._repeat("spend", partition, lambda: self._publisher.send_packed_spend(spent))
        self._commit(partition)
        self._account(partition, arrivals, batch.counts())

    def _insert(self, partition: int, position: int, batch: Batch, last: int) -> None:
        self._check_own(partition, position)
        with metrics.INSERT_SECONDS.time():
            batch.insert(self._warehouse)
        # A pause within the call: another owner may have written from the same offset, and then the server dropped our block.
        self._check_own(partition, position)
        if partition in self._unconfirmed:
            self._confirm(partition, last)

    def _confirm(self, partition: int, last: int) -> None:
        """See that the first batch since the assignment is the one that is stored, not a late one of the owner before.

        The owner before can only be late with the batch that begins where ours does; once ours is stored, the server drops its.
        """
        stored = self._warehouse.last_batch(partition)
        if stored is None or stored.last != last:
            metrics.STALE.inc()
            self._rejoin()
            raise LostPartitionError(f"the owner before wrote partition {partition} after it had been assigned here")
        self._unconfirmed.discard(partition)

    def _check_own(self, partition: int, position: int) -> None:
        """Refuse to write what may have another owner by now: after a pause, a loss, or a loss and a new assignment."""
        if self._paused_too_long():
            metrics.STALE.inc()
            self._rejoin()
        if self._next_offset.get(partition) != position:
            raise LostPartitionError(f"partition {partition} may have another owner by now")

    def _paused_too_long(self) -> bool:
        silent_ms = (time.monotonic() - self._polled_at) * 1000
        return silent_ms > self._settings.meter_session_timeout_ms * 0.8

    def _note(self, step: str, partition: int | None = None) -> None:
        self._doing = (time.monotonic(), step, partition)

    def _note_wait(self) -> None:
        """The same step goes on, and the loop is not stuck in it."""
        _since, step, partition = self._doing
        self._note(step, partition)

    def _note_poll(self) -> None:
        """Note that Kafka was heard now. After a silence longer than the session allows, nothing in hand is ours."""
        if self._paused_too_long():
            self._rejoin()
        self._polled_at = time.monotonic()

    def _rejoin(self) -> None:
        """Forget every partition, and ask the group for them again: assignment recovers each from the warehouse."""
        _log.warning("asking for all partitions anew, %.1f s after the last poll", time.monotonic() - self._polled_at)
        self._next_offset.clear()
        # Where the batch itself took that long, the next one must not; it grows back little by little.
        least = min(BATCH_EVENTS_MIN, self._settings.meter_batch_events_max)
        self._batch_events_max = max(least, self._batch_events_max // 2)
        self._consumer.unsubscribe()
        self._subscribe()

    def _repeat(self, step: str, partition: int, action: Callable[[], None]) -> None:
        """Do it until it succeeds; meanwhile fetch nothing, keep the group membership, and say so in `ready`."""
        wait = RETRY_SECONDS_MIN
        while True:
            self._note(step, partition)
            try:
                action()
                self._trouble = None
                return
            except _TRANSIENT as error:
                metrics.RETRIES.labels(step).inc()
                self._trouble = f"partition {partition}, {step}: {error}"
                _log.warning("%s failed, trying again in %.1f s: %s", step, wait, error, extra={"partition": partition})
            with self._paused():
                self._idle(wait)
            if self._stopping.is_set() or partition not in self._next_offset:
                raise LostPartitionError(f"partition {partition}: gave up {step}")
            wait = min(wait * 2, RETRY_SECONDS_MAX)

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
            self._note_poll()
            self._note_wait()
            if message is not None and message.error() is None and _partition(message) in self._next_offset:
                # Fetched before the pause took effect: go back to it.
                position = self._next_offset[_partition(message)]
                self._consumer.seek(TopicPartition(USAGE_EVENTS.name, _partition(message), position))

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        began_at = time.monotonic()
        for place in partitions:
            while not self._stopping.is_set():
                self._note("recovery", place.partition)
                try:
                    place.offset = self._recover(place.partition)
                    self._next_offset[place.partition] = place.offset
                    self._unconfirmed.add(place.partition)
                    break
                except _TRANSIENT as error:
                    self._trouble = f"partition {place.partition}, recovery: {error}"
                    _log.warning("recovery failed, trying again: %s", error, extra={"partition": place.partition})
                    time.sleep(RETRY_SECONDS_MIN)
        consumer.assign(partitions)
        # librdkafka remembers a pause over a loss of the partition: one lost while it was paused would never be read again.
        if partitions:
            (consumer.pause if self._waiting else consumer.resume)(partitions)
        self._trouble = None
        self._assigned = True
        self._polled_at = self._heard_since(began_at, consumer, partitions)
        _log.info("assigned", extra={"partitions": {place.partition: place.offset for place in partitions}})

    def _heard_since(self, began_at: float, consumer: Consumer, partitions: list[TopicPartition]) -> float:
        """When the group surely still counted on us: as recovery began, or, after a long one, now if it takes our commit."""
        asked_at = time.monotonic()
        if (asked_at - began_at) * 1000 < self._settings.meter_session_timeout_ms / 2:
            return began_at
        try:
            consumer.commit(offsets=partitions, asynchronous=False)
        except KafkaException as error:
            _log.warning("the group does not know us any more: %s", error)
            return began_at
        return asked_at

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for place in partitions:
            self._next_offset.pop(place.partition, None)

    def _recover(self, partition: int) -> int:
        """Make the partition whole and return the offset to go on from (the log's beginning when nothing is stored)."""
        key, now = self._partition_key(partition), datetime.now(UTC)
        stored = self._warehouse.last_batch(partition)
        known_to = self._index.known_to(key)
        if stored is None:
            self._rebuild_index(partition, known_to, now)
            return 0
        columns = self._warehouse.batch_columns(partition, stored.first)
        if known_to is None or known_to < stored.last:
            # Nobody here saw the insert succeed. An old batch is let be: its token may be forgotten, and it would count twice.
            if self._warehouse.remembers(stored, now):
                self._warehouse.insert(columns)
            self._rebuild_index(partition, known_to, now)
            self._index.mark(key, stored.last, [])
        self._publisher.send_spend(spend_records(dict(columns), now))
        return stored.last + 1

    def _rebuild_index(self, partition: int, known_to: int | None, now: datetime) -> None:
        """Read from the warehouse what the partition has counted and the index lacks."""
        for chunk in self._warehouse.identities(partition, known_to, now):
            self._index.mark(f"{self._partition_key(partition)}/rebuilding", 0, chunk)
            self._note_wait()

    def _partition_key(self, partition: int) -> str:
        return f"{self._settings.log_id}/{partition}"

    def _commit(self, partition: int) -> None:
        """Show the lag to Kafka's own tools. Nothing depends on it."""
        place = TopicPartition(USAGE_EVENTS.name, partition, self._next_offset[partition])
        try:
            self._consumer.commit(offsets=[place], asynchronous=True)
        except KafkaException as error:
            _log.info("commit: %s", error)

    def _account(self, partition: int, arrivals: Arrivals, counts: dict[tuple[str, str], int]) -> None:
        for (disposition, reason), count in counts.items():
            metrics.MESSAGES.labels(disposition, reason).inc(count)
        metrics.BATCH_MESSAGES.observe(len(arrivals))
        metrics.POSITION.labels(partition).set(arrivals.last + 1)
        self.lag.written(partition, arrivals.arrived_at_ms[-1])
        place = TopicPartition(USAGE_EVENTS.name, partition)
        with suppress(KafkaException):  # the partition may have gone to another worker by now
            self._log_end.seen(partition, self._consumer.get_watermark_offsets(place, cached=True)[1])
        outcome: dict[str, Any] = {"/".join(filter(None, key)): count for key, count in counts.items()}
        _log.info("batch", extra={"partition": partition, "first": arrivals.first, "last": arrivals.last, **outcome})


def _partition(message: Message) -> int:
    return int(message.partition() or 0)


def _offset(message: Message) -> int:
    return int(message.offset() or 0)
