"""The latest events that were taken, so that a sender's retry is answered without a second trip. A bounded memory.

It answers only for the very same event: another body under a known id is passed on, and the meter rejects it as a conflict.
"""

from collections import OrderedDict

from taximeter_schemas import wire

RECENT_EVENTS_MAX = 100_000


class RecentEvents:
    """Identity and body of the last `events_max` events; the one seen longest ago is forgotten first."""

    def __init__(self, events_max: int = RECENT_EVENTS_MAX) -> None:
        self._events_max = events_max
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def holds(self, mark: bytes) -> bool:
        """Whether the event with that mark was taken lately."""
        return mark in self._seen

    def add(self, mark: bytes) -> None:
        """Remember an event once it is safe."""
        self._seen[mark] = None
        self._seen.move_to_end(mark)
        if len(self._seen) > self._events_max:
            self._seen.popitem(last=False)


def mark_of(event: wire.UsageEvent) -> bytes:
    """32 bytes that stand for the identity and the body of an event."""
    return wire.identity_hash(event) + wire.body_hash(event)
