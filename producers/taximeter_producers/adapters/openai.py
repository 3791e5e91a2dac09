"""Usage objects in OpenAI's two shapes (chat completions, responses), and those that OpenRouter makes of them. Pure.

Both are inclusive: cached tokens and tokens written to a cache are within the prompt, reasoning is within the completion.
Some servers that speak the same shape count reasoning beside the completion (xAI, Gemini's compatible endpoint); their
`total_tokens` says so, and is believed.

OpenAI keeps a written prefix for 30 minutes or 12 hours; the schema knows a short and a long lifetime, called 5m and 1h
after the first vendor that sold them. What is kept for less than an hour counts as 5m, the rest as 1h.
"""

from taximeter_producers.adapters.disjoint import disjoint_tokens
from taximeter_producers.adapters.usage_fields import UsageFields, UsageObject, bounded
from taximeter_producers.errors import UsageSumError
from taximeter_schemas.events import CacheRead, CacheWrite, Tokens

_SHORT_LIFETIMES = ("ttl_30m_tokens", "ephemeral_5m_input_tokens", "ephemeral_30m_input_tokens")
_LONG_LIFETIMES = ("ttl_12h_tokens", "ephemeral_1h_input_tokens", "ephemeral_12h_input_tokens")
_WRITE_DETAILS = ("cache_write_tokens_details", "cache_creation_token_details")
_WRITES = ("cache_write_tokens", "cache_creation_tokens")


@bounded
def tokens_from_openai(usage: UsageObject) -> Tokens:
    """The usage of a chat completion, a completion, an embedding or a response. Cached tokens are the provider's.

    Raises UsageShapeError and UsageSumError.
    """
    return provider_tokens(UsageFields("openai", usage))


@bounded
def tokens_from_openrouter(usage: UsageObject) -> Tokens:
    """OpenRouter's usage, which is OpenAI's with `cache_write_tokens`; its cost in credits is not read. Raises as above."""
    return provider_tokens(UsageFields("openrouter", usage))


def provider_tokens(fields: UsageFields) -> Tokens:
    """A usage whose cache belongs to the provider."""
    details = fields.inner("prompt_tokens_details", "input_tokens_details")
    cached = (details.count("cached_tokens") if details else None) or 0
    return openai_tokens(fields, CacheRead(provider=cached), cache_writes(details))


def openai_tokens(fields: UsageFields, cache_read: CacheRead, cache_write: CacheWrite) -> Tokens:
    """A usage of either shape, with what is known of the cache."""
    prompt = fields.required("prompt_tokens", "input_tokens")
    total = fields.count("total_tokens")
    completion = fields.count("completion_tokens", "output_tokens")
    if completion is None and total is None:
        completion = fields.required("completion_tokens", "output_tokens")
    details = fields.inner("completion_tokens_details", "output_tokens_details")
    reasoning = (details.count("reasoning_tokens") if details else None) or fields.count("reasoning_tokens") or 0
    output = _output(prompt, completion or 0, reasoning, total)
    return disjoint_tokens(prompt, output, cache_read=cache_read, cache_write=cache_write, reasoning=reasoning)


def cache_writes(details: UsageFields | None) -> CacheWrite:
    """Tokens written to a cache, by lifetime; those without one are short-lived. Raises UsageSumError."""
    if details is None:
        return CacheWrite()
    written = details.count(*_WRITES)
    lifetimes = details.inner(*_WRITE_DETAILS)
    if lifetimes is None:
        return CacheWrite(five_minutes=written or 0)
    short = sum(lifetimes.count(name) or 0 for name in _SHORT_LIFETIMES)
    long = sum(lifetimes.count(name) or 0 for name in _LONG_LIFETIMES)
    if written is not None and written != short + long:
        raise UsageSumError(f"{written} tokens were written to a cache, but {short} and {long} by lifetime")
    return CacheWrite(five_minutes=short, one_hour=long)


def _output(prompt: int, completion: int, reasoning: int, total: int | None) -> int:
    if total is None or total == prompt + completion:
        return completion
    if total == prompt + completion + reasoning:
        return completion + reasoning
    raise UsageSumError(f"total_tokens is {total}, the parts are {prompt} and {completion}")
