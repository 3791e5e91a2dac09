"""One meter worker: takes batches from Kafka, writes each exactly once, tells budgets, then commits.

The warehouse is the offset store. On assignment the worker asks it for the partition's last batch. Unless it knows that the
insert succeeded, it writes that batch again under its token (a no-op, or the repair of a rollup that a crash cut off). It sends
the batch's spend again and goes on behind it. While ClickHouse inserts a batch, the worker fetches the next one and folds it.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Any

from taximeter_producers.control import ControlFollower
from taximeter_streams.meter import metrics
from taximeter_streams.meter.ahead import IndexAhead
from taximeter_streams.meter.batch import Batch, Folding, Place
from taximeter_streams.meter.dedupe import DedupeIndex, KnownIdentities
from taximeter_streams.meter.log_end import LogEnd
from taximeter_streams.meter.membership import TRANSIENT, Membership
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.publishing import Publisher
from taximeter_streams.meter.pulse import Pulse, State
from taximeter_streams.meter.recovery import Recovery
from taximeter_streams.meter.settings import MeterSettings
from taximeter_streams.meter.warehouse import Warehouse
from taximeter_streams.meter.work import InHand, LostPartitionError, Work

AHEAD_SECONDS = 0.005
"""How long a look for more messages takes while an insert is under way: by so much its end may be noticed late."""

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
        self._log_id = settings.log_id
        self._linger_seconds = settings.meter_linger_ms / 1000
        self._warehouse = warehouse
        self._index = index
        self._publisher = publisher
        self._control = control
        self._folding = folding
        self._pricing = Pricing(control.snapshot())
        self._in_hand = InHand(settings.meter_batch_events_max)
        self._inserting = ThreadPoolExecutor(1, "meter-insert")
        self._stopping = threading.Event()
        self._pulse = Pulse(settings.meter_session_timeout_ms, settings.meter_linger_ms)
        publisher.on_wait = self._pulse.note_wait
        recovery = Recovery(settings.log_id, warehouse, index, publisher, self._pulse.note_wait)
        self._group = Membership(
            settings, recovery, self._pulse, self._in_hand, self._stopping, before_leaving=self._finish_under_way
        )
        self._log_end = LogEnd(settings.kafka_bootstrap_servers)
        self.lag = metrics.Lag(self._group.positions.copy, self._log_end.end_of)

    def alive(self) -> State:
        """For /healthz."""
        return self._pulse.alive()

    def ready(self) -> State:
        """For /readyz."""
        return self._pulse.ready(self._group.positions.copy())

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Take and write batches until `stop` is called."""
        self._group.join()
        try:
            while not self._stopping.is_set():
                self._group.heard()
                self._turn()
        finally:
            self._group.leave()
            self._inserting.shutdown()

    def _turn(self) -> None:
        """Write a batch that is full, or has waited long enough; otherwise wait for more."""
        if self._in_hand.next is None:
            self._wait_for_messages()
        work = self._in_hand.begin()
        if work is None:
            return
        try:
            self._write(work)
        except LostPartitionError as lost:
            _log.warning("batch given up: %s", lost, extra={"partition": work.partition})
            if self._in_hand.next is not None:  # it may have been folded as if that one had been stored
                self._in_hand.next.batch = None
        finally:
            self._in_hand.writing = None
        self._in_hand.grow()

    def _wait_for_messages(self) -> None:
        self._pulse.note("polling")
        since = self._in_hand.held_since
        left = self._linger_seconds if since is None else since + self._linger_seconds - time.monotonic()
        if left > 0:
            self._group.fetch(left)

    def _write(self, work: Work) -> None:
        partition = work.partition
        self._group.begin(work)
        self.lag.taken(partition, work.arrivals.arrived_at_ms[0])
        self._pulse.note("folding", partition)
        batch = self._folded(work, self._index)
        # Rejected messages leave before the insert: after it, a crash would lose the only copy that names the reason.
        self._group.repeat("rejected", partition, lambda: self._publisher.send_rejected(batch.rejected, partition))
        self._group.repeat("insert", partition, lambda: self._insert(work, batch))
        if not work.finished:
            self._finish(work, batch, lambda send: self._group.repeat("spend", partition, send))

    def _folded(self, work: Work, index: KnownIdentities) -> Batch:
        """The batch, folded by what is declared now, unless it is already."""
        snapshot = self._control.snapshot()
        if self._pricing.snapshot is not snapshot:
            self._pricing = Pricing(snapshot)
        if work.batch is None or work.pricing is not self._pricing:
            place = Place(self._log_id, work.partition)
            work.batch = self._folding.fold(work.arrivals, place, index, self._pricing)
            work.pricing = self._pricing
        return work.batch

    def _insert(self, work: Work, batch: Batch) -> None:
        self._group.check_owned(work)
        work.insert = self._inserting.submit(self._insert_timed, batch)
        try:
            self._read_ahead(work.insert, batch)
        finally:
            wait([work.insert])
        if not work.finished:
            work.insert.result()
            # A pause within the call: another owner may have written from the same offset, and then our block was dropped.
            self._group.check_owned(work)
            if not self._is_stored(work):
                metrics.STALE.inc()
                self._group.rejoin()
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
            if self._in_hand.room > 0:
                self._group.heard()
                self._group.fetch(AHEAD_SECONDS)
                continue
            following = self._in_hand.take_next()
            if following is None or following.batch is not None:
                return
            self._folded(following, IndexAhead(self._index, *batch.counted()))

    def _is_stored(self, work: Work) -> bool:
        """Whether the first batch since the assignment is the one that is stored, not a late one of the owner before.

        The owner before can only be late with the batch that begins where ours does; once ours is stored, the server drops its.
        """
        if work.partition in self._group.unconfirmed:
            stored = self._warehouse.last_batch(work.partition)
            if stored is None or stored.last != work.arrivals.last:
                return False
            self._group.unconfirmed.discard(work.partition)
        return True

    def _finish(self, work: Work, batch: Batch, send: Callable[[Callable[[], None]], None]) -> None:
        """What follows the insert. `send` sends the spend records, once or until it succeeds."""
        batch.mark(self._index)
        self._group.positions[work.partition] = work.arrivals.last + 1
        spent = batch.spend(datetime.now(UTC))
        send(lambda: self._publisher.send_packed_spend(spent))
        self._group.commit(work.partition)
        self._account(work, batch.counts())
        work.finished = True

    def _finish_under_way(self, going: set[int]) -> None:
        """These partitions are given up: a batch of theirs that is being inserted is finished, or left to the next owner."""
        work = self._in_hand.writing
        if work is None or work.batch is None or work.insert is None or work.partition not in going:
            return
        try:
            work.insert.result()
            if self._group.owns(work) and self._is_stored(work):
                self._finish(work, work.batch, lambda send: send())
        except TRANSIENT as error:
            _log.warning("a batch is left to the next owner: %s", error, extra={"partition": work.partition})

    def _account(self, work: Work, counts: dict[tuple[str, str], int]) -> None:
        partition, arrivals = work.partition, work.arrivals
        for (disposition, reason), count in counts.items():
            metrics.MESSAGES.labels(disposition, reason).inc(count)
        metrics.BATCH_MESSAGES.observe(len(arrivals))
        metrics.POSITION.labels(partition).set(arrivals.last + 1)
        self.lag.written(partition, arrivals.arrived_at_ms[-1])
        end = self._group.log_end(partition)
        if end is not None:
            self._log_end.seen(partition, end)
        outcome: dict[str, Any] = {"/".join(filter(None, key)): count for key, count in counts.items()}
        _log.info("batch", extra={"partition": partition, "first": arrivals.first, "last": arrivals.last, **outcome})
