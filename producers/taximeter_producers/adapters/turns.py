"""Which hop of its turn a span is: a turn is a trace, its hops are the requests to models in the order they are seen.

A trace is exported in pieces, so what was seen is kept for the latest traces; a piece that is sent again gets it again.
"""

from collections import OrderedDict
from collections.abc import Hashable

HOP_MAX = 1_000
TRACES_MAX = 10_000
SPANS_MAX = 200_000
"""Of all traces together: about 50 MB."""


class Turns:
    """Numbers the requests of each trace from 0. The trace seen longest ago is forgotten first. Not thread-safe."""

    def __init__(self, traces_max: int = TRACES_MAX, spans_max: int = SPANS_MAX) -> None:
        self._traces_max = traces_max
        self._spans_max = spans_max
        self._spans = 0
        self._seen: OrderedDict[str, tuple[dict[str, int], dict[Hashable, str]]] = OrderedDict()

    def hop(self, trace_id: str, span_id: str) -> int:
        """The span's number in its trace, the same for the same span; HOP_MAX for all beyond it."""
        hops, _requests = self._turn(trace_id)
        if span_id not in hops:
            if len(hops) >= HOP_MAX:
                return HOP_MAX
            hops[span_id] = len(hops)
            self._grown()
        return hops[span_id]

    def counts(self, trace_id: str, request: Hashable, span_id: str) -> bool:
        """Whether the span is the one of its request that counts: the first that asks, and that one again."""
        _hops, requests = self._turn(trace_id)
        if request not in requests:
            if len(requests) >= HOP_MAX:
                return True
            requests[request] = span_id
            self._grown()
        return requests[request] == span_id

    def _turn(self, trace_id: str) -> tuple[dict[str, int], dict[Hashable, str]]:
        turn = self._seen.setdefault(trace_id, ({}, {}))
        self._seen.move_to_end(trace_id)
        return turn

    def _grown(self) -> None:
        self._spans += 1
        while len(self._seen) > self._traces_max or (self._spans > self._spans_max and len(self._seen) > 1):
            _trace_id, (hops, requests) = self._seen.popitem(last=False)
            self._spans -= len(hops) + len(requests)
