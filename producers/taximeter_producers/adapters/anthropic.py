"""Anthropic's usage objects. Pure.

They are additive: `input_tokens` is what was neither read from nor written to a cache. Writes are told apart by lifetime
in `cache_creation`; without it they are of the default lifetime, five minutes.
"""

from taximeter_producers.adapters.usage_fields import UsageFields, UsageObject, bounded
from taximeter_producers.errors import UsageSumError
from taximeter_schemas.events import CacheRead, CacheWrite, Tokens

_VENDOR = "anthropic"


@bounded
def tokens_from_anthropic(usage: UsageObject) -> Tokens:
    """The usage of a message. The tokens of its compactions, which stand in `iterations` alone, are added.

    An `advisor_message` among the iterations is a request to another model: it takes an event of its own, and its entry
    can be read by this function. Raises UsageShapeError and UsageSumError.
    """
    fields = UsageFields(_VENDOR, usage)
    tokens = _tokens(fields)
    for iteration in fields.items("iterations"):
        if iteration.text("type") == "compaction":
            tokens = _added(tokens, _tokens(iteration))
    return tokens


@bounded
def tokens_from_anthropic_stream(start: UsageObject, delta: UsageObject) -> Tokens:
    """The usage of a stream, from the one in `message_start` and the last one in `message_delta`, which is cumulative.

    Raises UsageShapeError and UsageSumError.
    """
    first, last = UsageFields(_VENDOR, start, "message_start.usage"), UsageFields(_VENDOR, delta, "message_delta.usage")
    merged = first.present() | last.present()
    known = last.count("cache_creation_input_tokens")
    if (
        known is not None
        and known != first.count("cache_creation_input_tokens")
        and last.inner("cache_creation") is None
    ):
        merged.pop("cache_creation", None)  # The split by lifetime belongs to a count that has moved on.
    return tokens_from_anthropic(merged)


def _tokens(fields: UsageFields) -> Tokens:
    uncached, output = fields.required("input_tokens"), fields.required("output_tokens")
    read = fields.count("cache_read_input_tokens") or 0
    written = fields.count("cache_creation_input_tokens")
    cache_write = CacheWrite(five_minutes=written or 0)
    if (lifetimes := fields.inner("cache_creation")) is not None:
        short = lifetimes.count("ephemeral_5m_input_tokens") or 0
        long = lifetimes.count("ephemeral_1h_input_tokens") or 0
        if written is not None and written != short + long:
            raise UsageSumError(
                f"{_VENDOR}: cache_creation_input_tokens is {written}, the lifetimes add up to {short + long}"
            )
        cache_write = CacheWrite(five_minutes=short, one_hour=long)
    details = fields.inner("output_tokens_details")
    reasoning = (details.count("thinking_tokens") if details else None) or 0
    if reasoning > output:
        raise UsageSumError(f"{_VENDOR}: {reasoning} tokens of thinking, of {output} output tokens")
    return Tokens(
        uncached_input=uncached,
        cache_read=CacheRead(provider=read),
        cache_write=cache_write,
        output=output,
        reasoning=reasoning,
    )


def _added(tokens: Tokens, more: Tokens) -> Tokens:
    return Tokens(
        uncached_input=tokens.uncached_input + more.uncached_input,
        cache_read=CacheRead(provider=tokens.cache_read.provider + more.cache_read.provider),
        cache_write=CacheWrite(
            five_minutes=tokens.cache_write.five_minutes + more.cache_write.five_minutes,
            one_hour=tokens.cache_write.one_hour + more.cache_write.one_hour,
        ),
        output=tokens.output + more.output,
        reasoning=tokens.reasoning + more.reasoning,
    )
