"""A rated event as billing reads it from the warehouse, and what the cache-savings arithmetic makes of it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from re import fullmatch

from taximeter_schemas.cache_uses import CacheUse, SkuRates
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.rating import find_price


class UnknownPriceError(LookupError):
    """A rated event names a price that the rate cards do not hold."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One rated event: tags, time (microseconds since the epoch), disjoint tokens, cache blocks and exact cost."""

    tenant: str
    feature: str
    model: str
    adapter: str
    operation: str
    service_tier: str
    rate_card: str
    source: str
    event_id: str
    time_us: int
    uncached_input: int
    cache_read_gpu: int
    cache_read_cpu: int
    cache_read_disk: int
    cache_read_provider: int
    cache_write_5m: int
    cache_write_1h: int
    output: int
    pool: str
    block_size: int
    hit_blocks: int
    blocks: tuple[str, ...]
    list_pico: int
    metered_pico: int
    reasoning: int = 0
    gpu_seconds: float = 0.0
    region: str = ""
    search_units: str = ""
    adapter_hours: str = ""
    evicted_at: str = ""
    """When the engine says that blocks which this event filled had left the cache before, in seconds since the epoch."""

    @property
    def evicted_us(self) -> int | None:
        """`evicted_at` in microseconds; None where nothing (or no such moment) is said."""
        if not fullmatch(r"[0-9]{1,10}(\.[0-9]{1,6})?", self.evicted_at):
            return None
        return int(Decimal(self.evicted_at) * 1_000_000)

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes that prices look at."""
        named = {"region": self.region, "search_units": self.search_units, "adapter_hours": self.adapter_hours}
        return {name: value for name, value in named.items() if value}

    @property
    def reads(self) -> dict[str, int]:
        """Cache reads by tier, without the empty ones."""
        tiers = {"gpu": self.cache_read_gpu, "cpu": self.cache_read_cpu}
        tiers |= {"disk": self.cache_read_disk, "provider": self.cache_read_provider}
        return {tier: tokens for tier, tokens in tiers.items() if tokens}

    @property
    def writes(self) -> dict[str, int]:
        """Cache writes by lifetime, without the empty ones."""
        lifetimes = {"5m": self.cache_write_5m, "1h": self.cache_write_1h}
        return {lifetime: tokens for lifetime, tokens in lifetimes.items() if tokens}

    @property
    def input_tokens(self) -> int:
        """All input, each token once."""
        return self.uncached_input + sum(self.reads.values()) + sum(self.writes.values())


class Prices:
    """Finds the price that an event was rated by, each combination of tags once."""

    def __init__(self, cards: Iterable[RateCard]) -> None:
        self._cards = {card.name: card for card in cards}
        self._prices: dict[tuple[str, ...], Price] = {}

    def price(self, row: UsageRow) -> Price:
        """The price, and of those by length of the input the one that applies. Raises UnknownPriceError."""
        key = (row.rate_card, row.feature, row.model, row.adapter, row.operation, row.service_tier, row.region)
        price = self._prices.get(key)
        if price is None:
            card = self._cards.get(row.rate_card)
            # The very rule that the event was rated by, so that both choose the same price.
            price = find_price(card, row) if card else None
            if price is None:
                raise UnknownPriceError(
                    f"{row.rate_card} has no price for {row.model}, yet event {row.event_id} was rated by it"
                )
            self._prices[key] = price
        return price.for_length(row.input_tokens) if price.bands else price


class Skus:
    """Names a SKU for each combination of price, read tier and write lifetime that occurs, and knows its rates."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self.rates: dict[str, SkuRates] = {}
        self.storage: dict[str, int] = {}
        """Prices of storage, in pico-units a token-hour: no part of `rates`, since savings and storage are settled apart."""

    def uses(self, row: UsageRow) -> list[CacheUse]:
        """The event as uses of the cache: one for each read tier and write lifetime, so that every token has its own price.

        Blocks are kept where they explain the counts to the token (one tier, no paid writes); else the counts stand alone.
        """
        reads, writes = row.reads, row.writes
        if len(reads) <= 1 and not writes and row.blocks and row.hit_blocks * row.block_size == sum(reads.values()):
            return [self._with_blocks(row, next(iter(reads), "gpu"))]
        parts = [(tier, "", tokens, 0) for tier, tokens in reads.items()]
        parts += [("", lifetime, 0, tokens) for lifetime, tokens in writes.items()]
        uses = [
            self._use(row, index, tier, lifetime, 0, read, written)
            for index, (tier, lifetime, read, written) in enumerate(parts)
        ]
        if row.uncached_input or not uses:
            uses.append(self._use(row, len(parts), "", "", row.uncached_input, 0, 0))
        return uses

    def _with_blocks(self, row: UsageRow, tier: str) -> CacheUse:
        # What does not fill a block is never cached: it is the tail, at the list price like the written blocks.
        filled = min(row.uncached_input // row.block_size if row.block_size else 0, len(row.blocks) - row.hit_blocks)
        kept = row.blocks[: row.hit_blocks + filled]
        use = self._use(row, 0, tier, "", row.uncached_input - filled * row.block_size, 0, 0)
        return use.model_copy(
            update={"blocks": tuple((block, row.block_size) for block in kept), "hit_blocks": row.hit_blocks}
        )

    def _use(self, row: UsageRow, part: int, tier: str, lifetime: str, tail: int, read: int, written: int) -> CacheUse:
        return CacheUse.model_construct(
            kind="use",
            event_id=f"{row.tenant}\n{row.source}\n{row.event_id}\n{part}",
            tenant=row.tenant,
            ts=row.time_us,
            sku=self.sku(row, tier, lifetime),
            pool=row.pool,
            model=f"{row.model}+{row.adapter}" if row.adapter else row.model,
            blocks=(),
            hit_blocks=0,
            tail_tokens=tail,
            cached_tokens=read,
            written_tokens=written,
        )

    def sku(self, row: UsageRow, tier: str, lifetime: str) -> str:
        """The SKU of the event's tokens of one read tier or write lifetime ("" for neither). Raises UnknownPriceError."""
        price = self._prices.price(row)
        full = price.uncached_input
        read = full if not tier else getattr(price, f"cache_read_{tier}")
        write = full if not lifetime else getattr(price, f"cache_write_{lifetime}")
        rates = (full, full if read is None else read, full if write is None else write)
        tags = (row.rate_card, row.feature, row.model, row.adapter, row.operation, row.service_tier, tier, lifetime)
        # The rates are part of the name: region and length of the input choose them, too.
        name = "|".join((*tags, *map(str, rates), *((f"s{price.cache_storage}",) if price.cache_storage else ())))
        if name not in self.rates:
            self.storage[name] = price.cache_storage
            self.rates[name] = SkuRates(p=rates[0], r=rates[1], w=rates[2])
        return name


def line_of(sku: str) -> tuple[str, str, str]:
    """The invoice line (feature, model, rate card) that a SKU belongs to."""
    card, feature, model, *_rest = sku.split("|")
    return feature, model, card
