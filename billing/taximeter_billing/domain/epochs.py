"""Epochs: one residency of a prefix block in a cache, opened by the miss that filled it.

An epoch closes when the block is evicted or its cache cleared, when nobody used it for longer than the time to live, and
when somebody else fills it again (it must have gone unseen). A hit on a block without an open epoch belongs to a residency
whose filler nobody saw (it began before the first record): such an epoch has no warmer.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from taximeter_schemas.cache_uses import CacheUse, Cleared, Evicted, SkuRates
from taximeter_schemas.errors import CacheUseError

Cell = tuple[str, str]
"""A tenant and a SKU: the finest grain at which savings are told."""

CacheRecords = Iterable[CacheUse | Evicted | Cleared]
Caches = dict[tuple[str, str], dict[str, "Epoch"]]
"""Open epochs by cache (pool and model) and block."""


@dataclass(slots=True)
class Epoch:
    """One residency, or the part of one in a period. Times in whole seconds (or any other unit, the same for all); `hits` counts
    the hits by tenant and SKU, `hits_before` those in the parts before; `warmer` paid the write."""

    pool: str
    block: str
    tokens: int
    warmer: Cell | None
    opened_at: int
    last_used_at: int
    ended_at: int = 0
    hits: dict[Cell, int] = field(default_factory=dict)
    hits_before: dict[Cell, int] = field(default_factory=dict)


def in_order(records: CacheRecords, rates: Mapping[str, SkuRates]) -> list[CacheUse | Evicted | Cleared]:
    """The records in time, each use once.

    At one second, evictions come first, then uses with fewer hits (who fills a prefix hits less of it than who reads it),
    then by event id; the order of arrival decides nothing. Raises CacheUseError for an event id with two bodies and for a
    SKU without rates: a use is never settled at 0.
    """
    uses: dict[tuple[str, str], CacheUse] = {}
    ends: list[Evicted | Cleared] = []
    for record in records:
        if not isinstance(record, CacheUse):
            ends.append(record)
            continue
        if record.sku not in rates:
            raise CacheUseError(f"event {record.event_id!r}: no rates for SKU {record.sku!r}")
        if uses.setdefault((record.tenant, record.event_id), record) != record:
            raise CacheUseError(
                f"event {record.event_id!r} of tenant {record.tenant!r} came twice with different bodies"
            )
    ordered: list[CacheUse | Evicted | Cleared] = sorted([*uses.values(), *ends], key=_moment)
    return ordered


def _moment(record: CacheUse | Evicted | Cleared) -> tuple[int, int, int, str, str]:
    if isinstance(record, CacheUse):
        return (record.ts, 1, record.hit_blocks, record.event_id, record.tenant)
    return (record.ts, 0, 0, "", "")


def trace_epochs(ordered: CacheRecords, ttl_s: int | None = None, until: int | None = None) -> Iterator[Epoch]:
    """Every epoch, yielded when it closes; those still open end at `until`, or at their last use without it.

    `ordered` is in time (see in_order); `ttl_s` is how long an unused block stays, in seconds (None: until evicted).
    """
    return _trace(ordered, ttl_s, until)


def epochs_within(ordered: CacheRecords, ttl: int | None, start: int, end: int) -> Iterator[Epoch]:
    """The parts of epochs that lie in [start, end): what began before goes on from `start`, what is open is settled to `end`.

    `ordered` holds what was used before `start`, too, and nothing at or after `end`. So the parts of one period after the other
    are the whole residency, each second once, and no part depends on what comes after it.
    """
    records = list(ordered)
    cut = bisect_left(records, start, key=lambda record: record.ts)
    caches: Caches = {}
    for _before in _trace(records[:cut], ttl, start, caches):
        pass
    for cache in caches.values():
        for block, epoch in list(cache.items()):
            if ttl is not None and epoch.last_used_at + ttl < start:
                del cache[block]
                continue
            cache[block] = replace(epoch, opened_at=start, hits={}, hits_before=epoch.hits, ended_at=0)
    yield from _trace(records[cut:], ttl, end, caches)


def _trace(
    ordered: CacheRecords, ttl_s: int | None, until: int | None, caches: Caches | None = None
) -> Iterator[Epoch]:
    """Trace on from `caches`, which hold what is open before and after."""
    caches = {} if caches is None else caches
    for record in ordered:
        if isinstance(record, CacheUse):
            yield from _use(caches.setdefault(record.cache, {}), record, ttl_s)
        elif isinstance(record, Evicted):
            cache = caches.get((record.pool, record.model), {})
            gone = [cache.pop(block) for block in dict.fromkeys(record.blocks) if block in cache]
            yield from (_ended(epoch, record.ts, ttl_s) for epoch in gone)
        else:
            for (pool, model), cache in caches.items():
                if pool == record.pool and record.model in (None, model):
                    yield from (_ended(epoch, record.ts, ttl_s) for epoch in cache.values())
                    cache.clear()
    for cache in caches.values():
        for epoch in cache.values():
            yield _ended(epoch, epoch.last_used_at if until is None else until, ttl_s)


def _use(cache: dict[str, Epoch], use: CacheUse, ttl_s: int | None) -> Iterator[Epoch]:
    """Hit the leading blocks, fill the others; yields the epochs that this shows to have ended."""
    cell = (use.tenant, use.sku)
    for position, (block, tokens) in enumerate(use.blocks):
        epoch = cache.get(block)
        hit = position < use.hit_blocks
        gone = epoch is not None and ttl_s is not None and use.ts - epoch.last_used_at > ttl_s
        # A block of another length is another block, whatever its hash says.
        if epoch is not None and (gone or not hit or epoch.tokens != tokens):
            yield _ended(epoch, use.ts, ttl_s)
            epoch = None
        if epoch is None:
            epoch = Epoch(use.pool, block, tokens, None if hit else cell, use.ts, use.ts)
            cache[block] = epoch
        epoch.last_used_at = use.ts
        if hit:
            epoch.hits[cell] = epoch.hits.get(cell, 0) + 1


def _ended(epoch: Epoch, at: int, ttl_s: int | None) -> Epoch:
    epoch.ended_at = max(epoch.opened_at, at if ttl_s is None else min(at, epoch.last_used_at + ttl_s))
    return epoch
