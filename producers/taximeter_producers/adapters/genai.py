"""What a GenAI span says, by the OpenTelemetry semantic conventions, and by the names they had before. Pure.

https://github.com/open-telemetry/semantic-conventions-genai (docs/gen-ai/gen-ai-spans.md)
"""

from collections.abc import Mapping

from taximeter_producers.adapters.disjoint import disjoint_tokens
from taximeter_producers.adapters.span import AttributeValue, Span
from taximeter_producers.adapters.usage_fields import UsageFields, bounded
from taximeter_producers.adapters.vocabulary import OWN_ENGINES
from taximeter_producers.errors import SpanError, UsageSumError
from taximeter_schemas.events import CacheRead, CacheWrite, Operation, Outcome, Tokens

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
MARKS = (OPERATION, PROVIDER, "gen_ai.system", "llm.request.type")
USAGE_PREFIX = "gen_ai.usage."

OPERATIONS: Mapping[str, Operation] = {
    "chat": Operation.CHAT,
    "generate_content": Operation.CHAT,
    "text_completion": Operation.COMPLETION,
    "completion": Operation.COMPLETION,
    "embeddings": Operation.EMBEDDING,
    "embedding": Operation.EMBEDDING,
    "rerank": Operation.RERANK,
    "score": Operation.SCORE,
    "responses": Operation.RESPONSE,
}
"""Requests to a model. The conventions know chat, generate_content, text_completion and embeddings."""

WITHOUT_USAGE_OF_THEIR_OWN = frozenset(
    {
        "create_agent",
        "invoke_agent",
        "invoke_workflow",
        "execute_tool",
        "plan",
        "retrieval",
        "create_memory",
        "create_memory_store",
        "delete_memory",
        "delete_memory_store",
        "search_memory",
        "update_memory",
        "upsert_memory",
    }
)
"""Their usage, where they have some, is the sum of the requests below them; to count it too would count twice."""

_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_READ = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens")
_WRITTEN = (
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
)
_LONG_LIVED = ("anthropic.usage.cache_creation.ephemeral_1h_input_tokens",)
_REASONING = ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens")
SERVICE_TIER = ("openai.response.service_tier", "gen_ai.openai.response.service_tier")
_CANCELLED = ("cancel", "abort", "generatorexit", "disconnect")
_CUT = ("length", "max_tokens")
_ENDED = ("gen_ai.response.finish_reasons", "anthropic.message.stop_reason")
_STATUS_CODE = ("http.response.status_code", "error.type")
_REFUSALS = ("badrequest", "authentication", "permission", "notfound", "ratelimit", "unprocessable", "invalidrequest")


def is_genai(span: Span) -> bool:
    """Whether the span is about generative AI at all."""
    return any(name in span.attributes for name in MARKS) or has_usage(span)


def has_usage(span: Span) -> bool:
    """Whether the span states a number of tokens."""
    return any(name.startswith(USAGE_PREFIX) for name in span.attributes)


def operation_of(span: Span) -> Operation | None:
    """What a request to a model asked for; None for spans that have no usage of their own.

    Raises SpanError when it has usage and nothing says whether that is its own or a sum over the spans below it.
    """
    name = span.attributes.get(OPERATION) or span.attributes.get("llm.request.type")
    if isinstance(name, str) and name in OPERATIONS:
        return OPERATIONS[name]
    if name in WITHOUT_USAGE_OF_THEIR_OWN or not has_usage(span):
        return None
    if name is None:
        raise SpanError(f"it has usage but no {OPERATION}")
    raise SpanError(f"{OPERATION} {name!r:.64} is not known, so its usage may be a sum over other spans")


@bounded
def tokens_of(span: Span, outcome: Outcome) -> Tokens:
    """The tokens of a request to a model; input and output include all their kinds. Raises UsageObjectError.

    A request that failed and states no usage used none; one that did not fail must state its input.
    """
    fields = UsageFields("opentelemetry", span.attributes, "attributes")
    if outcome in (Outcome.ERROR, Outcome.ABORTED) and not has_usage(span):
        return Tokens()
    read, written, long_lived = (fields.count(*names) or 0 for names in (_READ, _WRITTEN, _LONG_LIVED))
    if long_lived > written:
        raise UsageSumError(f"opentelemetry: {long_lived} tokens were written for an hour, of {written} written")
    own = str(span.attributes.get(PROVIDER) or span.attributes.get("gen_ai.system")).lower() in OWN_ENGINES
    return disjoint_tokens(
        fields.required(*_INPUT),
        fields.count(*_OUTPUT) or 0,
        cache_read=CacheRead(gpu=read) if own else CacheRead(provider=read),
        cache_write=CacheWrite(five_minutes=written - long_lived, one_hour=long_lived),
        reasoning=fields.count(*_REASONING) or 0,
    )


def outcome_of(span: Span) -> Outcome:
    """How the request ended. Refused: the server did not take it, as for a wrong name or too many requests."""
    error = span.attributes.get("error.type")
    if span.failed or error:
        kind = str(error or "").lower()
        if any(mark in kind for mark in _CANCELLED):
            return Outcome.ABORTED
        return Outcome.REFUSED if _is_refusal(span, kind) else Outcome.ERROR
    ended: list[AttributeValue] = []
    for name in _ENDED:
        reasons = span.attributes.get(name)
        ended.extend(reasons if isinstance(reasons, tuple) else (reasons,))
    return Outcome.LENGTH if any(str(reason).lower() in _CUT for reason in ended) else Outcome.COMPLETED


def same_request(span: Span) -> tuple[AttributeValue, ...] | None:
    """What two spans of one trace share that are about the same request; None where the answer has no id.

    A client library and an instrumentation around it both make a span for a request; it must be counted once.
    """
    answer = span.attributes.get("gen_ai.response.id")
    if not answer:
        return None
    counts = (
        next((span.attributes[name] for name in names if name in span.attributes), None) for names in (_INPUT, _OUTPUT)
    )
    return (answer, *counts)


def detail(span: Span) -> int:
    """How much the span says about usage: of two about the same request, the one that says more is counted."""
    return sum(".usage." in name for name in span.attributes)


def _is_refusal(span: Span, kind: str) -> bool:
    codes = [str(span.attributes.get(name)) for name in _STATUS_CODE]
    return any(len(code) == 3 and code.startswith("4") for code in codes) or any(mark in kind for mark in _REFUSALS)
