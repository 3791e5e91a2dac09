"""Whether a worker's loop still comes round, and whether it may still believe that its partitions are its own."""

import time
from collections.abc import Iterable

STUCK_SECONDS_MAX = 8.0
"""A loop that has not come round for that long reports itself unhealthy, and names the partition and the step it is in."""

State = tuple[bool, dict[str, object]]


class Pulse:
    """What the loop notes of itself. `alive` and `ready` are asked by the health server's thread."""

    def __init__(self, session_timeout_ms: int, linger_ms: int) -> None:
        self._session_seconds = session_timeout_ms / 1000
        self._stuck_seconds = STUCK_SECONDS_MAX + linger_ms / 1000
        self.heard_at = time.monotonic()
        """When Kafka was last heard (monotonic seconds)."""
        self.assigned = False
        """Whether the group has dealt since this worker asked for partitions: some to it, or none where others have all."""
        self.lost: frozenset[int] = frozenset()
        """What was taken away because the group was not heard, until partitions are assigned anew."""
        self.trouble: str | None = None
        """What is waited for."""
        self._doing: tuple[float, str, int | None] = (self.heard_at, "starting", None)
        """Since when (monotonic seconds), which step, of which partition."""

    @property
    def silent_seconds(self) -> float:
        """For how long Kafka was not heard."""
        return time.monotonic() - self.heard_at

    @property
    def writing_seconds_max(self) -> float:
        """After a longer silence the group may have given the partitions to others, and nothing may be written."""
        return self._session_seconds * 0.8

    def paused_too_long(self) -> bool:
        """Whether nothing in hand may be taken for ours any more."""
        return self.silent_seconds > self.writing_seconds_max

    def note(self, step: str, partition: int | None = None) -> None:
        """A step begins."""
        self._doing = (time.monotonic(), step, partition)

    def note_wait(self) -> None:
        """The same step goes on, and the loop is not stuck in it."""
        _since, step, partition = self._doing
        self.note(step, partition)

    def alive(self) -> State:
        """Whether the loop still comes round. It does while it waits for Kafka or ClickHouse, unless a call never returns."""
        since, step, partition = self._doing
        seconds = time.monotonic() - since
        state: dict[str, object] = {"step": step, "seconds_in_step": round(seconds, 1)}
        return seconds <= self._stuck_seconds, state if partition is None else {"partition": partition, **state}

    def ready(self, partitions: Iterable[int]) -> State:
        """Whether the worker is really working, and where it stands."""
        silent = self.silent_seconds
        alive, doing = self.alive()
        stuck = silent > self._session_seconds or not alive
        state: dict[str, object] = {"partitions": sorted(partitions), "seconds_since_poll": round(silent, 1)}
        if stuck:
            state |= doing
        trouble = self.trouble
        if self.lost:
            state["lost"] = sorted(self.lost)
            trouble = trouble or "Kafka was not heard for a session: partitions are lost until it assigns some again"
        elif not self.assigned:
            trouble = trouble or "waiting for Kafka to assign partitions"
        if trouble:
            state["trouble"] = trouble
        return not stuck and trouble is None, state
