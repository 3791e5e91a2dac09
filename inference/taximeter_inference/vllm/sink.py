"""The thread that turns what is over into events and hands them to the producer, away from the event loop.

It wakes a few times a second and works in batches: waking it for every request would make it fight with the event loop for
the interpreter. When even the spool is full, events stay here and the worker takes no new requests: what cannot be metered
is not served.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial

from taximeter_inference.vllm.blocks import COUNTS_ONLY, NOTHING_KNOWN, BlockReport
from taximeter_inference.vllm.busy_time import BusyTime
from taximeter_inference.vllm.engine_types import SequenceState
from taximeter_inference.vllm.exchange import METERED_ELSEWHERE, Part
from taximeter_inference.vllm.journal import Journal
from taximeter_inference.vllm.metrics import BUSY_SECONDS, EVENTS
from taximeter_inference.vllm.usage import Origin, build_event, traceparent_of
from taximeter_producers import Safe, SpoolFullError, UsageProducer
from taximeter_schemas.wire import UsageEvent

WAKE_SECONDS = 0.05
STOP_SECONDS_MAX = 10.0
_log = logging.getLogger(__name__)

Blocks = Callable[[Part, bool], BlockReport | None]
"""What is known about a part's blocks; None while more is to come (unless the second argument says that time is up)."""


def counts_only(part: Part, _time_is_up: bool) -> BlockReport:
    """What is known without KV events."""
    return COUNTS_ONLY if any(closed.cached for closed in part.sequences) else NOTHING_KNOWN


class EventSink:
    """Takes parts on the event loop; everything else happens in its thread."""

    def __init__(
        self,
        producer: UsageProducer,
        journal: Journal,
        origin: Origin,
        *,
        gpus: int = 1,
        blocks: Blocks = counts_only,
    ) -> None:
        self._producer = producer
        self._journal = journal
        self._origin = origin
        self._gpus = gpus
        self._blocks = blocks
        self._parts: deque[Part] = deque()
        self.take: Callable[[Part], None] = self._parts.append
        """Take a part. Called on the event loop; costs next to nothing."""
        self._waiting: list[tuple[Part, float]] = []
        """Parts whose blocks are not all known, with their GPU-seconds."""
        self.held: deque[tuple[UsageEvent, int, str]] = deque()
        """Events, with their numbers and places in traces, that the spool had no room for: while there are any, no new request is
        let in."""
        self._busy = BusyTime()
        self._taken = 0
        self._settled = 0
        """How many parts the thread has taken in, and how many became events or could not."""
        self._taking_in = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="taximeter-sink", daemon=True)

    def start(self, running: Callable[[], list[SequenceState]]) -> None:
        """Start the thread. `running` tells what is in the engine now."""
        self._running = running
        self._thread.start()

    def flush(self, timeout_seconds: float = STOP_SECONDS_MAX) -> None:
        """Wait until what was taken so far is on the broker or on disk."""
        deadline = time.monotonic() + timeout_seconds
        self.settle(timeout_seconds)
        self._producer.flush(max(0.0, deadline - time.monotonic()))

    def settle(self, timeout_seconds: float = STOP_SECONDS_MAX) -> None:
        """Wait until what was taken so far is handed to the producer."""
        deadline = time.monotonic() + timeout_seconds
        with self._taking_in:
            taken = self._taken + len(self._parts)
        while self._settled < taken and self._thread.is_alive() and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(WAKE_SECONDS / 5)

    def close(self) -> None:
        """Everything taken becomes an event, and is on the broker or on disk."""
        self._stopping = True
        self._wake.set()
        self._thread.join(STOP_SECONDS_MAX)
        if self.held:
            _log.critical("%d usage events are lost: there was no room for them", len(self.held))
        self._producer.close()
        self._journal.close()

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            self._turn(stopping)
            if stopping:
                return
            if self._wake.wait(WAKE_SECONDS):
                self._wake.clear()

    def _turn(self, time_is_up: bool) -> None:
        self._retry()
        self._take_in()
        waiting, self._waiting = self._waiting, []
        for part, gpu_seconds in waiting:
            try:
                blocks = self._blocks(part, time_is_up)
                if blocks is None:
                    self._waiting.append((part, gpu_seconds))
                    continue
                if part.number != METERED_ELSEWHERE:
                    now, monotonic_now = datetime.now(UTC), time.monotonic()
                    event = build_event(part, self._origin, gpu_seconds, blocks, now, monotonic_now)
                    self._send(event, part.number, traceparent_of(part.tags))
            except Exception:  # noqa: BLE001 - the requests beside it are still metered
                _log.critical("request %d could not be metered", part.number, exc_info=True)
            self._settled += 1

    def _take_in(self) -> None:
        """Settle the busy time of new parts, in the order in which their sequences ended."""
        if not self._parts:
            return
        with self._taking_in:
            parts = [self._parts.popleft() for _ in range(len(self._parts))]
            self._taken += len(parts)
        running = [stats for state in self._running() if (stats := state.stats) is not None]
        ended = [
            (closed.stats.last_token_ts, place, closed.stats.scheduled_ts)
            for place, part in enumerate(parts)
            for closed in part.sequences
            if 0.0 < closed.stats.scheduled_ts < closed.stats.last_token_ts
        ]
        ended.sort()
        starts = [stats.scheduled_ts for stats in running if stats.scheduled_ts > 0.0]
        starts += [start for _, _, start in ended]
        seconds = [0.0] * len(parts)
        for end, place, start in ended:
            starts.remove(start)
            seconds[place] += self._busy.settle(start, end, starts)
        self._waiting += [(part, share * self._gpus) for part, share in zip(parts, seconds, strict=True)]
        BUSY_SECONDS.set(self._busy.busy_seconds)
        oldest = min((stats.arrival_time for stats in running), default=time.time())
        # Arrival is told by the clock on the wall, the engine's times by the monotonic one of the same machine.
        self._busy.forget(time.monotonic() - max(0.0, time.time() - oldest) - 1.0)

    def _send(self, event: UsageEvent, number: int, traceparent: str) -> None:
        if self.held or not self._is_sent(event, number, traceparent):
            self.held.append((event, number, traceparent))

    def _retry(self) -> None:
        while self.held and self._is_sent(*self.held[0]):
            self.held.popleft()

    def _is_sent(self, event: UsageEvent, number: int, traceparent: str) -> bool:
        try:
            safe = self._producer.submit(event, traceparent=traceparent)
        except SpoolFullError as error:
            _log.error("no room for usage events, new requests are refused: %s", error)
            return False
        EVENTS.labels(event.data.operation.value, event.data.outcome.value).inc()
        safe.add_done_callback(partial(self._on_safe, number, event.id))
        return True

    def _on_safe(self, number: int, event_id: str, safe: "Future[Safe]") -> None:
        error = safe.exception()
        if error is None:
            self._journal.safe(number)
        else:
            _log.error("a usage event is not safe: %s", error, extra={"event_id": event_id})
