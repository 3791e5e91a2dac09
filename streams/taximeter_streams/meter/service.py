"""One meter worker: takes batches from Kafka, writes each exactly once, tells budgets, then commits.

The warehouse is the offset store. On assignment the worker asks it for the partition's last batch. Unless it knows that the
insert succeeded, it writes that batch again under its token (a no-op, or the repair of a rollup that a crash cut off). It sends
the batch's spend again and goes on behind it. While ClickHouse inserts a batch, the worker fetches the next one and folds it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import Consumer, KafkaException, TopicPartition

from taximeter_producers.control import ControlFollower
from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_streams.meter import metrics
from taximeter_streams.meter.ahead import IndexAhead
from taximeter_streams.meter.batch import Arrivals, Batch, Folding, Place
from taximeter_streams.meter.dedupe import DedupeIndex, KnownIdentities
from taximeter_streams.meter.holding import Held, partition_of
from taximeter_streams.meter.log_end import LogEnd
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.publishing import Publisher, PublishError
from taximeter_streams.meter.pulse import Pulse, State
from taximeter_streams.meter.recovery import Recovery
from taximeter_streams.meter.settings import MeterSettings
from taximeter_streams.meter.warehouse import Warehouse
from taximeter_streams.meter.work import LostPartitionError, Work, open_consumer

RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 10.0
BATCH_EVENTS_MIN = 500
"""However slow the machine, a batch may hold that many."""

AHEAD_SECONDS = 0.005
"""How long a look for more messages takes while an insert is under way: by so much its end may be noticed late."""

FETCH_EVENTS_MAX = 5_000
"""Taken from Kafka's client at once: its messages are objects, and live until their payloads are held."""

FETCH_SECONDS_MAX = 0.2
"""How long one look for messages takes: a batch may wait for longer to fill than a worker may be silent."""

_TRANSIENT = (ClickHouseError, OSError, PublishError, KafkaException)
_log = logging.getLogger(__name__)


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
        self._held = Held()
        self._next: Work | None = None
        """To be written next, taken out of what is held. It may be folded already."""
        self._writing: Work | None = None
        self._inserting = ThreadPoolExecutor(1, "meter-insert")
        self._unconfirmed: set[int] = set()
        """Partitions whose first batch since their assignment has not been seen in the warehouse yet."""
        self._batch_events_max = settings.meter_batch_events_max
        self._stopping = threading.Event()
        self._pulse = Pulse(settings.meter_session_timeout_ms, settings.meter_linger_ms)
        self._waiting = False
        """Whether a step is to be repeated, and nothing may be fetched until then."""
        publisher.on_wait = self._pulse.note_wait
        self._recovery = Recovery(settings.log_id, warehouse, index, publisher, self._pulse.note_wait)
        self._log_end = LogEnd(settings.kafka_bootstrap_servers)
        self.lag = metrics.Lag(self._next_offset.copy, self._log_end.end_of)
        self._consumer = open_consumer(settings)

    def alive(self) -> State:
        """For /healthz."""
        return self._pulse.alive()

    def ready(self) -> State:
        """For /readyz."""
        return self._pulse.ready(self._next_offset.copy())

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Take and write batches until `stop` is called."""
        self._subscribe()
        try:
            while not self._stopping.is_set():
                self._note_poll()
                self._turn()
        finally:
            # librdkafka aborts when it is closed before a subscription that came right after an unsubscription took effect.
            self._consumer.unsubscribe()
            self._consumer.close()
            self._inserting.shutdown()

    def _subscribe(self) -> None:
        self._consumer.subscribe(
            [USAGE_EVENTS.name], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _turn(self) -> None:
        """Write a batch that is full, or has waited long enough; otherwise wait for more."""
        if self._next is None:
            self._wait_for_messages()
            self._next = self._take_held()
        self._writing, self._next = self._next, None
        if self._writing is None:
            return
        try:
            self._write(self._writing)
        except LostPartitionError as lost:
            _log.warning("batch given up: %s", lost, extra={"partition": self._writing.partition})
            if self._next is not None:  # it may have been folded as if that one had been stored
                self._next.batch = None
        finally:
            self._writing = None
        most = self._settings.meter_batch_events_max
        self._batch_events_max = min(most, self._batch_events_max + most // 100 + 1)

    def _wait_for_messages(self) -> None:
        self._pulse.note("polling")
        linger = self._settings.meter_linger_ms / 1000
        since = self._held.since
        left = linger if since is None else since + linger - time.monotonic()
        if left > 0 and self._room() > 0:
            self._fetch(left)

    def _room(self) -> int:
        """How many messages may be fetched, beside those that are being written."""
        return self._batch_events_max - len(self._held) - (len(self._next.arrivals) if self._next else 0)

    def _fetch(self, seconds: float) -> None:
        began_at = now = time.monotonic()
        while (room := self._room()) > 0 and (left := began_at + seconds - now) > 0 and not self._stopping.is_set():
            messages = self._consumer.consume(min(room, FETCH_EVENTS_MAX), min(left, FETCH_SECONDS_MAX))
            # A pause within the call, too: what it returned was fetched before.
            self._note_poll()
            self._held.take(messages, self._expected(), began_at)
            now = time.monotonic()

    def _expected(self) -> dict[int, int]:
        """The partitions that are ours, and the first offset of each that was not fetched yet."""
        in_hand = [(work.partition, work.arrivals) for work in (self._writing, self._next) if work]
        return self._held.expected(self._next_offset, in_hand)

    def _take_held(self) -> Work | None:
        taken = self._held.next()
        return Work(*taken) if taken else None

    def _write(self, work: Work) -> None:
        partition, arrivals = work.partition, work.arrivals
        if partition not in self._next_offset or arrivals.first < self._next_offset[partition]:
            raise LostPartitionError(f"partition {partition} has moved on")
        work.position = self._next_offset[partition]
        self._check_own(partition, work.position)
        self.lag.taken(partition, arrivals.arrived_at_ms[0])
        self._pulse.note("folding", partition)
        batch = self._folded(work, self._index)
        # Rejected messages leave before the insert: after it, a crash would lose the only copy that names the reason.
        self._repeat("rejected", partition, lambda: self._publisher.send_rejected(batch.rejected, partition))
        self._repeat("insert", partition, lambda: self._insert(work, batch))
        if not work.finished:
            self._finish(work, batch, lambda send: self._repeat("spend", partition, send))

    def _folded(self, work: Work, index: KnownIdentities) -> Batch:
        """The batch, folded by what is declared now, unless it is already."""
        snapshot = self._control.snapshot()
        if self._pricing.snapshot is not snapshot:
            self._pricing = Pricing(snapshot)
        if work.batch is None or work.pricing is not self._pricing:
            place = Place(self._settings.log_id, work.partition)
            work.batch = self._folding.fold(work.arrivals, place, index, self._pricing)
            work.pricing = self._pricing
        return work.batch

    def _insert(self, work: Work, batch: Batch) -> None:
        self._check_own(work.partition, work.position)
        work.insert = self._inserting.submit(self._insert_timed, batch)
        try:
            self._read_ahead(work.insert, batch)
        finally:
            wait([work.insert])
        if not work.finished:
            work.insert.result()
            # A pause within the call: another owner may have written from the same offset, and then our block was dropped.
            self._check_own(work.partition, work.position)
            if not self._is_stored(work):
                metrics.STALE.inc()
                self._rejoin()
                raise LostPartitionError(
                    f"the owner before wrote partition {work.partition} after it had been assigned here"
                )

    def _insert_timed(self, batch: Batch) -> None:
        with metrics.INSERT_SECONDS.time():
            batch.insert(self._warehouse)

    def _read_ahead(self, insert: Future[None], batch: Batch) -> None:
        """While the insert is under way, fetch what comes next, and fold it once nothing more is wanted.

        Not for longer than a batch may take in any case, so that a worker whose insert never returns leaves the group.
        """
        until = time.monotonic() + self._pulse.writing_seconds_max
        while not insert.done() and not self._stopping.is_set() and time.monotonic() < until:
            if self._room() > 0:
                self._note_poll()
                self._fetch(AHEAD_SECONDS)
                continue
            self._next = self._next or self._take_held()
            if self._next is None or self._next.batch is not None:
                return
            self._folded(self._next, IndexAhead(self._index, *batch.counted()))

    def _finish(self, work: Work, batch: Batch, send: Callable[[Callable[[], None]], None]) -> None:
        """What follows the insert. `send` sends the spend records, once or until it succeeds."""
        batch.mark(self._index)
        self._next_offset[work.partition] = work.arrivals.last + 1
        spent = batch.spend(datetime.now(UTC))
        send(lambda: self._publisher.send_packed_spend(spent))
        self._commit(work.partition)
        self._account(work.partition, work.arrivals, batch.counts())
        work.finished = True

    def _is_stored(self, work: Work) -> bool:
        """Whether the first batch since the assignment is the one that is stored, not a late one of the owner before.

        The owner before can only be late with the batch that begins where ours does; once ours is stored, the server drops its.
        """
        if work.partition in self._unconfirmed:
            stored = self._warehouse.last_batch(work.partition)
            if stored is None or stored.last != work.arrivals.last:
                return False
            self._unconfirmed.discard(work.partition)
        return True

    def _check_own(self, partition: int, position: int) -> None:
        """Refuse to write what may have another owner by now: after a pause, a loss, or a loss and a new assignment."""
        if self._pulse.paused_too_long():
            metrics.STALE.inc()
            self._rejoin()
        if self._next_offset.get(partition) != position:
            raise LostPartitionError(f"partition {partition} may have another owner by now")

    def _note_poll(self) -> None:
        """Note that Kafka was heard now. After a silence longer than the session allows, nothing in hand is ours."""
        if self._pulse.paused_too_long():
            self._rejoin()
        self._pulse.heard_at = time.monotonic()

    def _rejoin(self) -> None:
        """Forget every partition, and ask the group for them again: assignment recovers each from the warehouse."""
        _log.warning("asking for all partitions anew, %.1f s after the last poll", self._pulse.silent_seconds)
        self._next_offset.clear()
        self._held.clear()
        self._next = None
        # Where the batch itself took that long, the next one must not; it grows back little by little.
        least = min(BATCH_EVENTS_MIN, self._settings.meter_batch_events_max)
        self._batch_events_max = max(least, self._batch_events_max // 2)
        self._consumer.unsubscribe()
        self._subscribe()

    def _repeat(self, step: str, partition: int, action: Callable[[], None]) -> None:
        """Do it until it succeeds; meanwhile fetch nothing, keep the group membership, and say so in `ready`."""
        wait = RETRY_SECONDS_MIN
        while True:
            self._pulse.note(step, partition)
            try:
                action()
                self._pulse.trouble = None
                return
            except _TRANSIENT as error:
                metrics.RETRIES.labels(step).inc()
                self._pulse.trouble = f"partition {partition}, {step}: {error}"
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
            self._pulse.note_wait()
            if message is not None and message.error() is None:
                position = self._expected().get(partition_of(message))
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
                    self._next_offset[place.partition] = place.offset
                    self._unconfirmed.add(place.partition)
                    break
                except _TRANSIENT as error:
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
        if (asked_at - began_at) * 1000 < self._settings.meter_session_timeout_ms / 2:
            return began_at
        try:
            consumer.commit(offsets=partitions, asynchronous=False)
        except KafkaException as error:
            _log.warning("the group does not know us any more: %s", error)
            return began_at
        return asked_at

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        going = {place.partition for place in partitions}
        work = self._writing
        if work is not None and work.batch is not None and work.insert is not None and work.partition in going:
            # The partition is ours until this returns: the batch is finished first, or left to the next owner.
            try:
                work.insert.result()
                current = self._next_offset.get(work.partition) == work.position
                if current and not self._pulse.paused_too_long() and self._is_stored(work):
                    self._finish(work, work.batch, lambda send: send())
            except _TRANSIENT as error:
                _log.warning("a batch is left to the next owner: %s", error, extra={"partition": work.partition})
        self._forget(going)

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lost = {place.partition for place in partitions}
        self._pulse.lost |= lost
        _log.warning("partitions lost: Kafka was not heard for a session", extra={"partitions": sorted(lost)})
        self._forget(lost)

    def _forget(self, partitions: set[int]) -> None:
        """Whatever was fetched of these partitions is not ours any more. One insert at a time: one under way comes to its end."""
        if self._writing is not None and self._writing.insert is not None:
            wait([self._writing.insert])
        for partition in partitions:
            self._next_offset.pop(partition, None)
            self._held.drop(partition)
            if self._next is not None and self._next.partition == partition:
                self._next = None

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
