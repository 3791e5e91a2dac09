"""Which hop of its turn a span is: a turn is a trace, its hops are the requests to models in the order they are seen.

A trace is exported in pieces, so what was seen is kept for the latest traces; a piece that is sent again gets it again.
"""

from collections import OrderedDict
from collections.abc import Hashable

HOP_MAX = 1_000
TRACES_MAX = 10_000


class Turns:
    """Numbers the requests of each trace from 0. The trace seen longest ago is forgotten first. Not thread-safe."""

    def __init__(self, traces_max: int = TRACES_MAX) -> None:
        self._traces_max = traces_max
        self._seen: OrderedDict[str, tuple[dict[str, int], dict[Hashable, str]]] = OrderedDict()

    def hop(self, trace_id: str, span_id: str) -> int:
        """The span's number in its trace, the same for the same span; HOP_MAX for all beyond it."""
        hops, _requests = self._turn(trace_id)
        if len(hops) >= HOP_MAX and span_id not in hops:
            return HOP_MAX
        return hops.setdefault(span_id, len(hops))

    def counts(self, trace_id: str, request: Hashable, span_id: str) -> bool:
        """Whether the span is the one of its request that counts: the first that asks, and that one again."""
        _hops, requests = self._turn(trace_id)
        if len(requests) >= HOP_MAX and request not in requests:
            return True
        return requests.setdefault(request, span_id) == span_id

    def _turn(self, trace_id: str) -> tuple[dict[str, int], dict[Hashable, str]]:
        turn = self._seen.setdefault(trace_id, ({}, {}))
        self._seen.move_to_end(trace_id)
        if len(self._seen) > self._traces_max:
            self._seen.popitem(last=False)
        return turn
