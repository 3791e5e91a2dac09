"""The one rule that turns inclusive counts into disjoint tokens: what is a part of the input leaves it. Pure."""

from taximeter_producers.errors import UsageSumError
from taximeter_schemas.events import CacheRead, CacheWrite, Tokens

NOT_READ = CacheRead()
NOT_WRITTEN = CacheWrite()


def disjoint_tokens(
    input_tokens: int,
    output: int,
    *,
    cache_read: CacheRead = NOT_READ,
    cache_write: CacheWrite = NOT_WRITTEN,
    reasoning: int = 0,
) -> Tokens:
    """Counts as vendors report them, as disjoint tokens. `input_tokens` is all input: cache reads and writes are within it.

    Raises UsageSumError when a part is more than its whole.
    """
    read = cache_read.gpu + cache_read.cpu + cache_read.disk + cache_read.provider
    uncached = input_tokens - read - cache_write.five_minutes - cache_write.one_hour
    if uncached < 0:
        raise UsageSumError(f"{input_tokens - uncached} tokens were read from or written to a cache, of {input_tokens}")
    if reasoning > output:
        raise UsageSumError(f"{reasoning} tokens of reasoning, of {output} output tokens")
    return Tokens(
        uncached_input=uncached, cache_read=cache_read, cache_write=cache_write, output=output, reasoning=reasoning
    )
