"""Rates many events at once, in whole numbers, by the same cards and prices as `pricing`. Pure.

Events of one tenant, model, feature and so on share a price as long as no card begins in between. Left open, and rated one by
one, is what is not plain: a cost that might not fit into 64 bits, an output without a price, a price of more than tokens, and
attributes where a card has prices for regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from taximeter_schemas.rate_cards import Price
from taximeter_streams.meter.pricing import Pricing

_SURE_BELOW = 2.0**62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_KEY_SPACE_MAX = 2**62
_REMEMBERED_MAX = 200_000
_INPUTS = (
    *("uncached_input", "cache_read_gpu", "cache_read_cpu", "cache_read_disk", "cache_read_provider"),
    *("cache_write_5m", "cache_write_1h"),
)

Codes = tuple[NDArray[np.generic], Sequence[str]]
"""A column by number, and the texts that the numbers stand for."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What of some events decides their price, column by column."""

    tags: tuple[Codes, ...]
    """Tenant, model, adapter, feature, operation, service tier."""
    time_us: NDArray[np.int64]
    attributed: NDArray[np.bool_]
    """Which events have attributes."""


@dataclass(frozen=True, slots=True)
class RatedBlock:
    """For each event: the costs in pico-units, and numbers into `outcomes` (reason, currency, rate card).

    Those that are `open` are not rated.
    """

    list_pico: NDArray[np.int64]
    metered_pico: NDArray[np.int64]
    outcome: NDArray[np.int64]
    outcomes: list[tuple[str, str, str]]
    open: NDArray[np.bool_]


class BlockRating:
    """Rates blocks under what one snapshot declares."""

    def __init__(self, pricing: Pricing) -> None:
        self._pricing = pricing
        cards = pricing.snapshot.rate_cards.values()
        starts = {(card.effective_from - _EPOCH) // _MICROSECOND for versions in cards for card in versions}
        self._starts = np.array(sorted(starts), np.int64)
        self._remembered: dict[tuple[str, ...], tuple[NDArray[np.int64], tuple[str, str, str]]] = {}

    def rate(self, scope: Scope, tokens: dict[str, NDArray[np.generic]]) -> RatedBlock:
        """Rate every event; `tokens` are the columns of counts."""
        kinds, firsts, kind_of = self._kinds(scope)
        found = [self._price(scope, int(first), int(span)) for first, span in zip(firsts, kinds, strict=True)]
        outcomes = list(dict.fromkeys(outcome for _, outcome in found))
        numbers = {outcome: number for number, outcome in enumerate(outcomes)}
        outcome = np.array([numbers[outcome] for _, outcome in found], np.int64)[kind_of]
        prices = np.array([row for row, _ in found], np.int64).reshape(len(found), _ROW)[kind_of].T
        counts = [tokens[name].astype(np.int64) for name in _INPUTS]
        output, reasoning = tokens["output"].astype(np.int64), tokens["reasoning"].astype(np.int64)
        everything = np.add.reduce(counts)
        priced = (output - reasoning) * prices[7] + reasoning * prices[8]
        priced += np.where((everything != 0) | (output != 0), prices[9], 0)
        metered = priced.copy()
        for count, price in zip(counts, prices[:7], strict=True):
            metered += count * price
        dearest = [prices[chosen].max(axis=0, initial=0).astype(float) for chosen in (slice(0, 7), slice(7, 9))]
        most = everything * dearest[0] + output * dearest[1] + prices[9]
        unpriced = (output != 0) & (prices[10] != 0)
        regional = scope.attributed & (prices[11] != 0)
        unsure = (most > _SURE_BELOW) | unpriced | regional | (prices[12] != 0)
        return RatedBlock(everything * prices[0] + priced, metered, outcome, outcomes, unsure)

    def _kinds(self, scope: Scope) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The spans (between starts of cards) of the different kinds of event, where each is first, and each event's kind."""
        span = np.searchsorted(self._starts, scope.time_us, side="right")
        key, space = span.astype(np.int64), len(self._starts) + 1
        for codes, texts in scope.tags:
            key = key * max(1, len(texts)) + codes.astype(np.int64)
            space *= max(1, len(texts))
        if space > _KEY_SPACE_MAX:
            raise OverflowError("too many different tags in one batch")
        _, firsts, kind_of = np.unique(key, return_index=True, return_inverse=True)
        return span[firsts], firsts, kind_of.reshape(-1)

    def _price(self, scope: Scope, at: int, span: int) -> tuple[NDArray[np.int64], tuple[str, str, str]]:
        tenant, model, adapter, feature, operation, tier = (texts[int(codes[at])] for codes, texts in scope.tags)
        key = (tenant, model, adapter, feature, operation, tier, str(span))
        known = self._remembered.get(key)
        if known is None:
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            moment = _EPOCH + timedelta(microseconds=int(scope.time_us[at]))
            card, price = self._pricing.price_of(
                tenant, moment, (model, adapter or None, feature, operation, tier, None)
            )
            regional = card is not None and any(one.region is not None for one in card.prices)
            if card is None:
                known = _row(None, regional), ("no_rate_card", "", "")
            elif price is None:
                known = _row(None, regional), ("unknown_model", "", "")
            else:
                known = _row(price, regional), ("", card.currency, card.name)
            self._remembered[key] = known
        return known


_ROW = 13


def _row(price: Price | None, regional: bool) -> NDArray[np.int64]:
    """Seven prices of input, of output, of reasoning, of the request; whether output has none, regions matter, more is priced."""
    if price is None:
        return np.array([0] * 11 + [regional, 0], np.int64)
    full = price.uncached_input
    cached = (
        *(price.cache_read_gpu, price.cache_read_cpu, price.cache_read_disk, price.cache_read_provider),
        *(price.cache_write_5m, price.cache_write_1h),
    )
    output = price.output or 0
    reasoning = output if price.reasoning is None else price.reasoning
    inputs = [full, *(full if one is None else one for one in cached)]
    return np.array(
        [*inputs, output, reasoning, price.request, price.output is None, regional, price.extended], np.int64
    )
