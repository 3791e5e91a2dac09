"""A period's usage and its cache savings with the heavy part in ClickHouse: it folds events into sums and epochs.

`settle_period` does all of it in memory, event by event, and is what this must agree with to the unit. Here millions of events
come back as one row for each tenant, line and price, and one for each way in which a tenant's hits are split.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clickhouse_connect.driver.client import Client

from taximeter_billing.domain import shapley, waterfall
from taximeter_billing.domain.epochs import Cell
from taximeter_billing.domain.gathering import Gathered, Place, Used
from taximeter_billing.domain.lots import PoolCell, Tally
from taximeter_billing.domain.savings import SavingsResult, settle_shares
from taximeter_billing.domain.shapley import Filled, UseClass
from taximeter_billing.domain.spans import microseconds
from taximeter_billing.domain.storage import StorageClass, token_times
from taximeter_billing.domain.storage_lines import Stored, by_line, ttl_us
from taximeter_billing.domain.usage import Prices, Skus, UnknownPriceError
from taximeter_billing.domain.waterfall import FillClass, LotClass
from taximeter_billing.usage_sums import READS, SPANS_A_QUERY, WRITES, UsageSum, folded_rows, summed_usage
from taximeter_billing.warehouse import TenantSpan
from taximeter_schemas.cache_policies import (
    CachePolicy,
    Published,
    Rule,
    ShapleyRule,
    WaterfallRule,
    refuse_mixed_prices,
)
from taximeter_schemas.periods import Period
from taximeter_schemas.rate_cards import RateCard

USES_A_CHUNK = 100_000_000
"""Blocks are folded in parts, one after the other, of about this many uses; that bounds what ClickHouse writes to its disk."""

CELLS_MAX = 5_000
"""A server takes at most 128 KiB for one parameter of a query: so many tenants and prices with blocks."""


@dataclass(slots=True)
class _Held:
    """What a tenant used: sums by line and span, tallies, and for each of ClickHouse's cells its SKU and pool."""

    used: dict[Place, dict[int, Used]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Used)))
    tallies: dict[PoolCell, Tally] = field(default_factory=dict)
    cells: dict[int, tuple[Cell, str]] = field(default_factory=dict)
    block_uses: int = 0
    fault: UnknownPriceError | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """Tenants that are settled together: their cells, the cells' pools, and all that ClickHouse must know to fold them."""

    cells: Mapping[int, Cell]
    pools: Mapping[int, str]
    skus: Sequence[str]
    parameters: Mapping[str, Any]


class UsageFold:
    """Folds the usage of tenants, each in its own span, which may be cut (`cuts`: moments in microseconds since the epoch).

    One query, when it is first needed, sums the usage of them all; epochs are folded for each group that settles together, and
    only where events carry blocks. All queries see the same rows where the spans say until when rows were inserted.
    """

    def __init__(
        self,
        client: Client,
        spans: Sequence[TenantSpan],
        cards: Sequence[RateCard],
        cuts: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._client = client
        self._spans = {span.tenant: span for span in spans}
        self._prices = Prices(cards)
        self._skus = Skus(self._prices)
        self._cards = cards
        self._cuts = cuts
        self._read: dict[str, _Held] | None = None

    def gathered(self, tenants: Iterable[str]) -> Gathered:
        """The tenants' usage by line and span. Raises UnknownPriceError."""
        gathered = Gathered()
        for tenant in tenants:
            gathered.cells.update(self._held(tenant).used)
        return gathered

    def is_small(self, tenants: Iterable[str]) -> bool:
        """Whether the tenants' blocks can be folded together: beyond CELLS_MAX only event by event. Raises UnknownPriceError."""
        with_blocks = [held for tenant in tenants if (held := self._held(tenant)).cells]
        return len(with_blocks) <= SPANS_A_QUERY and sum(len(held.cells) for held in with_blocks) <= CELLS_MAX

    def savings(
        self,
        policy: CachePolicy | Rule,
        salt: str = "",
        *,
        tenants: Iterable[str] | None = None,
        ttl_s: int | None = None,
        chunks: int | None = None,
    ) -> SavingsResult:
        """Settle these tenants (None: all) together, as `savings_for_period` does. Raises UnknownPriceError, CachePolicyError.

        What keeping blocks in cache costs is settled apart, by `stored`.
        """
        rule = policy.rule if isinstance(policy, Published) else policy
        held = {tenant: self._held(tenant) for tenant in (self._spans if tenants is None else tenants)}
        tallies = {key: tally for one in held.values() for key, tally in one.tallies.items()}
        rates = {sku: self._skus.rates[sku] for _pool, _tenant, sku in tallies}
        if rule is not policy:
            refuse_mixed_prices(rule, rates)
        parts = [{"ttl_us": (ttl_s or 0) * 1_000_000, **part} for part in _chunks(held.values(), chunks)]
        group = self._group(held) if parts else None
        if isinstance(rule, WaterfallRule):
            lots = (one for part in parts if group for one in self._waterfall(rule, group, part))
            shares = waterfall.credits_of_classes(lots, tallies, rates, rule)
        else:
            classes = (one for part in parts if group for one in self._shapley(rule, group, part))
            shares = shapley.credits_of_classes(classes, tallies, rates)
        return settle_shares(shares, {}, tallies, rule, salt)

    def stored(
        self, policy: CachePolicy, month: Period, *, tenants: Iterable[str] | None = None, chunks: int | None = None
    ) -> Stored:
        """What these tenants (None: all) bear for blocks that were kept in a month, as `store` has it; the spans begin with
        LOOKBACK before it. Raises UnknownPriceError, CachePolicyError."""
        held = {tenant: self._held(tenant) for tenant in (self._spans if tenants is None else tenants)}
        events = sum(used.events for one in held.values() for spans in one.used.values() for used in spans.values())
        window = {"ttl_us": ttl_us(policy), "start": microseconds(month.start), "end": microseconds(month.end)}
        priced = any(self._skus.storage[sku] for one in held.values() for (_, sku), _pool in one.cells.values())
        parts = [{**window, **part} for part in _chunks(held.values(), chunks)] if priced else []
        group = self._group(held) if parts else None
        classes = (one for part in parts if group for one in self._storage(policy, group, part))
        return Stored(by_line(token_times(classes), self._skus.storage), events)

    def _held(self, tenant: str) -> _Held:
        if self._read is None:
            self._read = {name: _Held() for name in self._spans}
            for one in summed_usage(self._client, list(self._spans.values()), self._cards, self._cuts):
                held = self._read[one.sample.tenant]
                try:
                    self._add(held, one)
                except UnknownPriceError as error:
                    held.fault = error  # of this tenant, and no reason to stop the others
        found = self._read.get(tenant) or _Held()
        if found.fault is not None:
            raise found.fault
        return found

    def _add(self, held: _Held, one: UsageSum) -> None:
        """Add events of one tenant that have all in common that chooses a price."""
        sample = one.sample
        tenant, pool = sample.tenant, sample.pool
        price = self._prices.price(sample)
        used = held.used[tenant, sample.feature, sample.model, sample.rate_card][one.segment]
        used.add(price, one.quantities(price), one.list_pico, one.metered_pico, one.events)

        def tally(tier: str, lifetime: str, **tokens: int) -> str:
            sku = self._skus.sku(sample, tier, lifetime)
            key = (pool, tenant, sku)
            found = held.tallies.get(key)
            if found is None:
                found = held.tallies[key] = Tally()
            found.count(self._skus.rates[sku], pooled=bool(pool), **tokens)
            return sku

        uncached, reads, writes = one.classes[0], one.classes[1:5], one.classes[5:7]
        if one.exact:
            sku = tally(one.tier, "", hit=one.hit, filled=one.filled, tail=uncached - one.filled)
            held.cells[one.cell] = ((tenant, sku), pool)
            held.block_uses += one.block_uses
            return
        for name, tokens in zip(READS, reads, strict=True):
            if tokens:
                tally(name, "", cached=tokens)
        for name, tokens in zip(WRITES, writes, strict=True):
            if tokens:
                tally("", name, written=tokens)
        if uncached or not any((*reads, *writes)):
            tally("", "", tail=uncached)

    def _group(self, held: Mapping[str, _Held]) -> _Group:
        """Number the tenants (from 1) and SKUs of the cells."""
        found = {hashed: cell for one in held.values() for hashed, cell in one.cells.items()}
        cells = {hashed: cell for hashed, (cell, _pool) in found.items()}
        skus = sorted({sku for _tenant, sku in cells.values()})
        tenant_numbers = {tenant: number for number, tenant in enumerate(sorted(held), start=1)}
        sku_numbers = {sku: number for number, sku in enumerate(skus)}
        rates = self._skus.rates
        parameters = {
            "cells": list(cells),
            "tenants_of": [tenant_numbers[tenant] for tenant, _sku in cells.values()],
            "skus_of": [sku_numbers[sku] for _tenant, sku in cells.values()],
            "saves": [waterfall.lot_unit(rates[sku]) for _tenant, sku in cells.values()],
        }
        return _Group(cells, {hashed: pool for hashed, (_cell, pool) in found.items()}, skus, parameters)

    def _waterfall(self, rule: WaterfallRule, group: _Group, part: Mapping[str, Any]) -> Iterator[LotClass | FillClass]:
        parameters = {**group.parameters, **part, "keep_own": int(rule.self_hits == "keep")}
        for row in self._rows("billing_fold_waterfall", _tenants_of(group), parameters, "billing_fold_epochs"):
            is_lot, hashed, own, warmed, filler_sku, gross, shared, tokens = row
            cell = group.cells[hashed]
            if is_lot:
                filler = group.skus[filler_sku] if warmed else None
                yield LotClass(group.pools[hashed], cell, tokens, bool(own), filler, gross, shared)
            else:
                yield FillClass(cell, tokens, gross, shared)

    def _shapley(self, rule: ShapleyRule, group: _Group, part: Mapping[str, Any]) -> Iterator[UseClass | Filled]:
        parameters = {**group.parameters, **part, "by_tenant": int(rule.players == "tenant")}
        del parameters["saves"]
        for row in self._rows("billing_fold_shapley", _tenants_of(group), parameters, "billing_fold_epochs"):
            is_use, hashed, filler_sku, parts, tokens = row
            cell = group.cells[hashed]
            yield UseClass(cell, tokens, parts, group.skus[filler_sku]) if is_use else Filled(cell, tokens)

    def _storage(self, policy: CachePolicy, group: _Group, part: Mapping[str, Any]) -> Iterator[StorageClass]:
        parameters = {**group.parameters, **part, "by_creator": int(policy.storage == "creator")}
        del parameters["saves"]
        for hashed, sku, of, token_us in self._rows("billing_fold_storage", _tenants_of(group), parameters):
            yield StorageClass(group.cells[hashed], group.skus[sku], token_us, of)

    def _rows(
        self, name: str, tenants: Iterable[str], parameters: Mapping[str, Any], over: str = ""
    ) -> Iterator[Sequence[Any]]:
        spans = [self._spans[tenant] for tenant in tenants]
        return folded_rows(self._client, name, spans, self._cards, parameters, over)


def _chunks(held: Iterable[_Held], chunks: int | None) -> list[dict[str, int]]:
    chunks = chunks or -(-sum(one.block_uses for one in held) // USES_A_CHUNK)
    return [{"chunk": chunk, "chunks": chunks} for chunk in range(chunks)]


def _tenants_of(group: _Group) -> list[str]:
    """Tenants that have blocks; the others take no part in epochs."""
    return sorted({tenant for tenant, _sku in group.cells.values()})
