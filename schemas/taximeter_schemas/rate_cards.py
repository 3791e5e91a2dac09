"""Rate cards: versioned prices with two times. A price holds from `effective_from` and is known from `recorded_at`.

A published version never changes; a correction is a new version. Prices are whole pico-units of the card's currency a
token, so a cost is a sum of products of whole numbers and needs no rounding.
"""

from datetime import datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, model_validator

from taximeter_schemas.events import Operation, ServiceTier, Tag
from taximeter_schemas.tenants import Currency, Declared

PricePico = Annotated[int, Field(ge=0, le=10**15)]


class Price(Declared):
    """Prices of one model, in pico-units a token; the most specific price that matches an event applies.

    A class without a price (None) leaves an event that uses it unrated, except that `reasoning` defaults to `output`
    and cache prices default to the uncached price (no discount and no premium).
    """

    model: Tag
    adapter: Tag | None = None
    feature: Tag | None = None
    operation: Operation | None = None
    service_tier: ServiceTier | None = None
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

    @property
    def scope(self) -> tuple[str | None, ...]:
        """What the price applies to; unique within a card."""
        return (self.model, self.adapter, self.feature, self.operation, self.service_tier)

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


def card_at(cards: list[RateCard], card_id: str, moment: datetime) -> RateCard | None:
    """The version of a card that holds at that moment: the latest effective one, and of those the last recorded."""
    held = [card for card in cards if card.id == card_id and card.effective_from <= moment]
    return max(held, key=lambda card: (card.effective_from, card.recorded_at, card.version), default=None)
