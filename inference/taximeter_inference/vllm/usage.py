"""From the closed sequences of a request to its usage event. Pure.

The engine's count is the truth: what a sequence generated, also when its stream broke off, and its prompt once the first token
was there (before that the engine counts nothing, and neither does the event). A prompt with several answers (n > 1) passes the
engine once an answer but is billed once, as its first answer was computed; the engine's own sums then stand in attributes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.gateway.tags import PLACE_ATTRIBUTE
from taximeter_inference.vllm.blocks import BlockReport
from taximeter_inference.vllm.connector import DEFAULT, Tier
from taximeter_inference.vllm.exchange import ClosedSequence, Part
from taximeter_inference.vllm.tags import OPERATIONS, is_named, root_of, untagged
from taximeter_schemas.events import TOKENS_MAX, Operation, Outcome
from taximeter_schemas.wire import Cache, CacheRead, Timing, Tokens, UsageData, UsageEvent, Worker

ATTRIBUTES_MAX, VALUE_CHARACTERS_MAX = 32, 256
_MILLISECONDS_MAX = 86_400_000.0
_OUTCOMES = {"length": Outcome.LENGTH, "abort": Outcome.ABORTED, "error": Outcome.ERROR}
_WORST_FIRST = (Outcome.ERROR, Outcome.ABORTED, Outcome.LENGTH, Outcome.COMPLETED)
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9._:/@+-]")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who meters: the worker's name, its name in this start, the base model's served name, the tier of its KV connector."""

    worker: str
    boot: str
    model: str
    connector: Tier = DEFAULT


def build_event(
    part: Part, origin: Origin, gpu_seconds: float, blocks: BlockReport, now: datetime, monotonic_now: float
) -> UsageEvent:
    """The event of a part of a request. Its time is when the engine began on it, so that cache uses lie in causal order."""
    tags = part.tags or untagged(part.path)
    named = is_named(tags)
    identity = tags.request_id if named else f"{origin.boot}:{part.number}"
    if part.ordinal:
        identity = f"{identity}/{part.ordinal}"
    billed = billed_sequences(part.sequences)
    operation = tags.operation if tags.operation is not Operation.OTHER else OPERATIONS.get(part.path, Operation.OTHER)
    return UsageEvent(
        id=identity,
        source=gateway_source(tags.request_id) if named else f"taximeter-vllm/{origin.worker}",
        time=_began(part, now, monotonic_now),
        subject=tags.tenant,
        data=UsageData(
            tenant=tags.tenant,
            feature=tags.feature,
            model=as_tag(origin.model),
            adapter=next((as_tag(closed.lora_name) for closed in part.sequences if closed.lora_name), None),
            tokens=_tokens(part, billed, origin.connector),
            operation=operation,
            request_id=identity,
            root_request_id=root_of(tags) or identity,
            hop=tags.hop,
            attempt=tags.attempt,
            outcome=_outcome(part),
            cache=Cache(
                pool=tags.pool,
                block_size=blocks.block_size,
                hit_blocks=blocks.hit_blocks,
                blocks=list(blocks.blocks),
                attribution=blocks.attribution,
            ),
            timing=_timing(part),
            worker=Worker(id=origin.boot, sequence=part.number, gpu_seconds=round(gpu_seconds, 9)),
            service_tier=tags.service_tier,
            lease_id=tags.lease_id,
            attributes=_attributes(part, billed, given_attributes(tags), blocks.attributes),
        ),
    )


def gateway_source(request_id: str) -> str:
    """The source of the event that the gateway would send for a request that it named, so that the two are one."""
    return f"taximeter-gateway/{request_id.partition(':')[0]}"


def given_attributes(tags: Forwarded) -> dict[str, str]:
    """What the gateway says of a request, without its place in a trace."""
    return {name: value for name, value in tags.attributes.items() if name != PLACE_ATTRIBUTE}


def traceparent_of(tags: Forwarded | None) -> str:
    """The place in a trace that the gateway gave the request; empty where there is none."""
    return tags.attributes.get(PLACE_ATTRIBUTE, "") if tags is not None else ""


def as_tag(name: str) -> str:
    """A model's name as a tag."""
    return _NOT_IN_TAGS.sub("-", name).lstrip("._:/@+-")[:128] or "unnamed"


def billed_sequences(sequences: Sequence[ClosedSequence]) -> list[ClosedSequence]:
    """One sequence of each prompt: the first of its answers that the engine counted a prompt for."""
    first: dict[str, ClosedSequence] = {}
    for closed in sorted(sequences, key=lambda closed: closed.ordinal):
        if closed.prompt:
            first.setdefault(closed.prompt_id, closed)
    return list(first.values())


def _began(part: Part, now: datetime, monotonic_now: float) -> datetime:
    stats = [one.stats for one in part.sequences]
    began = min((one.scheduled_ts for one in stats if one.scheduled_ts > 0.0), default=monotonic_now)
    return now - timedelta(seconds=max(0.0, monotonic_now - began))


def _tokens(part: Part, billed: Sequence[ClosedSequence], connector: Tier) -> Tokens:
    prompt = sum(closed.prompt for closed in billed)
    cached = sum(closed.cached for closed in billed)
    external = sum(closed.external for closed in billed)
    read = {"gpu": cached - external}
    read[connector] = read.get(connector, 0) + external
    output = sum(closed.output for closed in part.sequences)
    return Tokens(
        uncached_input=min(prompt - cached, TOKENS_MAX),
        cache_read=CacheRead(**{tier: min(tokens, TOKENS_MAX) for tier, tokens in read.items()}),
        output=min(output, TOKENS_MAX),
    )


def _outcome(part: Part) -> Outcome:
    if part.failed:
        return Outcome.ERROR
    found = {_OUTCOMES.get(str(closed.reason), Outcome.COMPLETED) for closed in part.sequences}
    return next(outcome for outcome in _WORST_FIRST if outcome in found or outcome is Outcome.COMPLETED)


def _timing(part: Part) -> Timing:
    stats = [one.stats for one in part.sequences]
    queued = [one.scheduled_ts - one.queued_ts for one in stats if one.scheduled_ts > 0.0 and one.queued_ts > 0.0]
    first = [one.first_token_latency for one in stats if one.first_token_ts > 0.0]
    return Timing(
        queue_ms=_milliseconds(max(queued)) if queued else None,
        ttft_ms=_milliseconds(min(first)) if first else None,
        total_ms=_milliseconds(part.total_seconds),
    )


def _attributes(
    part: Part,
    billed: Sequence[ClosedSequence],
    given: Mapping[str, str],
    cache: Mapping[str, str],
) -> dict[str, str]:
    found, stats = part.sequences, [one.stats for one in part.sequences]
    decode = [one.last_token_ts - one.first_token_ts for one in stats if one.first_token_ts > 0.0]
    preemptions = sum(one.num_preemptions for one in stats)
    engine = {"engine.requests": _joined([one.request_id for one in found])}
    if decode:
        engine["engine.decode_ms"] = str(round(_milliseconds(max(decode)), 3))
    if preemptions:
        engine["engine.preemptions"] = str(preemptions)
    if len(billed) != sum(1 for one in found if one.prompt):
        engine["engine.prompt_tokens"] = str(sum(one.prompt for one in found))
        engine["engine.cached_tokens"] = str(sum(one.cached for one in found))
        if external := sum(one.external for one in found):
            engine["engine.external_tokens"] = str(external)
    engine |= cache
    room = ATTRIBUTES_MAX - len(engine)
    return {**dict(list(given.items())[:room]), **engine}


def _joined(names: Sequence[str]) -> str:
    """As many as fit, and how many more there are."""
    text = ""
    for index, name in enumerate(names):
        more = f" and {len(names) - index} more"
        if len(text) + 1 + len(name) + len(more) > VALUE_CHARACTERS_MAX:
            return (text + more)[:VALUE_CHARACTERS_MAX]
        text += f",{name}" if text else name
    return text


def _milliseconds(seconds: float) -> float:
    return min(max(0.0, seconds * 1_000), _MILLISECONDS_MAX)
