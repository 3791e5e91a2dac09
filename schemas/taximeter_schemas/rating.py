"""Rating: what an event costs under a rate card, exactly, in pico-units.

list     every input token at the uncached price, plus output and the request price
metered  the same with cache prices
saving   list - metered (negative where a cache-write premium outweighs the reads)
"""

from collections.abc import Mapping
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
        and (price.region is None or price.region == region_of(data))
    )


def region_of(data: Any) -> str | None:
    """The region that an event names in its attributes, or None."""
    attributes = getattr(data, "attributes", None)
    return attributes.get("region") if attributes else None


def rate(card: RateCard | None, data: Any) -> Rated | Unrated:
    """Rate an event's data (UsageData or its hot-path twin) under a card version."""
    if card is None:
        return Unrated("no_rate_card")
    price = find_price(card, data)
    if price is None:
        return Unrated("unknown_model")
    return rate_data(price, card, data)


def rate_data(price: Price, card: RateCard, data: Any) -> Rated | Unrated:
    """Rate an event's data with one price of the card: tokens alone where that is all that is priced, else every dimension."""
    if not price.extended:
        return rate_with(price, card, data.tokens)
    rated = rate_with(price.for_length(input_tokens(data.tokens)), card, data.tokens)
    if isinstance(rated, Unrated):
        return rated
    try:
        seconds = data.worker.gpu_seconds if data.worker else 0.0
        more = beside_tokens_pico(price, beside_tokens(price, data.attributes or {}, seconds))
    except ValueError as error:
        return Unrated(str(error))
    return Rated(rated.list_pico + more, rated.metered_pico + more, rated.currency, rated.rate_card)


@dataclass(frozen=True, slots=True)
class BesideTokens:
    """What an event used beside tokens and its request, in whole units; 0 where the price does not ask for it."""

    search_units: int = 0
    gpu_microseconds: int = 0
    adapter_hours: int = 0


def beside_tokens(price: Price, attributes: Mapping[str, str], gpu_seconds: float) -> BesideTokens:
    """What the price asks for. Raises ValueError, whose text is the reason for not rating the event."""
    return BesideTokens(
        _whole(attributes, "search_units") if price.search_unit else 0,
        gpu_microseconds(gpu_seconds) if price.gpu_microsecond else 0,
        _whole(attributes, "adapter_hours") if price.adapter_hour else 0,
    )


def beside_tokens_pico(price: Price, used: BesideTokens) -> int:
    """What is used beside tokens costs."""
    return (
        used.search_units * price.search_unit
        + used.gpu_microseconds * price.gpu_microsecond
        + used.adapter_hours * price.adapter_hour
    )


def gpu_microseconds(gpu_seconds: float) -> int:
    """Measured GPU-seconds in whole microseconds, the unit that is priced: nearest, and half to even."""
    return round(gpu_seconds * 1_000_000)


def _whole(attributes: Mapping[str, str], name: str) -> int:
    text = attributes.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(f"bad_{name}")
    return int(text)


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
    """The most a request's tokens can cost: each input token at its dearest class, each output token at its dearest kind,
    in the dearest context band that it can reach. What is priced beside tokens is not known beforehand."""
    if price.bands:
        reached = [banded for over, banded in price.by_length if input_tokens_max > over]
        plain = price.model_copy(update={"bands": ()})
        return max(worst_case_pico(each, input_tokens_max, output_tokens_max) for each in (plain, *reached))
    per_input = max(price.uncached_input, price.cache_write_5m or 0, price.cache_write_1h or 0)
    per_output = max(price.output or 0, price.reasoning or 0)
    return price.request + input_tokens_max * per_input + output_tokens_max * per_output
