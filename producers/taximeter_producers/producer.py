"""UsageProducer: takes usage events from any service and sees to it that each reaches the log.

Each producer numbers its events. The worker's id is the producer's id and a random mark of this very start
("svc-a:1f9c2b7e"), and its numbers begin at 0, so a gap in them names events that were taken and never arrived; nothing
has to be remembered from one start to the next. An event that already names its worker keeps that.
"""

import asyncio
import atexit
import os
import re
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import msgspec
from pydantic import ValidationError

from taximeter_producers.courier import Courier, CourierState
from taximeter_producers.crates import Parcel, Safe
from taximeter_producers.errors import InvalidEventError, ProducerClosedError, ProducerIdError
from taximeter_producers.outgoing import Payload, bounded, payload_of
from taximeter_producers.spool import Spool
from taximeter_producers.tracing import with_traceparent
from taximeter_schemas import UsageEvent, wire
from taximeter_schemas.topics import USAGE_EVENTS

SPOOL_BYTES_MAX = 256 * 1_048_576
DELIVERY_SECONDS_MAX = 30.0
CLOSE_SECONDS_MAX = 5.0
_CHECKED_LATER = (UsageEvent, wire.UsageEvent)
_PRODUCER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_forks = 0
"""How many forks lie between the first process and this one. To ask for the process's id would cost a microsecond an event."""


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 # it belongs to the process
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class UsageProducer:
    """Sends usage events to the log: idempotent, acknowledged by all replicas, spooled to disk while the broker is away.

    The spool is the folder `producer_id` in `spool_dir`; one process at a time holds it, and the next one with the same
    id delivers what a crashed one left. `spool_bytes_max` bounds the disk, `delivery_seconds_max` the time that a broker
    may take over an event before that event goes to the spool. Raises ProducerIdError, SpoolBusyError or SpoolError.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        producer_id: str,
        spool_dir: Path | str,
        spool_bytes_max: int = SPOOL_BYTES_MAX,
        delivery_seconds_max: float = DELIVERY_SECONDS_MAX,
        topic: str = USAGE_EVENTS.name,
    ) -> None:
        if not _PRODUCER_ID.fullmatch(producer_id):
            raise ProducerIdError(f"{producer_id!r} is not a producer id: 1 to 64 of A-Z a-z 0-9 . _ -")
        self.worker_id = f"{producer_id}:{uuid4().hex[:8]}"
        self._mark = self.worker_id.encode()
        spool = Spool(Path(spool_dir) / producer_id, spool_bytes_max)
        try:
            self._courier = Courier(bootstrap_servers, topic, spool, spool_bytes_max, delivery_seconds_max)
        except BaseException:
            spool.close()
            raise
        self._numbering = threading.Lock()
        self._sequence = 0
        self._closed = False
        self._forks = _forks
        atexit.register(self.close)

    def emit(self, event: UsageEvent | wire.UsageEvent | Mapping[str, object], *, traceparent: str = "") -> None:
        """Take an event: the model, its hot-path twin, or its JSON as a mapping. Never waits for the network.

        Returns at once; `flush` and `close` say when it is safe. With a `traceparent` the meter's spans join that trace.
        Raises InvalidEventError, SpoolFullError (nowhere to put it) or ProducerClosedError; then it was not taken.
        """
        self._take(event, None, traceparent)

    def emit_many(self, events: Iterable[UsageEvent | wire.UsageEvent | Mapping[str, object]]) -> None:
        """Take events as `emit` does, all of them or none, for less each. Raises what `emit` raises."""
        payloads = [_payload(event) for event in events]
        if not payloads:
            return
        with self._numbering:
            self._check_open()
            sequence = self._sequence
            records: list[Parcel] = []
            for payload in payloads:
                records.append({"key": payload.key, "value": self._body(payload, sequence)})
                sequence += not payload.has_worker
            self._courier.take(records)
            self._sequence = sequence

    def submit(
        self, event: UsageEvent | wire.UsageEvent | Mapping[str, object], *, traceparent: str = ""
    ) -> Future[Safe]:
        """Like `emit`, with a future that is done once the event is safe: on the broker, or fsync'd in the spool.

        The future fails with SpoolError when the disk refuses, UndeliverableError when the broker does for good.
        """
        safe: Future[Safe] = Future()
        safe.set_running_or_notify_cancel()  # What is under way cannot be called back.
        self._take(event, safe, traceparent)
        return safe

    async def emit_async(
        self, event: UsageEvent | wire.UsageEvent | Mapping[str, object], *, traceparent: str = ""
    ) -> Safe:
        """Take an event and return once it is safe. Raises what `emit` raises, SpoolError and UndeliverableError."""
        return await asyncio.wrap_future(self.submit(event, traceparent=traceparent))

    def flush(self, timeout_seconds: float = DELIVERY_SECONDS_MAX) -> int:
        """Wait until every event taken is on the broker or in the spool. Returns how many are neither."""
        return self._courier.flush(timeout_seconds)

    def state(self) -> CourierState:
        """How many events are not safe yet, how many bytes wait in the spool, and whether the broker is away."""
        return self._courier.state()

    def close(self, timeout_seconds: float = CLOSE_SECONDS_MAX) -> None:
        """Deliver for a while, put the rest into the spool, let go of it. Closing twice does nothing.

        Raises SpoolError when some events are neither delivered nor on disk. Called at the interpreter's end if it was not.
        """
        with self._numbering:
            if self._closed or self._forks != _forks:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._courier.close(timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _take(
        self,
        event: UsageEvent | wire.UsageEvent | Mapping[str, object],
        safe: Future[Safe] | None,
        traceparent: str,
    ) -> None:
        payload = _payload(event)
        with self._numbering:
            self._check_open()
            body = self._body(payload, self._sequence)
            if traceparent:
                body = with_traceparent(body, traceparent)
            parcel: Parcel = {"key": payload.key, "value": body}
            if safe is not None:
                parcel["safe"] = safe
            self._courier.take([parcel])
            # Only now: a refused event leaves no gap.
            self._sequence += not payload.has_worker

    def _check_open(self) -> None:
        if self._closed:
            raise ProducerClosedError("the producer was closed")
        if self._forks != _forks:
            raise ProducerClosedError("the producer belongs to the process that made it; make one after the fork")

    def _body(self, payload: Payload, sequence: int) -> bytes:
        return payload.body if payload.has_worker else bounded(payload.stamped(self._mark, sequence))


def _payload(event: UsageEvent | wire.UsageEvent | Mapping[str, object]) -> Payload:
    return payload_of(event if isinstance(event, _CHECKED_LATER) else parse_event(event))


def parse_event(event: Mapping[str, object]) -> UsageEvent:
    """A mapping in the JSON shape of a usage event as the model. Raises InvalidEventError."""
    try:
        return UsageEvent.model_validate_json(msgspec.json.encode(event))
    except ValidationError as error:
        raise InvalidEventError(describe(error)) from None
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidEventError(f"the event is not JSON: {error}") from None


def encode_event(event: UsageEvent | wire.UsageEvent) -> bytes:
    """The event's bytes, without a worker where it names none. Raises InvalidEventError."""
    return payload_of(event).body


def describe(error: ValidationError) -> str:
    """All that is wrong, in one line: "data.tenant: Field required; data.tokens.output: ..."."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"]))) for problem in problems
    )
