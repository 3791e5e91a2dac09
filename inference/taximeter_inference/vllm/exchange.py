"""One request on its way through the worker: its tags, and the sequences that it has in the engine.

Only what must happen on the event loop happens here: a few assignments. What is read from a closed sequence, and the event
that it becomes, is the sink thread's work.
"""

from contextvars import ContextVar

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.vllm.engine_types import SequenceState

CURRENT: ContextVar["Exchange | None"] = ContextVar("taximeter_exchange", default=None)
"""The exchange that whatever runs now belongs to; tasks that it starts inherit it."""
METERED_ELSEWHERE = -1
"""The number of a request whose gateway sends its event: the worker sends none, so its own numbers leave it out."""


class ClosedSequence:
    """A sequence that has left the engine. `reason` is vLLM's finish reason in words."""

    __slots__ = ("reason", "state")

    def __init__(self, state: SequenceState, reason: str = "") -> None:
        self.state = state
        self.reason = reason


class Exchange:
    """A request. `over` is set when its answer has ended; it leaves once no sequence is open either.

    A sequence that starts after that (a background task of the request) makes another part, with an event of its own.
    `started` is in seconds of time.perf_counter.
    """

    __slots__ = ("closed", "failed", "number", "open", "over", "part", "path", "started", "tags")

    def __init__(self, tags: Forwarded | None, path: str, started: float) -> None:
        self.tags = tags
        self.path = path
        self.started = started
        self.number: int | None = None
        self.part = 0
        self.open = 0
        self.closed: list[ClosedSequence] = []
        self.over = False
        self.failed = False

    def take_part(self, now: float) -> "Part | None":
        """What is to be metered now: the closed sequences since the last part, if there are any. `now` as `started`."""
        if self.number is None:
            return None
        part = Part(self, self.number, self.closed, now)
        self.number, self.closed = None, []
        self.part += 1
        return part


class Part:
    """The closed sequences of an exchange that one event is made of. `total_seconds` is since the exchange's start."""

    __slots__ = ("failed", "number", "ordinal", "path", "sequences", "tags", "total_seconds")

    def __init__(self, exchange: Exchange, number: int, sequences: list[ClosedSequence], ended: float) -> None:
        self.tags = exchange.tags
        self.path = exchange.path
        self.failed = exchange.failed
        self.number = number
        self.ordinal = exchange.part
        self.sequences = sequences
        self.total_seconds = max(0.0, ended - exchange.started)
