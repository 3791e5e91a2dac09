"""Carries records to the log: by the broker when it is there, by the disk spool when it is not, in one thread.

A record counts as safe after the broker's acknowledgement or an fsync. One is taken only if it would also fit into the
spool, so whatever the broker fails to take later has a place. While the broker is away, records go to the spool at once;
once it has the topic again, the spool's oldest segment is offered to it, and its success says that the broker is back.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Producer

from taximeter_producers.crates import Crate, Parcel, Safe, frame_bytes, record_of
from taximeter_producers.drain import Drain
from taximeter_producers.errors import ProducerClosedError, SpoolError, SpoolFullError, UndeliverableError
from taximeter_producers.kafka_client import (
    QUEUE_KIBIBYTES_MAX,
    QUEUE_MESSAGES_MAX,
    broker_is_away,
    make_client,
    refused_for_good,
    taken_back,
)
from taximeter_producers.spool import Spool
from taximeter_producers.topic_probe import TopicProbe

_POLL_SECONDS = 0.05
_UNKNOWN_SECONDS_MAX = 5.0
_DISK_RETRY_SECONDS = 1.0
_CRATE_PARCELS_MIN, _CRATE_PARCELS_MAX = 200, 5_000
_CRATE_BYTES_MAX = 900_000
"""What goes out in one request."""
_CRATE_SECONDS = 0.005
"""Records that come closer together than that are sent together; the last of them wait for the thread's next turn."""
_PURGE_SECONDS_MAX = 10.0
_WAITING_BYTES_MAX = QUEUE_KIBIBYTES_MAX * 1024
_log = logging.getLogger(__name__)


class _Broker(Enum):
    """What is known: nothing yet (records wait for a few seconds), it takes messages, or it does not."""

    UNKNOWN = auto()
    THERE = auto()
    AWAY = auto()


@dataclass(frozen=True, slots=True)
class CourierState:
    """What is where now: records not yet safe, bytes in the spool, and whether the broker is away."""

    unsafe: int
    spool_bytes: int
    broker_away: bool


class Courier:
    """Owns the spool, the Kafka client and the thread that serves both."""

    def __init__(
        self, bootstrap_servers: str, topic: str, spool: Spool, spool_bytes_max: int, delivery_seconds_max: float
    ) -> None:
        self._topic = topic
        self._spool = spool
        self._spool_bytes_max = spool_bytes_max
        self._make_probe = partial(TopicProbe, bootstrap_servers, topic)
        self._make_client = partial(make_client, bootstrap_servers, delivery_seconds_max, self._on_error)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pending: list[Parcel] = []
        """For the Kafka client, once it is known to be of use and the crate before is empty."""
        self._crate: Crate | None = None
        """In the Kafka client."""
        self._crated_at = 0.0
        self._waiting: list[Parcel] = []
        """For the spool."""
        self._unsafe_bytes = 0
        self._broker = _Broker.UNKNOWN
        self._unknown_until = time.monotonic() + _UNKNOWN_SECONDS_MAX
        self._probe: TopicProbe | None = self._make_probe()
        """None once the topic is known to exist."""
        self._spent = False
        """The Kafka client is of no more use."""
        self._ended = False
        self._disk_retry_at = 0.0
        self._client: Producer = self._make_client()
        self._drain = Drain(spool, topic, self._on_drained)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taximeter-producer", daemon=True)
        self._thread.start()

    def state(self) -> CourierState:
        """What is where now."""
        with self._changed:
            return CourierState(self._unsafe(), self._spool.size_bytes, self._broker is _Broker.AWAY)

    def take(self, parcels: Sequence[Parcel]) -> None:
        """Take records, all or none, without waiting for network or disk.

        Raises SpoolFullError when they would not fit into the spool.
        """
        size = sum(map(frame_bytes, parcels))
        with self._lock:
            self._admit(size)
            self._pending += parcels
            too_much = self._unsafe_bytes > _WAITING_BYTES_MAX or len(self._pending) > QUEUE_MESSAGES_MAX
            if self._broker is _Broker.AWAY or self._spent or too_much:
                self._hold_pending()
                return
            if self._crate is not None:  # they go when that is empty
                return
            now = time.monotonic()
            many = len(self._pending) >= _CRATE_PARCELS_MIN or now - self._crated_at > _CRATE_SECONDS
            if many or "safe" in parcels[-1]:
                self._send_pending(now)

    def _admit(self, size: int) -> None:
        if self._ended:
            raise ProducerClosedError("the producer's thread has ended")
        if self._spool.size_bytes + self._unsafe_bytes + size > self._spool_bytes_max:
            raise SpoolFullError(f"the spool has reached its limit of {self._spool_bytes_max} bytes")
        if self._unsafe_bytes + size > 2 * _WAITING_BYTES_MAX:
            raise SpoolFullError("too much waits for the disk")
        self._unsafe_bytes += size

    def flush(self, timeout_seconds: float, drained: bool = False) -> int:
        """Wait until everything is safe (and, with `drained`, delivered, unless the broker is away).

        Returns how many records are not safe yet.
        """

        def done() -> bool:
            idle = not drained or self._broker is _Broker.AWAY or not self._spool.size_bytes
            return self._ended or (idle and not self._unsafe())

        with self._changed:
            self._changed.wait_for(done, timeout_seconds)
            return self._unsafe()

    def close(self, timeout_seconds: float) -> None:
        """Wait a while for deliveries, move the rest into the spool, end. Raises SpoolError when something is not safe."""
        self.flush(timeout_seconds, drained=True)
        self._stopping.set()
        self._thread.join()
        if unsafe := self._unsafe():
            raise SpoolError(f"{unsafe} events are neither delivered nor on disk")

    def _unsafe(self) -> int:
        under_way = self._crate.wanted - self._crate.reported if self._crate else 0
        return len(self._pending) + under_way + len(self._waiting)

    def _send_pending(self, now: float) -> None:
        """Hand what is pending to the Kafka client, unless a crate is under way; what it does not take goes to the spool."""
        if not self._pending or self._crate is not None or self._broker is not _Broker.THERE or self._spent:
            return
        crate = self._crate = Crate(self._next_parcels(), self._on_failed, self._on_emptied)
        self._crated_at = now
        try:
            refused = crate.send(self._client, self._topic)
        except (BufferError, KafkaException) as error:
            # Some may be under way: they are in the log twice then, and count once.
            self._unload(crate)
            if isinstance(error, KafkaException):
                self._give_up_client(error)
            return
        self._waiting.extend(parcel for parcel, _ in refused)
        self._spent = self._spent or any(error.fatal() for _, error in refused)
        if crate.reported >= crate.wanted:
            self._on_emptied(crate)

    def _next_parcels(self) -> list[Parcel]:
        """All that is pending, or as much of it as goes out in one request."""
        count, size = 0, 0
        for parcel in self._pending[:_CRATE_PARCELS_MAX]:
            size += frame_bytes(parcel)
            if count and size > _CRATE_BYTES_MAX:
                break
            count += 1
        parcels, self._pending = self._pending[:count], self._pending[count:]
        return parcels

    def _hold_pending(self) -> None:
        self._waiting += self._pending
        self._pending = []

    def _unload(self, crate: Crate) -> None:
        """Whatever is in the crate waits for the spool; reports of it do not matter any more."""
        crate.settled, self._crate = True, None
        self._unsafe_bytes += sum(map(frame_bytes, crate.parcels)) - crate.size_bytes
        self._waiting += crate.parcels

    def _give_up_client(self, error: KafkaException) -> None:
        self._spent = True
        _log.error("the Kafka client takes no more messages, a new one is made: %s", error)

    # What follows runs in the courier's own thread.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._client.poll(_POLL_SECONDS)
                self._turn()
            self._retire_client(self._client)
            self._disk_retry_at = 0.0
            self._write_waiting()
        finally:
            self._spool.close()
            with self._changed:
                self._ended = True
                self._hold_pending()
                self._fail_those_asked_for(SpoolError("the producer ended before the event was safe"))
                self._changed.notify_all()

    def _turn(self) -> None:
        if self._spent:
            self._retire_client(self._make_client())
        now = time.monotonic()
        self._look_for_broker(now)
        if self._broker is not _Broker.UNKNOWN:
            self._write_waiting()
        if self._probe is None:
            self._advance_drain(now)
        with self._changed:
            if self._broker is _Broker.AWAY:
                self._hold_pending()
            self._send_pending(now)
            self._changed.notify_all()

    def _look_for_broker(self, now: float) -> None:
        if self._probe is not None and self._probe.topic_exists(now):
            with self._changed:
                self._probe = None
                if self._broker is _Broker.UNKNOWN or not self._spool.size_bytes:
                    self._broker = _Broker.THERE
                    self._pending, self._waiting = self._waiting + self._pending, []
        elif self._broker is _Broker.UNKNOWN and now > self._unknown_until:
            with self._changed:
                self._broker = _Broker.AWAY

    def _advance_drain(self, now: float) -> None:
        try:
            self._drain.advance(self._client, now)
        except SpoolError as error:
            _log.error("%s", error)
            self._drain.pause(now)
        except KafkaException as error:
            self._give_up_client(error)

    def _retire_client(self, successor: Producer) -> None:
        """Take back what the Kafka client holds. Whatever it already sent may be in the log as well: it counts once.

        A client is not used on after a purge: the numbers of its idempotent delivery would have holes.
        """
        with self._changed:
            client, self._client, self._spent = self._client, successor, False
            crate = self._crate
            self._hold_pending()
        client.purge(in_queue=True, in_flight=True)
        deadline = time.monotonic() + _PURGE_SECONDS_MAX
        while len(client) and time.monotonic() < deadline:
            client.poll(_POLL_SECONDS)
        with self._changed:
            if crate is not None and crate is self._crate:
                self._unload(crate)

    def _on_error(self, error: KafkaError) -> None:
        with self._changed:
            if broker_is_away(error) and self._broker is not _Broker.AWAY:
                self._go_without_broker()
            self._spent = self._spent or error.fatal()

    def _go_without_broker(self) -> None:
        # With a new client: a broker that comes back without its memory knows nothing of the old one's numbers, and
        # librdkafka would try to agree with it for ever.
        self._broker, self._spent = _Broker.AWAY, True
        self._probe = self._probe or self._make_probe()

    def _on_failed(self, crate: Crate, parcel: Parcel, error: KafkaError) -> None:
        with self._changed:
            crate.size_bytes -= frame_bytes(parcel)
            if refused_for_good(error) and self._drain.set_aside(record_of(parcel), error):
                self._settle(parcel, UndeliverableError(f"the broker refuses the event: {error}"))
                return
            if not taken_back(error):
                self._go_without_broker()
            self._waiting.append(parcel)

    def _on_emptied(self, crate: Crate) -> None:
        with self._changed:
            if crate is self._crate and crate.reported >= crate.wanted:
                crate.settled, self._crate = True, None
                self._unsafe_bytes -= crate.size_bytes
                self._send_pending(time.monotonic())

    def _on_drained(self, error: KafkaError | None) -> None:
        with self._changed:
            if error is None and self._probe is None:
                self._broker = _Broker.THERE
            elif error is not None and not taken_back(error):
                self._go_without_broker()

    def _write_waiting(self) -> None:
        if time.monotonic() < self._disk_retry_at:
            return
        with self._changed:
            parcels = list(self._waiting)
        if not parcels:
            return
        try:
            self._spool.append(list(map(record_of, parcels)))
        except SpoolError as error:
            _log.error("%d events are only in memory: %s", len(parcels), error)
            self._disk_retry_at = time.monotonic() + _DISK_RETRY_SECONDS
            self._fail_those_asked_for(error)
            return
        with self._changed:
            del self._waiting[: len(parcels)]
            for parcel in parcels:
                self._settle(parcel, Safe.SPOOL)

    def _fail_those_asked_for(self, error: SpoolError) -> None:
        """Whoever waits for an answer gets it, and may send again; the others are kept and tried again."""
        with self._changed:
            for parcel in self._waiting:
                if "safe" in parcel:
                    self._settle(parcel, error)
            self._waiting = [parcel for parcel in self._waiting if "safe" not in parcel]

    def _settle(self, parcel: Parcel, outcome: "Safe | Exception") -> None:
        self._unsafe_bytes -= frame_bytes(parcel)
        safe = parcel.get("safe")
        if safe is None or safe.done():
            return
        if isinstance(outcome, Safe):
            safe.set_result(outcome)
        else:
            safe.set_exception(outcome)
