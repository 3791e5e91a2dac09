"""Rate cards: versioned prices with two times. A price holds from `effective_from` and is known from `recorded_at`.

A published version never changes; a correction is a new version. Prices are whole pico-units of the card's currency a
token, so a cost is a sum of products of whole numbers and needs no rounding.
"""

import json
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, model_validator

from taximeter_schemas.events import Operation, ServiceTier, Tag
from taximeter_schemas.tenants import Currency, Declared

PricePico = Annotated[int, Field(ge=0, le=10**15)]


class ContextBand(Declared):
    """Token prices of a request whose input is longer than `input_over` tokens; what it leaves out stays as it was.

    The whole request takes the band's prices, not only the tokens above.
    """

    input_over: Annotated[int, Field(ge=1)]
    uncached_input: PricePico | None = None
    output: PricePico | None = None
    reasoning: PricePico | None = None
    cache_read_gpu: PricePico | None = None
    cache_read_cpu: PricePico | None = None
    cache_read_disk: PricePico | None = None
    cache_read_provider: PricePico | None = None
    cache_write_5m: PricePico | None = None
    cache_write_1h: PricePico | None = None


class Price(Declared):
    """Prices of one model, in pico-units a token; the most specific price that matches an event applies.

    A class without a price (None) leaves an event that uses it unrated, except that `reasoning` defaults to `output`
    and cache prices default to the uncached price (no discount and no premium).

    Beside tokens: `request` for each request that used tokens; `search_unit` and `adapter_hour` for the whole numbers
    that an event carries as the attributes `search_units` and `adapter_hours`; `gpu_microsecond` for the worker's
    GPU-seconds, which are counted in whole microseconds. `region` matches the attribute `region`.

    `cache_storage` is for keeping a token in cache for an hour. It is no part of what an event costs: how long a block stayed is
    known when a period closes, and is a line of its own on the invoice of whoever bears it by the cache policy.
    """

    model: Tag
    adapter: Tag | None = None
    feature: Tag | None = None
    operation: Operation | None = None
    service_tier: ServiceTier | None = None
    region: Tag | None = None
    uncached_input: PricePico
    output: PricePico | None = None
    reasoning: PricePico | None = None
    cache_read_gpu: PricePico | None = None
    cache_read_cpu: PricePico | None = None
    cache_read_disk: PricePico | None = None
    cache_read_provider: PricePico | None = None
    cache_write_5m: PricePico | None = None
    cache_write_1h: PricePico | None = None
    request: PricePico = 0
    search_unit: PricePico = 0
    gpu_microsecond: PricePico = 0
    adapter_hour: PricePico = 0
    cache_storage: PricePico = 0
    bands: tuple[ContextBand, ...] = ()

    @model_validator(mode="after")
    def _bands_rise(self) -> Self:
        bounds = [band.input_over for band in self.bands]
        if bounds != sorted(set(bounds)):
            raise ValueError("the bounds of context bands rise")
        return self

    @property
    def scope(self) -> tuple[str | None, ...]:
        """What the price applies to; unique within a card."""
        return (self.model, self.adapter, self.feature, self.operation, self.service_tier, self.region)

    @cached_property
    def extended(self) -> bool:
        """Whether more than tokens and requests is priced, or tokens by the length of the input: most prices are plain."""
        return bool(self.bands or self.search_unit or self.gpu_microsecond or self.adapter_hour)

    @cached_property
    def by_length(self) -> tuple[tuple[int, "Price"], ...]:
        """The price of each context band, longest first, as (input_over, price); the price itself is not among them."""
        plain = self.model_dump(exclude={"bands"})
        given = [(band.input_over, band.model_dump(exclude_none=True, exclude={"input_over"})) for band in self.bands]
        return tuple((over, Price.model_validate({**plain, **prices})) for over, prices in reversed(given))

    def for_length(self, input_tokens: int) -> "Price":
        """The price of a request with that many input tokens."""
        return next((price for over, price in self.by_length if input_tokens > over), self) if self.bands else self

    @property
    def specificity(self) -> int:
        """How many optional tags the price names; the most specific price wins, and adapter outranks the others."""
        return sum(part is not None for part in self.scope[2:]) + 4 * (self.adapter is not None)


class RateCard(Declared):
    """One published version of a rate card."""

    id: Tag = "default"
    version: Annotated[int, Field(ge=1)]
    currency: Currency = "USD"
    effective_from: AwareDatetime
    recorded_at: AwareDatetime
    source: Annotated[str, Field(max_length=200)] = ""
    """Where the prices were imported from, with the hash of the very bytes; empty where an operator wrote them."""
    prices: tuple[Price, ...]

    @model_validator(mode="after")
    def _scopes_differ(self) -> Self:
        scopes = [price.scope for price in self.prices]
        if len(scopes) != len(set(scopes)):
            raise ValueError("two prices of a rate card have the same scope")
        return self

    @property
    def name(self) -> str:
        """The version's full name: "default@3"."""
        return f"{self.id}@{self.version}"

    @cached_property
    def stores(self) -> bool:
        """Whether it has a price for keeping blocks in cache."""
        return any(price.cache_storage for price in self.prices)

    @cached_property
    def sha256(self) -> str:
        """The hash of what the version says (not of when it was recorded): what an invoice names beside its name."""
        said = self.model_dump(mode="json", exclude={"recorded_at"}, exclude_defaults=True)
        return sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def card_at(cards: list[RateCard], card_id: str, moment: datetime) -> RateCard | None:
    """The version of a card that holds at that moment: the latest effective one, and of those the last recorded."""
    held = [card for card in cards if card.id == card_id and card.effective_from <= moment]
    return max(held, key=lambda card: (card.effective_from, card.recorded_at, card.version), default=None)
