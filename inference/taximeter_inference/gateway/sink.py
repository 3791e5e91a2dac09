"""Where usage events go: the producer, and a short memory for the moment when even its spool is full.

While an event waits there, no new request is taken: what cannot be metered is not served.
"""

import asyncio
import logging
from collections import deque
from concurrent.futures import Future

from taximeter_producers import Safe, SpoolFullError, UsageProducer
from taximeter_schemas.wire import UsageEvent

RETRY_SECONDS = 0.5
_log = logging.getLogger(__name__)


class EventSink:
    """Takes events on the event loop; the producer's own thread does the rest."""

    def __init__(self, producer: UsageProducer, safe_wait_seconds: float) -> None:
        self._producer = producer
        self._safe_wait_seconds = safe_wait_seconds
        self._held: deque[tuple[UsageEvent, str]] = deque()
        self._retrying: asyncio.Task[None] | None = None
        self._safe_now: deque[asyncio.Future[None]] = deque()
        self._waking = False

    @property
    def has_room(self) -> bool:
        """Whether events can be taken."""
        return not self._held

    def waiting(self) -> dict[str, int]:
        """What has not reached the broker: events that are not safe yet, and bytes in the spool."""
        state = self._producer.state()
        return {"unsafe_events": state.unsafe + len(self._held), "spool_bytes": state.spool_bytes}

    async def take_safely(self, event: UsageEvent, traceparent: str = "") -> None:
        """Take an event and wait, but not for ever, until it is on the broker or on disk."""
        safe = self._take(event, traceparent)
        if safe is None:
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        too_late = loop.call_later(self._safe_wait_seconds, self._too_late, done, event.id)
        safe.add_done_callback(lambda ended: self._on_safe(loop, done, ended))
        try:
            await done
        finally:
            too_late.cancel()

    def take_soon(self, event: UsageEvent, traceparent: str = "") -> None:
        """Take an event that nobody waits for."""
        safe = self._take(event, traceparent)
        if safe is not None:
            safe.add_done_callback(_report)

    def _take(self, event: UsageEvent, traceparent: str) -> "Future[Safe] | None":
        """Take an event; the future is done when it is safe. None when it must wait for room."""
        if self._held:
            self._hold(event, traceparent)
            return None
        try:
            return self._producer.submit(event, traceparent=traceparent)
        except SpoolFullError as error:
            _log.error("no room for usage events, new requests are refused: %s", error)
            self._hold(event, traceparent)
            return None

    def _on_safe(self, loop: asyncio.AbstractEventLoop, done: "asyncio.Future[None]", safe: "Future[Safe]") -> None:
        """In the producer's thread. Events become safe by the batch, so the loop is woken once for many."""
        _report(safe)
        self._safe_now.append(done)
        if not self._waking:
            self._waking = True
            try:
                loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                _log.debug("the loop has ended before its last events were safe")

    def _wake(self) -> None:
        self._waking = False
        while self._safe_now:
            done = self._safe_now.popleft()
            if not done.done():
                done.set_result(None)

    @staticmethod
    def _too_late(done: "asyncio.Future[None]", event_id: str) -> None:
        if not done.done():
            # It stays with the producer, which goes on trying.
            _log.warning("a usage event was not safe when its answer ended", extra={"event_id": event_id})
            done.set_result(None)

    async def close(self) -> None:
        """Deliver or spool everything."""
        if self._retrying is not None:
            self._retrying.cancel()
        if self._held:
            _log.critical("%d usage events are lost: there was no room for them", len(self._held))
        await asyncio.to_thread(self._producer.close)

    def _hold(self, event: UsageEvent, traceparent: str) -> None:
        self._held.append((event, traceparent))
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.create_task(self._retry())

    async def _retry(self) -> None:
        while self._held:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                while self._held:
                    event, traceparent = self._held[0]
                    self._producer.emit(event, traceparent=traceparent)
                    self._held.popleft()
            except SpoolFullError:
                continue


def _report(safe: "Future[Safe]") -> None:
    error = safe.exception()
    if error is not None:
        _log.error("a usage event is not safe: %s", error)
