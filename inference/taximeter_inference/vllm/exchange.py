"""One request on its way through the worker: its tags, and the sequences that it has in the engine.

Only what must happen on the event loop happens here: a few assignments. What is made of a closed sequence, its reason in
words and its times included, is the sink thread's work. The classes are msgspec's: made without a Python call, and the
garbage collector does not look at them.
"""

from contextvars import ContextVar

import msgspec

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.vllm.engine_types import PrefillStats, SequenceState, SequenceStats

CURRENT: ContextVar["Exchange | None"] = ContextVar("taximeter_exchange", default=None)
"""The exchange that whatever runs now belongs to; tasks that it starts inherit it."""
ABORTED, FAILED, FINISHED = "abort", "error", "stop"
METERED_ELSEWHERE = -1
"""The number of a request whose gateway sends its event: the worker sends none, so its own numbers leave it out."""


class _NoStats:
    """Of a sequence that the engine keeps no statistics of."""

    num_generation_tokens = num_preemptions = 0
    arrival_time = queued_ts = scheduled_ts = first_token_ts = last_token_ts = first_token_latency = 0.0


_NO_STATS = _NoStats()


class ClosedSequence(msgspec.Struct, gc=False, frozen=True):
    """A sequence that has left the engine: what its event needs, so that the engine's own objects can go at once.

    `prompt_id` is shared by the answers to one prompt; `reason` is vLLM's finish reason, and its str() the word for it. Tokens
    are as the engine's own counters have them; of the cached ones, a KV connector brought `external`. `stats` are the
    engine's, which it changes no more: numbers, and no other object of its own.
    """

    request_id: str
    prompt_id: str
    ordinal: int
    lora_name: str | None
    reason: object
    prompt: int
    cached: int
    output: int
    stats: SequenceStats
    external: int = 0


def closed_sequence(state: SequenceState, reason: object, prefill: PrefillStats | None = None) -> ClosedSequence:
    """A sequence that ended for that reason just now. `prefill` is what the engine said of its prompt (with a connector)."""
    stats, parent = state.stats or _NO_STATS, state.parent_req
    output = stats.num_generation_tokens if stats is not _NO_STATS else _detokenized(state)
    prompt = cached = external = 0
    # The engine counts a prompt with its first output. An aborted or failed sequence may have ended before.
    if not (state.is_prefilling or (output == 0 and str(reason) in (ABORTED, FAILED))):
        prompt, cached = state.prompt_len, state.num_cached_tokens
        if prefill is not None:
            # Not the state's: there it may be what another worker, which computed the prompt, had cached.
            cached, external = prefill.num_cached_tokens, prefill.num_external_cached_tokens
    else:
        output = 0
    return ClosedSequence(
        state.request_id,
        parent.request_id if parent is not None else state.request_id,
        state.request_index,
        state.lora_name,
        reason,
        prompt,
        cached if cached < prompt else prompt,
        output,
        stats,
        min(external, cached, prompt) if external else 0,
    )


def _detokenized(state: SequenceState) -> int:
    return state.detokenizer.num_output_tokens() if state.detokenizer is not None else 0


class Exchange(msgspec.Struct, gc=False, eq=False):
    """A request. `over` is set when its answer has ended; it leaves once no sequence is open either.

    A sequence that starts after that (a background task of the request) makes another part, with an event of its own.
    `started` is in seconds of time.perf_counter; `number` is None while nothing of it is in the engine or waits to leave.
    """

    tags: Forwarded | None
    path: str
    started: float
    number: int | None = None
    part: int = 0
    open: int = 0
    closed: list[ClosedSequence] | None = None
    over: bool = False
    failed: bool = False


class Part(msgspec.Struct, gc=False, eq=False, frozen=True):
    """The closed sequences of an exchange that one event is made of. `total_seconds` is since the exchange's start."""

    tags: Forwarded | None
    path: str
    failed: bool
    number: int
    ordinal: int
    sequences: list[ClosedSequence]
    total_seconds: float
