"""Lots and tallies: what uses cost and what caching saved, before any policy says who gets it.

A lot is what one tenant's hits (of one SKU) saved in one epoch: (list price - read price) x tokens x hits. A tally is one
tenant's (and SKU's) account of a cache pool: list cost, metered cost, write premium, and the gross saving by how well it
is known: exact (block hashes), inferred (counts in a known pool), unattributed (counts without a pool).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from taximeter_schemas.cache_uses import CacheUse, SkuRates

PoolCell = tuple[str, str, str]
"""A cache pool, a tenant and a SKU."""


@dataclass(slots=True)
class Tally:
    """Whole pico-units and tokens. metered = list - gross + write premium."""

    input_tokens: int = 0
    cached_tokens: int = 0
    list_pico: int = 0
    write_premium_pico: int = 0
    exact_pico: int = 0
    inferred_pico: int = 0
    unattributed_pico: int = 0

    @property
    def gross_pico(self) -> int:
        """What cache reads saved against the list price."""
        return self.exact_pico + self.inferred_pico + self.unattributed_pico

    @property
    def metered_pico(self) -> int:
        """The cost with cache prices."""
        return self.list_pico - self.gross_pico + self.write_premium_pico

    def count(
        self,
        rate: SkuRates,
        *,
        hit: int = 0,
        filled: int = 0,
        tail: int = 0,
        cached: int = 0,
        written: int = 0,
        pooled: bool,
    ) -> None:
        """Add tokens at one rate: hit and filled in known blocks, uncached tail, read and written by counts alone."""
        total = hit + filled + tail + cached + written
        self.input_tokens += total
        self.cached_tokens += hit + cached
        self.list_pico += rate.p * total
        self.write_premium_pico += (rate.w - rate.p) * (filled + written)
        self.exact_pico += (rate.p - rate.r) * hit
        if pooled:
            self.inferred_pico += (rate.p - rate.r) * cached
        else:
            self.unattributed_pico += (rate.p - rate.r) * cached

    def __iadd__(self, other: "Tally") -> "Tally":
        self.input_tokens += other.input_tokens
        self.cached_tokens += other.cached_tokens
        self.list_pico += other.list_pico
        self.write_premium_pico += other.write_premium_pico
        self.exact_pico += other.exact_pico
        self.inferred_pico += other.inferred_pico
        self.unattributed_pico += other.unattributed_pico
        return self


Tallies = Mapping[PoolCell, Tally]


def tally_uses(uses: Iterable[CacheUse], rates: Mapping[str, SkuRates]) -> dict[PoolCell, Tally]:
    """The account of every tenant and SKU in every pool."""
    tallies: dict[PoolCell, Tally] = {}
    for use in uses:
        tally = tallies.setdefault((use.pool, use.tenant, use.sku), Tally())
        hit = sum(tokens for _, tokens in use.blocks[: use.hit_blocks])
        filled = sum(tokens for _, tokens in use.blocks[use.hit_blocks :])
        tally.count(
            rates[use.sku],
            hit=hit,
            filled=filled,
            tail=use.tail_tokens,
            cached=use.cached_tokens,
            written=use.written_tokens,
            pooled=bool(use.pool),
        )
    return tallies
