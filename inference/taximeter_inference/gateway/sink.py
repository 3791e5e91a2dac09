"""Where usage events go: the producer, and a short memory for the moment when even its spool is full.

While an event waits there, no new request is taken: what cannot be metered is not served.
"""

import asyncio
import logging
from collections import deque

from taximeter_producers import Safe, SpoolError, SpoolFullError, UndeliverableError, UsageProducer
from taximeter_schemas.wire import UsageEvent

RETRY_SECONDS = 0.5
_log = logging.getLogger(__name__)


class EventSink:
    """Takes events on the event loop; the producer's own thread does the rest."""

    def __init__(self, producer: UsageProducer, safe_wait_seconds: float) -> None:
        self._producer = producer
        self._safe_wait_seconds = safe_wait_seconds
        self._held: deque[UsageEvent] = deque()
        self._retrying: asyncio.Task[None] | None = None

    @property
    def has_room(self) -> bool:
        """Whether events can be taken."""
        return not self._held

    def waiting(self) -> dict[str, int]:
        """What has not reached the broker: events that are not safe yet, and bytes in the spool."""
        state = self._producer.state()
        return {"unsafe_events": state.unsafe + len(self._held), "spool_bytes": state.spool_bytes}

    def take(self, event: UsageEvent) -> "asyncio.Future[Safe] | None":
        """Take an event; the future is done when it is safe. None when it must wait for room."""
        if self._held:
            self._hold(event)
            return None
        try:
            return asyncio.wrap_future(self._producer.submit(event))
        except SpoolFullError as error:
            _log.error("no room for usage events, new requests are refused: %s", error)
            self._hold(event)
            return None

    async def take_safely(self, event: UsageEvent) -> None:
        """Take an event and wait, but not for ever, until it is on the broker or on disk."""
        safe = self.take(event)
        if safe is None:
            return
        done, _ = await asyncio.wait((safe,), timeout=self._safe_wait_seconds)
        if not done:
            # It stays with the producer, which goes on trying.
            safe.add_done_callback(_report)
            _log.warning("a usage event was not safe when its answer ended", extra={"event_id": event.id})
            return
        _report(safe)

    def take_soon(self, event: UsageEvent) -> None:
        """Take an event that nobody waits for."""
        safe = self.take(event)
        if safe is not None:
            safe.add_done_callback(_report)

    async def close(self) -> None:
        """Deliver or spool everything."""
        if self._retrying is not None:
            self._retrying.cancel()
        if self._held:
            _log.critical("%d usage events are lost: there was no room for them", len(self._held))
        await asyncio.to_thread(self._producer.close)

    def _hold(self, event: UsageEvent) -> None:
        self._held.append(event)
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.create_task(self._retry())

    async def _retry(self) -> None:
        while self._held:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                while self._held:
                    self._producer.emit(self._held[0])
                    self._held.popleft()
            except SpoolFullError:
                continue


def _report(safe: "asyncio.Future[Safe]") -> None:
    if safe.cancelled():
        return
    error = safe.exception()
    if isinstance(error, SpoolError | UndeliverableError):
        _log.error("a usage event is not safe: %s", error)
    elif error is not None:
        raise error
