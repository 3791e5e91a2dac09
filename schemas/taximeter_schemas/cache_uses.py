"""What the cache-savings arithmetic reads: uses of a prefix cache in time, records that end residencies, and rates.

A use carries either the prefix blocks of its prompt (then who filled what is known exactly) or counts alone (then the
saving is inferred: the tenant that hit is known, the one that filled is not). Tokens outside blocks and counts are the
tail: uncached, at the list price.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from taximeter_schemas.errors import CacheUseError

Name = Annotated[str, Field(min_length=1, pattern=r"^[^@]")]
Count = Annotated[int, Field(ge=0)]
Block = Annotated[tuple[str, Count], Field(strict=False)]


class Record(BaseModel):
    """Frozen, exact (a float is no amount), and nothing unknown is accepted in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, regex_engine="python-re")


class SkuRates(Record):
    """Prices of one SKU in whole pico-units: `p` list, `r` cache read and `w` cache write a token; `s` storage a token-hour.

    Without `w` a write costs the list price (no premium). A read dearer than the list price would make savings negative,
    so it is refused.
    """

    p: Count
    r: Count
    w: Count
    s: Count = 0

    @model_validator(mode="before")
    @classmethod
    def _write_without_premium(cls, data: object) -> object:
        if isinstance(data, dict) and "w" not in data and "p" in data:
            return {**data, "w": data["p"]}
        return data

    @model_validator(mode="after")
    def _reading_saves(self) -> Self:
        if self.r > self.p:
            raise ValueError(f"the cache read price {self.r} is above the list price {self.p}")
        return self


class CacheUse(Record):
    """One request's prompt. `blocks` are [hash, tokens] in prefix order, of which the first `hit_blocks` came from cache
    and the others were written. `ts` is in whole seconds.

    `cached_tokens` and `written_tokens` count what is not in `blocks`. `pool` is the cache pool: nothing is shared across
    pools. `model` is what the cache belongs to where several SKUs (a price change, a service tier) share it.
    """

    kind: Literal["use"] = "use"
    event_id: Annotated[str, Field(min_length=1)]
    tenant: Name
    ts: int
    sku: Name
    pool: str = ""
    model: str | None = None
    blocks: Annotated[tuple[Block, ...], Field(strict=False)] = ()
    hit_blocks: Count = 0
    tail_tokens: Count = 0
    cached_tokens: Count = 0
    written_tokens: Count = 0

    @model_validator(mode="after")
    def _hits_are_blocks(self) -> Self:
        if self.hit_blocks > len(self.blocks):
            raise ValueError(f"{self.hit_blocks} hit blocks of {len(self.blocks)} blocks")
        return self

    @property
    def cache(self) -> tuple[str, str]:
        """The cache that the blocks live in: pool and model."""
        return (self.pool, self.model or self.sku)


class Evicted(Record):
    """These blocks left the cache at `ts`; a later hit on one belongs to a residency that somebody else opened."""

    kind: Literal["evict"]
    ts: int
    blocks: Annotated[tuple[str, ...], Field(strict=False)]
    model: Name
    pool: str = ""


class Cleared(Record):
    """The whole cache of a model in a pool was cleared at `ts`; without a model, every cache of the pool."""

    kind: Literal["clear"]
    ts: int
    model: Name | None = None
    pool: str = ""


def _kind(data: object) -> object:
    return data.get("kind", "use") if isinstance(data, dict) else getattr(data, "kind", None)


CacheRecord = Annotated[
    Annotated[CacheUse, Tag("use")] | Annotated[Evicted, Tag("evict")] | Annotated[Cleared, Tag("clear")],
    Discriminator(_kind),
]
_RECORDS: TypeAdapter[list[CacheRecord]] = TypeAdapter(list[CacheRecord])
_RATES: TypeAdapter[dict[str, SkuRates]] = TypeAdapter(dict[str, SkuRates])


def read_cache_records(data: object) -> list[CacheUse | Evicted | Cleared]:
    """Parsed JSON (a list of objects) as records. Raises CacheUseError, which names the first faults."""
    try:
        return list(_RECORDS.validate_python(data))
    except ValidationError as error:
        raise CacheUseError(f"events: {describe(error)}") from None


def read_rates(data: object) -> Mapping[str, SkuRates]:
    """Parsed JSON (an object of rates by SKU). Raises CacheUseError, which names the first faults."""
    try:
        return _RATES.validate_python(data)
    except ValidationError as error:
        raise CacheUseError(f"rates: {describe(error)}") from None


def describe(error: ValidationError, faults_max: int = 3) -> str:
    """The first faults of a ValidationError in one line, each with where it is."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    told = [
        ": ".join(filter(None, ("/".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, "))))
        for fault in faults[:faults_max]
    ]
    more = len(faults) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")
