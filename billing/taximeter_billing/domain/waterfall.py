"""The waterfall: recover the write premium, keep self hits, split each lot by basis points, cap the warmer, share the pool.

All of it in exact fractions; nothing is rounded here. What the provider keeps is a share like any other, under PROVIDER.
Where nobody saw who filled a block (counts alone, or a residency older than the records) the warmer's part goes to the
tenant that hit.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction

from taximeter_billing.domain.epochs import Cell, Epoch
from taximeter_billing.domain.lots import Tallies, Tally, lots_of
from taximeter_billing.domain.split import ExactSums
from taximeter_schemas.cache_policies import BPS_WHOLE, WaterfallRule
from taximeter_schemas.cache_uses import SkuRates

PROVIDER: Cell = ("@provider", "")


def waterfall_credits(
    epochs: Iterable[Epoch], tallies: Tallies, rates: Mapping[str, SkuRates], rule: WaterfallRule
) -> dict[Cell, Fraction]:
    """Each tenant's (and SKU's) share of the gross saving, and the provider's; they sum to all of it but what is
    unattributed."""
    credits: ExactSums[Cell] = ExactSums()
    pools: ExactSums[str] = ExactSums()
    for epoch in epochs:
        _split_epoch(epoch, lots_of(epoch, rates), rates, rule, credits, pools)
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


def _split_epoch(
    epoch: Epoch,
    lots: Mapping[Cell, int],
    rates: Mapping[str, SkuRates],
    rule: WaterfallRule,
    credits: ExactSums[Cell],
    pools: ExactSums[str],
) -> None:
    gross = sum(lots.values())
    if gross == 0:
        return
    write, premium = 0, 0
    if epoch.warmer is not None:
        rate = rates[epoch.warmer[1]]
        write = rate.w * epoch.tokens
        if rule.recover_premium:
            premium = min(gross, max(0, rate.w - rate.p) * epoch.tokens)
            credits.add(epoch.warmer, premium)
    # Every lot gives to the premium in proportion: what is left of it is lot * left / whole.
    left, whole = (gross - premium, gross) if premium else (1, 1)
    shared = 0
    for cell, lot in lots.items():
        if rule.self_hits == "keep" and epoch.warmer is not None and cell[0] == epoch.warmer[0]:
            credits.add(cell, lot * left, whole)
            continue
        shared += lot
        _split_lot(epoch.pool, cell, lot * left, whole, rule, credits, pools)
        if epoch.warmer is None:
            credits.add(cell, lot * left * rule.warmer_bps, whole * BPS_WHOLE)
    if epoch.warmer is None or not rule.warmer_bps or not shared:
        return
    # The warmer's part in units of 1 / (whole * BPS_WHOLE), cut to what the cap leaves after the premium.
    part = shared * left * rule.warmer_bps
    cut = 0
    if rule.warmer_cap_bps is not None:
        room = max(0, rule.warmer_cap_bps * write - premium * BPS_WHOLE)
        cut = max(0, part - room * whole)
    credits.add(epoch.warmer, part - cut, whole * BPS_WHOLE)
    if cut:
        for cell, lot in lots.items():
            if not (rule.self_hits == "keep" and cell[0] == epoch.warmer[0]):
                credits.add(cell, cut * lot, whole * BPS_WHOLE * shared)


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
