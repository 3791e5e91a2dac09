"""Rating: what an event costs under a rate card, exactly, in pico-units.

list     every input token at the uncached price, plus output and the request price
metered  the same with cache prices
saving   list - metered (negative where a cache-write premium outweighs the reads)
"""

from dataclasses import dataclass
from typing import Any

from taximeter_schemas.events import input_tokens
from taximeter_schemas.rate_cards import Price, RateCard


@dataclass(frozen=True, slots=True)
class Rated:
    """The cost of one event in pico-units of `currency`, and the card version that said so ("default@3")."""

    list_pico: int
    metered_pico: int
    currency: str
    rate_card: str

    @property
    def saving_pico(self) -> int:
        """What the cache saved: list - metered."""
        return self.list_pico - self.metered_pico


@dataclass(frozen=True, slots=True)
class Unrated:
    """No price applies: the event is kept and counted, held off the invoice, and rated later. It never costs 0."""

    reason: str


def find_price(card: RateCard, data: Any) -> Price | None:
    """The most specific price of the card for the event's data, or None."""
    matching = [price for price in card.prices if _matches(price, data)]
    return max(matching, key=lambda price: price.specificity, default=None)


def _matches(price: Price, data: Any) -> bool:
    return (
        price.model == data.model
        and price.adapter in (None, data.adapter)
        and price.feature in (None, data.feature)
        and price.operation in (None, data.operation)
        and price.service_tier in (None, data.service_tier)
    )


def rate(card: RateCard | None, data: Any) -> Rated | Unrated:
    """Rate an event's data (UsageData or its hot-path twin) under a card version."""
    if card is None:
        return Unrated("no_rate_card")
    price = find_price(card, data)
    if price is None:
        return Unrated("unknown_model")
    return rate_with(price, card, data.tokens)


def rate_with(price: Price, card: RateCard, tokens: Any) -> Rated | Unrated:
    """Rate token counts with one price of the card. A refused request, which used nothing, costs nothing."""
    if tokens.output and price.output is None:
        return Unrated("no_output_price")
    output_price = price.output or 0
    reasoning_price = output_price if price.reasoning is None else price.reasoning
    everything = input_tokens(tokens)
    request = price.request if everything or tokens.output else 0
    output = (tokens.output - tokens.reasoning) * output_price + tokens.reasoning * reasoning_price + request
    metered = tokens.uncached_input * price.uncached_input + _cached_pico(price, tokens) + output
    return Rated(
        list_pico=everything * price.uncached_input + output,
        metered_pico=metered,
        currency=card.currency,
        rate_card=card.name,
    )


def _cached_pico(price: Price, tokens: Any) -> int:
    """What the cache classes cost. Written out, and zero counts skipped: the meter calls it for every event."""
    read, write, full, pico = tokens.cache_read, tokens.cache_write, price.uncached_input, 0
    if read.gpu:
        pico += read.gpu * (full if price.cache_read_gpu is None else price.cache_read_gpu)
    if read.cpu:
        pico += read.cpu * (full if price.cache_read_cpu is None else price.cache_read_cpu)
    if read.disk:
        pico += read.disk * (full if price.cache_read_disk is None else price.cache_read_disk)
    if read.provider:
        pico += read.provider * (full if price.cache_read_provider is None else price.cache_read_provider)
    if write.five_minutes:
        pico += write.five_minutes * (full if price.cache_write_5m is None else price.cache_write_5m)
    if write.one_hour:
        pico += write.one_hour * (full if price.cache_write_1h is None else price.cache_write_1h)
    return pico


def worst_case_pico(price: Price, input_tokens_max: int, output_tokens_max: int) -> int:
    """The most a request can cost: each input token at its dearest class, each output token at its dearest kind."""
    per_input = max(price.uncached_input, price.cache_write_5m or 0, price.cache_write_1h or 0)
    per_output = max(price.output or 0, price.reasoning or 0)
    return price.request + input_tokens_max * per_input + output_tokens_max * per_output
