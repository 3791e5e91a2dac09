"""Cache savings of a period with the heavy part in ClickHouse: it folds events into tallies and epochs, the last step is ours.

`savings_for_period` does all of it in memory, and is what this must agree with to the unit. Here millions of events come back as
one row for each tenant and price, and one for each way in which a tenant's hits are split.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clickhouse_connect.driver.client import Client

from taximeter_billing.domain import shapley, waterfall
from taximeter_billing.domain.epochs import Cell
from taximeter_billing.domain.lots import PoolCell, Tally, tally_uses
from taximeter_billing.domain.savings import SavingsResult, settle_shares
from taximeter_billing.domain.shapley import Filled, UseClass
from taximeter_billing.domain.usage import Prices, Skus, UsageRow
from taximeter_billing.domain.waterfall import FillClass, LotClass
from taximeter_billing.warehouse import TenantSpan
from taximeter_schemas.cache_policies import (
    CachePolicy,
    Published,
    Rule,
    ShapleyRule,
    WaterfallRule,
    refuse_mixed_prices,
)
from taximeter_schemas.cache_uses import CacheUse
from taximeter_schemas.rate_cards import RateCard
from taximeter_sql import query

USES_A_CHUNK = 6_000_000
"""Blocks are folded in parts, one after the other, of about this many uses; that bounds ClickHouse's memory."""

_READS = ("gpu", "cpu", "disk", "provider")
_WRITES = ("5m", "1h")


class SavingsFold:
    """Folds the usage of tenants that are settled together (one policy, one currency)."""

    def __init__(self, client: Client, spans: Sequence[TenantSpan], cards: Sequence[RateCard]) -> None:
        self._client = client
        self._skus = Skus(Prices(cards))
        self._cells: dict[int, Cell] = {}
        self._pools: dict[int, str] = {}
        self._block_uses = 0
        lengths = {band.input_over for card in cards for price in card.prices for band in price.bands}
        self._parameters: dict[str, Any] = {
            "tenants": [span.tenant for span in spans],
            "starts": [span.start for span in spans],
            "ends": [span.end for span in spans],
            "untils": [span.until for span in spans],
            "lengths": sorted(lengths),
        }

    def savings(
        self, policy: CachePolicy | Rule, salt: str = "", *, ttl_s: int | None = None, chunks: int | None = None
    ) -> SavingsResult:
        """Settle, as `savings_for_period` does. Raises UnknownPriceError, CachePolicyError.

        Rate cards have no price for keeping blocks in cache, so there is no storage cost here.
        """
        rule = policy.rule if isinstance(policy, Published) else policy
        tallies = self._tallies()
        rates = self._skus.rates
        if rule is not policy:
            refuse_mixed_prices(rule, rates)
        chunks = chunks or -(-self._block_uses // USES_A_CHUNK) or 1
        parts = [{"ttl_us": (ttl_s or 0) * 1_000_000, "chunk": chunk, "chunks": chunks} for chunk in range(chunks)]
        if isinstance(rule, WaterfallRule):
            lots = (one for part in parts for one in self._waterfall(rule, part))
            shares = waterfall.credits_of_classes(lots, tallies, rates, rule)
        else:
            uses = (one for part in parts for one in self._shapley(rule, part))
            shares = shapley.credits_of_classes(uses, tallies, rates)
        return settle_shares(shares, {}, tallies, rule, salt)

    def _tallies(self) -> Mapping[PoolCell, Tally]:
        tallies: dict[PoolCell, Tally] = {}
        self._block_uses = 0
        for row in self._rows("billing_fold_tallies", {}):
            for key, tally in tally_uses(self._uses(row), self._skus.rates).items():
                tallies.setdefault(key, Tally()).__iadd__(tally)
        return tallies

    def _waterfall(self, rule: WaterfallRule, part: dict[str, Any]) -> Iterator[LotClass | FillClass]:
        skus, numbers = self._numbered()
        rates = self._skus.rates
        numbers["saves"] = [waterfall.lot_unit(rates[sku]) for _tenant, sku in self._cells.values()]
        numbers["keep_own"] = int(rule.self_hits == "keep")
        for row in self._rows("billing_fold_waterfall", part | numbers, "billing_fold_epochs"):
            is_lot, hashed, own, warmed, filler_sku, gross, shared, tokens = row
            cell = self._cells[hashed]
            if is_lot:
                filler = skus[filler_sku] if warmed else None
                yield LotClass(self._pools[hashed], cell, tokens, bool(own), filler, gross, shared)
            else:
                yield FillClass(cell, tokens, gross, shared)

    def _shapley(self, rule: ShapleyRule, part: dict[str, Any]) -> Iterator[UseClass | Filled]:
        skus, numbers = self._numbered()
        numbers["by_tenant"] = int(rule.players == "tenant")
        for row in self._rows("billing_fold_shapley", part | numbers, "billing_fold_epochs"):
            is_use, hashed, filler_sku, parts, tokens = row
            cell = self._cells[hashed]
            yield UseClass(cell, tokens, parts, skus[filler_sku]) if is_use else Filled(cell, tokens)

    def _numbered(self) -> tuple[list[str], dict[str, Any]]:
        """The SKUs, and as parameters the cells with the numbers of their tenants (from 1) and SKUs."""
        skus = sorted({sku for _tenant, sku in self._cells.values()})
        tenants = sorted({tenant for tenant, _sku in self._cells.values()})
        sku_numbers = {sku: number for number, sku in enumerate(skus)}
        tenant_numbers = {tenant: number for number, tenant in enumerate(tenants, start=1)}
        return skus, {
            "cells": list(self._cells),
            "tenants_of": [tenant_numbers[tenant] for tenant, _sku in self._cells.values()],
            "skus_of": [sku_numbers[sku] for _tenant, sku in self._cells.values()],
        }

    def _uses(self, row: Sequence[Any]) -> list[CacheUse]:
        """One use that stands for all of the row, for each tier and lifetime in it."""
        pool, tenant, card, feature, model, adapter, operation, service_tier, region, exact, tier = row[:11]
        cell, length, hit, filled, uncached = row[11:16]
        sample = UsageRow(
            tenant=tenant, feature=feature, model=model, adapter=adapter, operation=operation, service_tier=service_tier,
            rate_card=card, source="", event_id="(any)", time_us=0, uncached_input=length, cache_read_gpu=0, cache_read_cpu=0,
            cache_read_disk=0, cache_read_provider=0, cache_write_5m=0, cache_write_1h=0, output=0, pool=pool, block_size=0,
            hit_blocks=0, blocks=(), list_pico=0, metered_pico=0, region=region,
        )  # fmt: skip

        def use(tier: str, lifetime: str, **counts: Any) -> CacheUse:
            sku = self._skus.sku(sample, tier, lifetime)
            return CacheUse.model_construct(event_id="(all)", tenant=tenant, ts=0, sku=sku, pool=pool, **counts)

        if exact:
            self._cells[cell] = (tenant, self._skus.sku(sample, tier, ""))
            self._pools[cell] = pool
            self._block_uses += row[22]
            blocks = (("hit", hit), ("filled", filled))
            return [use(tier, "", blocks=blocks, hit_blocks=1, tail_tokens=uncached - filled)]
        uses = [use(name, "", cached_tokens=tokens) for name, tokens in zip(_READS, row[16:20], strict=True) if tokens]
        uses += [
            use("", name, written_tokens=tokens) for name, tokens in zip(_WRITES, row[20:22], strict=True) if tokens
        ]
        return [*uses, use("", "", tail_tokens=uncached)] if uncached or not uses else uses

    def _rows(self, name: str, parameters: dict[str, Any], over: str = "") -> Iterator[Sequence[Any]]:
        between = f",\nepochs AS (\n{query(over)})" if over else ""
        statement = f"WITH folded AS (\n{query('billing_fold_rows')}){between}\n{query(name)}"
        with self._client.query_row_block_stream(statement, parameters=self._parameters | parameters) as blocks:
            for block in blocks:
                yield from block
