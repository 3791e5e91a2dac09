"""The usage event of a request. Pure.

Its id is the gateway's name, the mark of this very start and a running number: an event that is sent twice is the same
event, and no two requests share one, whatever ids their clients choose.
"""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.gateway.tags import Tags
from taximeter_inference.gateway.usage import UpstreamUsage, disjoint_tokens
from taximeter_schemas.events import Attribution, Operation, Outcome
from taximeter_schemas.wire import Cache, Timing, Tokens, UsageData, UsageEvent

COUNTED_ATTRIBUTE = "taximeter.counted"
"""Marks an event whose tokens the gateway counted itself, because the model server did not report them."""
API_KEY_ATTRIBUTE = "taximeter.api_key"
"""The id of the key, where a budget of the tenant counts by keys."""
ASKED_MODEL_ATTRIBUTE = "taximeter.asked_model"
"""The model that was asked for, where a budget let a cheaper one stand in."""
BLOCKS_MAX = 65_536
TAG_CHARACTERS_MAX = 128


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What is known about a request when it is dispatched."""

    request_id: str
    source: str
    tenant: str
    pool: str
    model: str
    operation: Operation
    tags: Tags
    lease_id: str | None = None
    api_key: str | None = None
    asked_model: str | None = None

    @property
    def root_request_id(self) -> str:
        """The turn that it belongs to; it is one by itself where no other was named."""
        return self.tags.root_request_id or self.request_id

    @property
    def attributes(self) -> dict[str, str]:
        """The client's free tags and the gateway's own."""
        own = {API_KEY_ATTRIBUTE: self.api_key, ASKED_MODEL_ATTRIBUTE: self.asked_model}
        return {**self.tags.attributes, **{name: value for name, value in own.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended. `counted` says that the usage is the gateway's own count."""

    outcome: Outcome
    usage: UpstreamUsage
    total_ms: float
    ttft_ms: float | None = None
    counted: bool = False


def build_event(facts: RequestFacts, ending: Ending, keys: PoolKeys, ended_at: datetime) -> UsageEvent:
    """The event of a request that ended."""
    tags = facts.tags
    attributes = facts.attributes
    if ending.counted:
        attributes[COUNTED_ATTRIBUTE] = "gateway"
    return UsageEvent(
        id=facts.request_id,
        source=facts.source,
        time=ended_at,
        subject=facts.tenant,
        data=UsageData(
            tenant=facts.tenant,
            feature=tags.feature,
            model=facts.model,
            tokens=tokens_of(ending),
            operation=facts.operation,
            request_id=facts.request_id,
            root_request_id=facts.root_request_id,
            hop=tags.hop,
            attempt=tags.attempt,
            outcome=ending.outcome,
            cache=_cache(facts.pool, ending.usage, keys),
            timing=Timing(ttft_ms=ending.ttft_ms, total_ms=ending.total_ms),
            service_tier=tags.service_tier,
            lease_id=facts.lease_id,
            attributes=attributes,
        ),
    )


def tokens_of(ending: Ending) -> Tokens:
    """The tokens that the request is charged for."""
    return disjoint_tokens(ending.usage)


def _cache(pool: str, usage: UpstreamUsage, keys: PoolKeys) -> Cache:
    name = pool_tag(pool)
    report = usage.taximeter_cache
    if report is None or not report.blocks or report.block_size <= 0:
        return Cache(pool=name, attribution=Attribution.INFERRED if usage.reports_cache else Attribution.NONE)
    blocks = [keys.block_hash(pool, block.encode()) for block in report.blocks[:BLOCKS_MAX]]
    hit_blocks = min(max(0, report.hit_blocks), len(blocks))
    return Cache(
        pool=name,
        block_size=report.block_size,
        hit_blocks=hit_blocks,
        blocks=blocks,
        attribution=Attribution.ENGINE,
    )


def pool_tag(pool: str) -> str:
    """The pool's name as a tag; one that is too long is named by its hash."""
    return pool if len(pool) <= TAG_CHARACTERS_MAX else f"pool:{sha256(pool.encode()).hexdigest()}"
