"""Gemini's `usageMetadata`, from the REST API (camelCase) and from the SDKs (snake_case), Live included. Pure.

Inclusive on one side, additive on the other: cached content is within the prompt; thoughts stand beside the candidates
and are paid as output; results of tools, fed back to the model, stand beside the prompt and are paid as input.
"""

from taximeter_producers.adapters.disjoint import disjoint_tokens
from taximeter_producers.adapters.usage_fields import UsageFields, UsageObject, bounded
from taximeter_producers.errors import UsageShapeError, UsageSumError
from taximeter_schemas.events import CacheRead, Tokens

_VENDOR = "gemini"


@bounded
def tokens_from_gemini(usage: UsageObject) -> Tokens:
    """The usage of a generated content or a Live response. Raises UsageShapeError and UsageSumError."""
    fields = UsageFields(_VENDOR, usage, "usageMetadata")
    prompt = fields.required("promptTokenCount", "prompt_token_count")
    tools = fields.count("toolUsePromptTokenCount", "tool_use_prompt_token_count") or 0
    thoughts = fields.count("thoughtsTokenCount", "thoughts_token_count") or 0
    candidates = fields.count(
        "candidatesTokenCount", "candidates_token_count", "responseTokenCount", "response_token_count"
    )
    total = fields.count("totalTokenCount", "total_token_count")
    if candidates is None and total is None:
        raise UsageShapeError(f"{_VENDOR}: usageMetadata has neither candidatesTokenCount nor totalTokenCount")
    parts = prompt + tools + (candidates or 0) + thoughts
    if total is not None and total != parts:
        raise UsageSumError(f"{_VENDOR}: totalTokenCount is {total}, the parts add up to {parts}")
    read = CacheRead(provider=_cached(fields))
    return disjoint_tokens(prompt + tools, (candidates or 0) + thoughts, cache_read=read, reasoning=thoughts)


def _cached(fields: UsageFields) -> int:
    """The cached part of the prompt; some answers give it by modality only."""
    cached = fields.count("cachedContentTokenCount", "cached_content_token_count")
    if cached is not None:
        return cached
    by_modality = fields.items("cacheTokensDetails", "cache_tokens_details")
    return sum(modality.count("tokenCount", "token_count") or 0 for modality in by_modality)
