"""Usage objects of engines that one runs oneself: vLLM, SGLang, and either with LMCache's tiers below. Pure.

All are inclusive. Without a breakdown, cached tokens are the GPU's. A written prefix costs nothing extra there, so
vLLM's `created_cache_tokens` stay within the uncached input.
"""

from collections.abc import Mapping
from typing import Literal

from taximeter_producers.adapters.openai import openai_tokens
from taximeter_producers.adapters.usage_fields import UsageFields, UsageObject, bounded
from taximeter_producers.errors import UsageShapeError, UsageSumError
from taximeter_schemas.events import CacheRead, CacheWrite, Tokens

Tier = Literal["gpu", "cpu", "disk"]

LMCACHE_TIERS: Mapping[str, Tier] = {
    "gpu": "gpu",
    "cpu": "cpu",
    "disk": "disk",
    "remote": "disk",
    "LocalCPUBackend": "cpu",
    "P2PBackend": "cpu",
    "PDBackend": "gpu",
    "LocalDiskBackend": "disk",
    "GdsBackend": "disk",
    "NixlStorageBackend": "disk",
    "RemoteBackend": "disk",
}
"""LMCache's storage backends by tier. What comes over a network from a store counts as disk, from a peer as its memory."""


@bounded
def tokens_from_vllm(usage: UsageObject, external_tier: Tier = "cpu") -> Tokens:
    """vLLM's usage; cached tokens need `--enable-prompt-tokens-details`.

    Where it tells local from external ones, those of a KV connector are of `external_tier`. Raises UsageShapeError and
    UsageSumError.
    """
    fields = UsageFields("vllm", usage)
    details = fields.inner("prompt_tokens_details", "input_tokens_details")
    cached = (details.count("cached_tokens") if details else None) or 0
    external = (details.count("external_cached_tokens") if details else None) or 0
    local = details.count("local_cached_tokens") if details else None
    if local is not None and local + external != cached:
        raise UsageSumError(f"vllm: cached_tokens is {cached}, but {local} local and {external} external")
    return openai_tokens(fields, _by_tier("vllm", cached, {external_tier: external}), CacheWrite())


@bounded
def tokens_from_sglang(usage: UsageObject, cached_tokens_details: UsageObject | None = None) -> Tokens:
    """SGLang's usage (`--enable-cache-report`), or the `meta_info` of its native /generate.

    `cached_tokens_details` (device, host, storage) stands in `meta_info` itself, and beside an OpenAI usage in `sglext`.
    Raises UsageShapeError and UsageSumError.
    """
    fields = UsageFields("sglang", usage)
    details = fields.inner("prompt_tokens_details")
    cached = (details or fields).count("cached_tokens") or 0
    by_source = fields.inner("cached_tokens_details")
    if cached_tokens_details is not None:
        by_source = UsageFields("sglang", cached_tokens_details, "cached_tokens_details")
    if by_source is None:
        return openai_tokens(fields, CacheRead(gpu=cached), CacheWrite())
    device, host, storage = (by_source.count(name) or 0 for name in ("device", "host", "storage"))
    if device + host + storage != cached:
        raise UsageSumError(f"sglang: cached_tokens is {cached}, the sources add up to {device + host + storage}")
    return openai_tokens(fields, CacheRead(gpu=device, cpu=host, disk=storage), CacheWrite())


@bounded
def tokens_from_lmcache(usage: UsageObject, hits: UsageObject) -> Tokens:
    """The engine's usage, with the tokens that LMCache supplied by backend or tier (LMCACHE_TIERS) in `hits`.

    The engine's cached tokens include them; the rest was on the GPU. Raises UsageShapeError for a backend that is not
    known, and UsageSumError.
    """
    fields = UsageFields("lmcache", usage)
    details = fields.inner("prompt_tokens_details", "input_tokens_details")
    cached = (details or fields).count("cached_tokens") or 0
    found = UsageFields("lmcache", hits, "hits")
    by_tier: dict[Tier, int] = {}
    for backend in found.present():
        if backend not in LMCACHE_TIERS:
            raise UsageShapeError(f"lmcache: no tier is known for {backend:.64}; there are {', '.join(LMCACHE_TIERS)}")
        tier = LMCACHE_TIERS[backend]
        by_tier[tier] = by_tier.get(tier, 0) + found.required(backend)
    return openai_tokens(fields, _by_tier("lmcache", cached, by_tier), CacheWrite())


def _by_tier(vendor: str, cached: int, outside: Mapping[Tier, int]) -> CacheRead:
    gpu = cached - sum(outside.values())
    if gpu < 0:
        raise UsageSumError(f"{vendor}: cached_tokens is {cached}, but {cached - gpu} came from other tiers")
    return CacheRead(gpu=gpu + outside.get("gpu", 0), cpu=outside.get("cpu", 0), disk=outside.get("disk", 0))
