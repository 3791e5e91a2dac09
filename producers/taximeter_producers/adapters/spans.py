"""OpenTelemetry GenAI spans as usage events: one for each request to a model. Pure, but for the memory of hops passed in.

An event's id is made of trace id and span id, so a span that is exported twice counts once. A turn is a trace: its id is
the root, and the nearest request above in the same export is named as parent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from pydantic import ValidationError

from taximeter_producers.adapters.genai import (
    SERVICE_TIER,
    detail,
    has_usage,
    is_genai,
    operation_of,
    outcome_of,
    same_request,
    tokens_of,
)
from taximeter_producers.adapters.span import Span
from taximeter_producers.adapters.turns import HOP_MAX, Turns
from taximeter_producers.adapters.vocabulary import first_problem, service_tier
from taximeter_producers.errors import SpanError, UsageObjectError
from taximeter_schemas.events import Operation, Outcome, Timing, UsageData, UsageEvent

SpanKey = tuple[str, str]
"""Trace id and span id."""
SOURCE = "opentelemetry"
PARENT_ATTRIBUTE = "parent_request_id"
"""Names the request that a request was made for; `taximeter trace` draws the tree by it."""
_KEPT = (
    "service.name",
    "gen_ai.provider.name",
    "gen_ai.response.model",
    "gen_ai.response.id",
    "gen_ai.conversation.id",
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VALUE_CHARACTERS_MAX = 256
_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class TagNames:
    """Where the tags stand: for each the names of attributes, the first one found counts, on the span or its resource."""

    tenant: tuple[str, ...] = ("taximeter.tenant", "tenant.id")
    feature: tuple[str, ...] = ("taximeter.feature", "service.name")
    model: tuple[str, ...] = ("gen_ai.request.model", "gen_ai.response.model")


@dataclass(slots=True)
class Reading:
    """What became of spans.

    `rejected` says why, one text a span; `ignored` is how many are not requests to a model, or refused ones that used
    nothing; `repeated` is how many were about a request that another span is counted for.
    """

    events: list[UsageEvent] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    ignored: int = 0
    repeated: int = 0


def read_spans(spans: Sequence[Span], names: TagNames, turns: Turns) -> Reading:
    """The usage events of the spans of one export."""
    reading = Reading()
    requests = _requests(spans, turns, reading)
    parents = {(span.trace_id, span.span_id): span.parent_span_id for span in spans}
    for span, operation in requests.values():
        try:
            parent = _request_above(span, parents, requests)
            reading.events.append(_event(span, operation, names, turns, parent))
        except (SpanError, UsageObjectError) as error:
            reading.rejected.append(_named(span, error))
    return reading


def _requests(spans: Sequence[Span], turns: Turns, reading: Reading) -> dict[SpanKey, tuple[Span, Operation]]:
    """The spans that are requests to a model, each request once, in the order in which they began."""
    found: dict[SpanKey, tuple[Span, Operation]] = {}
    for span in sorted(spans, key=lambda one: (-detail(one), one.start_ns, one.span_id)):
        try:
            operation = operation_of(span) if is_genai(span) else None
        except SpanError as error:
            reading.rejected.append(_named(span, error))
            continue
        if operation is None or (outcome_of(span) is Outcome.REFUSED and not has_usage(span)):
            reading.ignored += 1
            continue
        request = same_request(span)
        if request is not None and not turns.counts(span.trace_id, request, span.span_id):
            reading.repeated += 1
            continue
        found[span.trace_id, span.span_id] = span, operation
    return dict(sorted(found.items(), key=lambda item: (item[1][0].start_ns, item[0])))


def request_id(trace_id: str, span_id: str) -> str:
    """The id of a span's event, which is also its request's."""
    return f"{trace_id}-{span_id}"


def _event(span: Span, operation: Operation, names: TagNames, turns: Turns, parent: str | None) -> UsageEvent:
    for name, value, digits in (("trace id", span.trace_id, 32), ("span id", span.span_id, 16)):
        if len(value) != digits or not value.strip("0"):
            raise SpanError(f"its {name} is not valid")
    if not 0 < span.start_ns <= span.end_ns:
        raise SpanError("it ended before it began, or has no times")
    tenant, feature, model = (
        _tag(span, "tenant", names.tenant),
        _tag(span, "feature", names.feature),
        _tag(span, "model", names.model),
    )
    outcome = outcome_of(span)
    own_id = request_id(span.trace_id, span.span_id)
    tokens = tokens_of(span, outcome)
    hop = _number(span, "taximeter.hop")
    try:
        return UsageEvent(
            id=own_id,
            source=SOURCE,
            time=_EPOCH + timedelta(microseconds=span.end_ns // 1_000),
            subject=tenant,
            data=UsageData(
                tenant=tenant,
                feature=feature,
                model=model,
                tokens=tokens,
                operation=operation,
                request_id=own_id,
                root_request_id=_root(span),
                hop=turns.hop(span.trace_id, span.span_id) if hop is None else hop,
                attempt=_number(span, "taximeter.attempt") or 0,
                outcome=outcome,
                timing=_timing(span),
                service_tier=service_tier(span.attribute(SERVICE_TIER)),
                attributes=_kept(span, parent),
            ),
        )
    except (ValidationError, OverflowError) as error:
        raise SpanError(f"it cannot be a usage event: {first_problem(error)}") from None


def _tag(span: Span, what: str, names: tuple[str, ...]) -> str:
    value = span.attribute(names)
    if value is None:
        raise SpanError(f"it has no {what}: set {' or '.join(names)} on the span or its resource")
    if not isinstance(value, str):
        raise SpanError(f"its {what} is not a text: {value!r:.64}")
    return value


def _root(span: Span) -> str:
    root = span.attribute(("taximeter.root_request_id",))
    return span.trace_id if root is None else str(root)


def _number(span: Span, name: str) -> int | None:
    value = span.attributes.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= HOP_MAX:
        raise SpanError(f"{name} is not a whole number from 0 to {HOP_MAX}: {value!r:.64}")
    return value


def _timing(span: Span) -> Timing:
    first_chunk = span.attributes.get("gen_ai.response.time_to_first_chunk")  # in seconds
    is_number = isinstance(first_chunk, int | float) and not isinstance(first_chunk, bool)
    ttft_ms = float(first_chunk) * 1_000 if is_number else None  # type: ignore[arg-type]
    return Timing(ttft_ms=ttft_ms, total_ms=(span.end_ns - span.start_ns) / _NS_PER_MS)


def _kept(span: Span, parent: str | None) -> dict[str, str]:
    kept = {
        name: str(value)[:_VALUE_CHARACTERS_MAX] for name in _KEPT if (value := span.attribute((name,))) is not None
    }
    return kept if parent is None else {**kept, PARENT_ATTRIBUTE: parent}


def _request_above(
    span: Span, parents: dict[SpanKey, str], requests: dict[SpanKey, tuple[Span, Operation]]
) -> str | None:
    """The nearest request above that is part of the same export."""
    seen = {span.span_id}
    above = span.parent_span_id
    while above and above not in seen:
        if (span.trace_id, above) in requests:
            return request_id(span.trace_id, above)
        seen.add(above)
        above = parents.get((span.trace_id, above), "")
    return None


def _named(span: Span, error: Exception) -> str:
    return f"span {quote(span.span_id)[:16] or '(without id)'}: {error}"
