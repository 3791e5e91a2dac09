"""The waterfall: recover the write premium, keep self hits, split each lot by basis points, cap the warmer, share the pool.

All of it in exact fractions; nothing is rounded here. What the provider keeps is a share like any other, under PROVIDER.
Where nobody saw who filled a block (counts alone, or a residency older than the records) the warmer's part goes to the
tenant that hit.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from taximeter_billing.domain.epochs import Cell, Epoch
from taximeter_billing.domain.lots import Tallies, Tally
from taximeter_billing.domain.split import ExactSums
from taximeter_schemas.cache_policies import BPS_WHOLE, WaterfallRule
from taximeter_schemas.cache_uses import SkuRates

PROVIDER: Cell = ("@provider", "")


@dataclass(frozen=True, slots=True)
class LotClass:
    """Lots that are split alike: `token_hits` is the sum of tokens x hits of `cell` over epochs of one `pool`, one filler's SKU
    and one pair of units. `own`: the cell's tenant filled the block itself. `filler` None: nobody saw who filled it.

    `gross_unit` is the epoch's gross saving for each of its tokens in pico-units, `shared_unit` what of it is not kept by the
    filler as its own hits.
    """

    pool: str
    cell: Cell
    token_hits: int
    own: bool
    filler: str | None
    gross_unit: int
    shared_unit: int


@dataclass(frozen=True, slots=True)
class FillClass:
    """Fillings that are paid alike: `tokens` is the sum of tokens that `cell` filled, in epochs of one pair of units."""

    cell: Cell
    tokens: int
    gross_unit: int
    shared_unit: int


def waterfall_credits(
    epochs: Iterable[Epoch], tallies: Tallies, rates: Mapping[str, SkuRates], rule: WaterfallRule
) -> dict[Cell, Fraction]:
    """Each tenant's (and SKU's) share of the gross saving, and the provider's; they sum to all of it but what is
    unattributed."""
    return credits_of_classes((one for epoch in epochs for one in _classes(epoch, rates, rule)), tallies, rates, rule)


def credits_of_classes(
    classes: Iterable[LotClass | FillClass], tallies: Tallies, rates: Mapping[str, SkuRates], rule: WaterfallRule
) -> dict[Cell, Fraction]:
    """The same from lots and fillings that were summed elsewhere. Everything is proportional to tokens, so sums are exact."""
    credits: ExactSums[Cell] = ExactSums()
    pools: ExactSums[str] = ExactSums()
    for one in classes:
        if isinstance(one, LotClass):
            _split_class(one, rates, rule, credits, pools)
        else:
            _pay_filler(one, rates, rule, credits)
    for (pool, tenant, sku), tally in tallies.items():
        _split_lot(pool, (tenant, sku), tally.inferred_pico, 1, rule, credits, pools)
        credits.add((tenant, sku), tally.inferred_pico * rule.warmer_bps, BPS_WHOLE)
    for pool, amount in pools.totals().items():
        shares = _pool_shares(pool, tallies, rule)
        whole = sum(shares.values())
        for cell, share in shares.items():
            part = amount * share / whole
            credits.add(cell, part.numerator, part.denominator)
    return credits.totals()


def _classes(epoch: Epoch, rates: Mapping[str, SkuRates], rule: WaterfallRule) -> Iterator[LotClass | FillClass]:
    """An epoch as classes of its own."""
    units = {cell: lot_unit(rates[cell[1]]) * hits for cell, hits in epoch.hits.items()}
    gross = sum(units.values())
    if gross == 0:
        return
    tenant, filler = (epoch.warmer[0], epoch.warmer[1]) if epoch.warmer is not None else (None, None)
    kept = sum(unit for cell, unit in units.items() if rule.self_hits == "keep" and cell[0] == tenant)
    for cell, hits in epoch.hits.items():
        yield LotClass(epoch.pool, cell, epoch.tokens * hits, cell[0] == tenant, filler, gross, gross - kept)
    if epoch.warmer is not None:
        yield FillClass(epoch.warmer, epoch.tokens, gross, gross - kept)


def lot_unit(rate: SkuRates) -> int:
    """What one hit saves for each token, in pico-units."""
    return rate.p - rate.r


def _premium(rate: SkuRates, gross_unit: int, rule: WaterfallRule) -> int:
    """What of the write premium is recovered from the epoch's savings, for each of its tokens."""
    return min(gross_unit, max(0, rate.w - rate.p)) if rule.recover_premium else 0


def _split_class(
    one: LotClass,
    rates: Mapping[str, SkuRates],
    rule: WaterfallRule,
    credits: ExactSums[Cell],
    pools: ExactSums[str],
) -> None:
    lot = lot_unit(rates[one.cell[1]]) * one.token_hits
    premium = _premium(rates[one.filler], one.gross_unit, rule) if one.filler is not None else 0
    # Every lot gives to the premium in proportion: what is left of it is lot * left / whole.
    left, whole = (one.gross_unit - premium, one.gross_unit) if premium else (1, 1)
    if rule.self_hits == "keep" and one.own:
        credits.add(one.cell, lot * left, whole)
        return
    _split_lot(one.pool, one.cell, lot * left, whole, rule, credits, pools)
    if one.filler is None:
        credits.add(one.cell, lot * left * rule.warmer_bps, whole * BPS_WHOLE)
    elif cut := _cut(one, rates[one.filler], premium, left, whole, rule):
        # What the cap cuts off goes back to the lots in proportion.
        credits.add(one.cell, cut * lot, whole * BPS_WHOLE * one.shared_unit)


def _pay_filler(one: FillClass, rates: Mapping[str, SkuRates], rule: WaterfallRule, credits: ExactSums[Cell]) -> None:
    rate = rates[one.cell[1]]
    premium = _premium(rate, one.gross_unit, rule)
    left, whole = (one.gross_unit - premium, one.gross_unit) if premium else (1, 1)
    credits.add(one.cell, premium * one.tokens)
    part = one.shared_unit * left * rule.warmer_bps
    cut = _cut(one, rate, premium, left, whole, rule)
    credits.add(one.cell, (part - cut) * one.tokens, whole * BPS_WHOLE)


def _cut(one: LotClass | FillClass, rate: SkuRates, premium: int, left: int, whole: int, rule: WaterfallRule) -> int:
    """What the cap takes off the filler's part of each token, in units of 1 / (whole * BPS_WHOLE): the cap counts the premium."""
    if rule.warmer_cap_bps is None or not rule.warmer_bps or not one.shared_unit:
        return 0
    room = max(0, rule.warmer_cap_bps * rate.w - premium * BPS_WHOLE)
    return max(0, one.shared_unit * left * rule.warmer_bps - room * whole)


def _split_lot(
    pool: str,
    cell: Cell,
    numerator: int,
    denominator: int,
    rule: WaterfallRule,
    credits: ExactSums[Cell],
    pools: ExactSums[str],
) -> None:
    """The provider's, the beneficiary's and the pool's part of numerator / denominator."""
    if not numerator:
        return
    credits.add(PROVIDER, numerator * rule.provider_bps, denominator * BPS_WHOLE)
    credits.add(cell, numerator * rule.beneficiary_bps, denominator * BPS_WHOLE)
    if rule.pool_bps:
        pools.add(pool, numerator * rule.pool_bps, denominator * BPS_WHOLE)


def _pool_shares(pool: str, tallies: Tallies, rule: WaterfallRule) -> dict[Cell, Fraction]:
    """Weights in a cache pool, by tenant and SKU."""
    members = {(tenant, sku): tally for (name, tenant, sku), tally in tallies.items() if name == pool}
    match rule.pool_weight:
        case "list_spend":
            return {cell: Fraction(tally.list_pico) for cell, tally in members.items()}
        case "input_tokens":
            return {cell: Fraction(tally.input_tokens) for cell, tally in members.items()}
        case "cached_tokens":
            return {cell: Fraction(tally.cached_tokens) for cell, tally in members.items()}
        case "equal":
            return _equal_shares(members, rule.pool_tenants)


def _equal_shares(members: Mapping[Cell, Tally], named: tuple[str, ...]) -> dict[Cell, Fraction]:
    """One share a tenant (those named, else all of the pool), spread over its SKUs by list spend. A named tenant without
    any spend gets its share all the same, under no SKU."""
    shares: dict[Cell, Fraction] = {}
    for tenant in named or sorted({tenant for tenant, _ in members}):
        spend = {cell: tally.list_pico for cell, tally in members.items() if cell[0] == tenant}
        whole = sum(spend.values())
        if not whole:
            shares[(tenant, "")] = Fraction(1)
        for cell, part in spend.items():
            if whole:
                shares[cell] = Fraction(part, whole)
    return shares
