"""A call as LiteLLM hands it to its callbacks, as a usage event. Pure.

LiteLLM brings every provider's usage into OpenAI's shape, so the cache's reads and writes are within the prompt there. An
event's id is LiteLLM's call id; failed attempts, of which a call can have several, take the time at which they began too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from taximeter_producers.adapters.openai import cache_writes, openai_tokens
from taximeter_producers.adapters.usage_fields import SdkUsage, UsageFields, bounded
from taximeter_producers.adapters.vocabulary import OWN_ENGINES, first_problem, service_tier
from taximeter_producers.errors import CallError
from taximeter_schemas.events import (
    CacheRead,
    CacheWrite,
    Operation,
    Outcome,
    Timing,
    Tokens,
    UsageData,
    UsageEvent,
)

Fields = Mapping[str, object]

OPERATIONS: Mapping[str, Operation] = {
    "completion": Operation.CHAT,
    "text_completion": Operation.COMPLETION,
    "embedding": Operation.EMBEDDING,
    "rerank": Operation.RERANK,
    "responses": Operation.RESPONSE,
    "anthropic_messages": Operation.CHAT,
    "generate_content": Operation.CHAT,
}
"""By LiteLLM's call type, without the a of the asynchronous ones."""
UNKNOWN_USAGE = {"taximeter.usage": "unknown"}
"""Marks the event of a stream that broke off after it began: LiteLLM does not say what it had used."""
_KEPT = {"custom_llm_provider": "litellm.provider", "model": "litellm.model"}
_OF_THE_KEY = "user_api_key_"
_VALUE_CHARACTERS_MAX = 256


@dataclass(frozen=True, slots=True)
class CallNames:
    """Where the tags stand in a call's metadata: the first key found counts. `source` names who reports.

    On a proxy, clients write metadata themselves: take the tenant from what the proxy knows of the key, such as
    `user_api_key_team_id`.
    """

    tenant: tuple[str, ...] = ("tenant",)
    feature: tuple[str, ...] = ("feature",)
    root: tuple[str, ...] = ("root_request_id",)
    source: str = "litellm"


def event_of_call(kwargs: Fields, response: object, names: CallNames, *, failed: bool) -> UsageEvent | None:
    """The event of a call that ended; None where nothing was used: an answer from LiteLLM's own cache, or a refusal (4xx).

    Raises CallError, UsageShapeError and UsageSumError.
    """
    logged = _fields(kwargs.get("standard_logging_object"))
    if kwargs.get("cache_hit") is True or logged.get("cache_hit") is True:
        return None
    outcome = _outcome(logged, response, failed=failed)
    usage = _usage(logged, response)
    if outcome is Outcome.REFUSED and usage is None:
        return None
    metadata = _metadata(kwargs, logged)
    began, first, ended = (_seconds(logged, name) for name in ("startTime", "completionStartTime", "endTime"))
    call_id = _text(kwargs.get("litellm_call_id")) or _text(logged.get("litellm_call_id"))
    if call_id is None:
        raise CallError("the call has no litellm_call_id")
    own_id = f"{call_id}:{round(began * 1_000_000)}" if failed else call_id
    is_stream = kwargs.get("stream") is True or logged.get("stream") is True
    tenant = _tag(metadata, "tenant", names.tenant)
    try:
        return UsageEvent(
            id=own_id,
            source=names.source,
            time=datetime.fromtimestamp(ended, UTC),
            subject=tenant,
            data=UsageData(
                tenant=tenant,
                feature=_tag(metadata, "feature", names.feature),
                model=_text(logged.get("model_group")) or _text(kwargs.get("model")) or "",
                tokens=tokens_from_litellm(usage, _provider(kwargs)) if usage is not None else _unknown(outcome),
                operation=_operation(kwargs, logged),
                request_id=own_id,
                root_request_id=_found(metadata, names.root) or _text(logged.get("trace_id")) or call_id,
                hop=_number(metadata, "hop"),
                attempt=_attempt(metadata),
                outcome=outcome,
                timing=Timing(
                    ttft_ms=max(0.0, first - began) * 1_000 if is_stream and not failed else None,
                    total_ms=max(0.0, ended - began) * 1_000,
                ),
                service_tier=service_tier(_fields(response).get("service_tier")),
                attributes=_kept(kwargs) | (UNKNOWN_USAGE if usage is None and is_stream and first < ended else {}),
            ),
        )
    except (ValidationError, OverflowError, OSError) as error:
        raise CallError(f"call {call_id} cannot be a usage event: {first_problem(error)}") from None


@bounded
def tokens_from_litellm(usage: object, provider: str = "") -> Tokens:
    """LiteLLM's usage object. What its engine or provider cached is by default the provider's. Raises UsageObjectError."""
    fields = UsageFields("litellm", usage)
    details = fields.inner("prompt_tokens_details", "input_tokens_details")
    cached = details.count("cached_tokens") if details else None
    read = cached if cached is not None else fields.count("cache_read_input_tokens") or 0
    written = cache_writes(details)
    if written == CacheWrite():
        written = CacheWrite(five_minutes=fields.count("cache_creation_input_tokens") or 0)
    own = provider in OWN_ENGINES
    return openai_tokens(fields, CacheRead(gpu=read) if own else CacheRead(provider=read), written)


def _usage(logged: Fields, response: object) -> object | None:
    """The usage object; an empty one says nothing."""
    for usage in (_fields(response).get("usage"), _fields(logged.get("metadata")).get("usage_object")):
        if usage is not None and (not isinstance(usage, Mapping) or usage):
            return usage
    return None


def _unknown(outcome: Outcome) -> Tokens:
    if outcome in (Outcome.ERROR, Outcome.ABORTED):
        return Tokens()
    raise CallError("the call ended well but states no usage; ask the provider for it (stream_options.include_usage)")


def _outcome(logged: Fields, response: object, *, failed: bool) -> Outcome:
    if failed:
        error = _fields(logged.get("error_information"))
        code, kind = str(error.get("error_code") or ""), str(error.get("error_class") or "").lower()
        if "cancel" in kind or "disconnect" in kind:
            return Outcome.ABORTED
        return Outcome.REFUSED if len(code) == 3 and code.startswith("4") and code != "408" else Outcome.ERROR
    choices = _fields(response).get("choices")
    reasons = [_fields(choice).get("finish_reason") for choice in choices] if isinstance(choices, list) else []
    return Outcome.LENGTH if "length" in reasons else Outcome.COMPLETED


def _metadata(kwargs: Fields, logged: Fields) -> Fields:
    """All that is known about who called; what the code that called LiteLLM said comes before what its own client said.

    What LiteLLM's proxy knows of a key is never taken from a client, who could claim another tenant's.
    """
    params = _fields(kwargs.get("litellm_params"))
    known = _fields(logged.get("metadata"))
    claimed = _fields(known.get("requester_metadata"))
    merged = {name: value for name, value in claimed.items() if not name.startswith(_OF_THE_KEY)}
    for source in (known, params.get("litellm_metadata"), params.get("metadata")):
        merged.update({name: value for name, value in _fields(source).items() if value not in (None, "")})
    return merged


def _tag(metadata: Fields, what: str, names: tuple[str, ...]) -> str:
    found = _found(metadata, names)
    if found is None:
        raise CallError(f"the call has no {what}: put {' or '.join(names)} into its metadata")
    return found


def _found(metadata: Fields, names: tuple[str, ...]) -> str | None:
    return next((str(metadata[name]) for name in names if metadata.get(name) not in (None, "")), None)


def _number(metadata: Fields, name: str) -> int:
    value = metadata.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise CallError(f"{name} in the metadata is not a whole number: {value!r:.64}")
    return value


def _attempt(metadata: Fields) -> int:
    """Which try this was: as the caller says, or as LiteLLM's router counts its retries of each of its fallbacks."""
    if "attempt" in metadata:
        return _number(metadata, "attempt")
    tries_each = _number(metadata, "max_retries") + 1
    return _number(metadata, "attempted_fallbacks") * tries_each + _number(metadata, "attempted_retries")


def _operation(kwargs: Fields, logged: Fields) -> Operation:
    call_type = _text(kwargs.get("call_type")) or _text(logged.get("call_type")) or ""
    known = OPERATIONS.get(call_type) or OPERATIONS.get(call_type.removeprefix("a"))
    return known or Operation.OTHER


def _kept(kwargs: Fields) -> dict[str, str]:
    return {name: text[:_VALUE_CHARACTERS_MAX] for key, name in _KEPT.items() if (text := _text(kwargs.get(key)))}


def _provider(kwargs: Fields) -> str:
    return _text(kwargs.get("custom_llm_provider")) or ""


def _seconds(logged: Fields, name: str) -> float:
    """A time of the call in seconds since 1970."""
    value = logged.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CallError(f"the call has no {name}: LiteLLM's standard_logging_object is missing or incomplete")
    return float(value)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _fields(value: object) -> Fields:
    if isinstance(value, SdkUsage) and not isinstance(value, type):
        return value.model_dump()
    return value if isinstance(value, Mapping) else {}
