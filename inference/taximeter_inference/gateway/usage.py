"""An OpenAI usage object on the hot path: decoded once, turned into disjoint tokens as the adapters' rule does. Pure.

Where an adapter refuses counts that contradict each other, the gateway has served the request already and must count it:
it cuts each count to what it is a part of first, so nothing becomes negative, whatever an upstream reports.
"""

import msgspec

from taximeter_schemas.events import TOKENS_MAX
from taximeter_schemas.wire import CacheRead, Tokens


class PromptDetails(msgspec.Struct, gc=False):
    """What is known about the prompt."""

    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct, gc=False):
    """What is known about the answer."""

    reasoning_tokens: int | None = None


class CacheReport(msgspec.Struct, gc=False):
    """The extension that names prefix blocks: the first `hit_blocks` of them were in cache."""

    block_size: int = 0
    hit_blocks: int = 0
    blocks: list[str] = []


class UpstreamUsage(msgspec.Struct, gc=False):
    """OpenAI's usage object with vLLM's details; unknown fields are ignored."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    taximeter_cache: CacheReport | None = None

    @property
    def reports_cache(self) -> bool:
        """Whether the upstream says how many tokens came from its cache."""
        return self.prompt_tokens_details is not None and self.prompt_tokens_details.cached_tokens is not None


_NOT_READ = CacheRead()
_DECODER = msgspec.json.Decoder(UpstreamUsage)


def read_usage(raw: bytes | msgspec.Raw) -> UpstreamUsage | None:
    """A usage object from its JSON; None when it is not one."""
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def disjoint_tokens(usage: UpstreamUsage) -> Tokens:
    """The usage as disjoint counts, each cut to its whole. A test holds it to the adapters' rule."""
    prompt, output = _count(usage.prompt_tokens), _count(usage.completion_tokens)
    prompt_details, details = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = min(prompt, _count(prompt_details.cached_tokens if prompt_details else 0))
    reasoning = min(output, _count(details.reasoning_tokens if details else 0))
    read = CacheRead(gpu=cached) if cached else _NOT_READ
    return Tokens(uncached_input=prompt - cached, cache_read=read, output=output, reasoning=reasoning)


def _count(reported: int | None) -> int:
    return min(max(reported or 0, 0), TOKENS_MAX)
