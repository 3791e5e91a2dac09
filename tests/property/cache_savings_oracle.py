"""A plain second opinion on cache savings: every hit looks back for who filled its block. Quadratic, nothing shared with
the engine but the input types; exact fractions, no rounding."""

from collections import defaultdict
from fractions import Fraction
from typing import NamedTuple

from taximeter_schemas.cache_policies import Rule, WaterfallRule
from taximeter_schemas.cache_uses import CacheUse, Cleared, Evicted, SkuRates

Records = list[CacheUse | Evicted | Cleared]


class Fill(NamedTuple):
    """A fill: which record, which block."""

    at: int
    block: str


class Hit(NamedTuple):
    """What one hit saved, and which fill it came from (None: nobody saw it)."""

    use: CacheUse
    gross: Fraction
    fill: Fill | None


def ends(record: CacheUse | Evicted | Cleared, use: CacheUse, block: str) -> bool:
    if isinstance(record, Evicted):
        return record.pool == use.pool and record.model == (use.model or use.sku) and block in record.blocks
    if isinstance(record, Cleared):
        return record.pool == use.pool and record.model in (None, use.model or use.sku)
    return False


def look_back(records: Records, at: int, block: str, ttl_s: int | None) -> Fill | None:
    use = records[at]
    assert isinstance(use, CacheUse)
    seen_at = use.ts
    for earlier in range(at - 1, -1, -1):
        record = records[earlier]
        if ends(record, use, block):
            return None
        if not isinstance(record, CacheUse) or record.cache != use.cache:
            continue
        names = [name for name, _ in record.blocks]
        if block not in names:
            continue
        if ttl_s is not None and seen_at - record.ts > ttl_s:
            return None
        if names.index(block) >= record.hit_blocks:
            return Fill(earlier, block)
        seen_at = record.ts
    return None


def charges(
    records: Records, rates: dict[str, SkuRates], rule: Rule, ttl_s: int | None = None
) -> tuple[dict[str, Fraction], Fraction]:
    """Exact charges by tenant, and what the provider keeps. `records` are in time."""
    paid: dict[str, Fraction] = defaultdict(Fraction)
    hits: list[Hit] = []
    kept = Fraction(0)
    for at, use in enumerate(records):
        if not isinstance(use, CacheUse):
            continue
        rate = rates[use.sku]
        paid[use.tenant] += rate.p * use.tail_tokens + rate.w * use.written_tokens + rate.r * use.cached_tokens
        if use.cached_tokens and use.pool:
            hits.append(Hit(use, Fraction((rate.p - rate.r) * use.cached_tokens), None))
        elif rule.unattributed == "provider":
            paid[use.tenant] += (rate.p - rate.r) * use.cached_tokens
            kept += (rate.p - rate.r) * use.cached_tokens
        for position, (block, tokens) in enumerate(use.blocks):
            if position < use.hit_blocks:
                paid[use.tenant] += rate.r * tokens
                hits.append(Hit(use, Fraction((rate.p - rate.r) * tokens), look_back(records, at, block, ttl_s)))
            else:
                paid[use.tenant] += rate.w * tokens
    if isinstance(rule, WaterfallRule):
        paid, provider = waterfall(records, rates, rule, paid, hits)
        return paid, provider + kept
    for fill in {hit.fill for hit in hits if hit.fill}:
        filler, tokens, rate = filled(records, rates, fill)
        users = [filler.tenant] + [hit.use.tenant for hit in hits if hit.fill == fill]
        paid[filler.tenant] -= (rate.w - rate.r) * tokens
        sharing = users if rule.players == "use" else sorted(set(users))
        for tenant in sharing:
            paid[tenant] += Fraction((rate.w - rate.r) * tokens, len(sharing))
    return paid, kept


def filled(records: Records, rates: dict[str, SkuRates], fill: Fill) -> tuple[CacheUse, int, SkuRates]:
    use = records[fill.at]
    assert isinstance(use, CacheUse)
    return use, dict(use.blocks)[fill.block], rates[use.sku]


def waterfall(
    records: Records, rates: dict[str, SkuRates], rule: WaterfallRule, paid: dict[str, Fraction], hits: list[Hit]
) -> tuple[dict[str, Fraction], Fraction]:
    # Everybody pays the full price of a hit, and gets credits.
    for hit in hits:
        paid[hit.use.tenant] += hit.gross
    provider = Fraction(0)
    pools: dict[str, Fraction] = defaultdict(Fraction)
    for fill in {hit.fill for hit in hits}:
        lots = [hit for hit in hits if hit.fill == fill]
        gross = sum(hit.gross for hit in lots)
        if not gross:
            continue
        warmer, cap, recovered = None, None, Fraction(0)
        if fill is not None:
            use, tokens, rate = filled(records, rates, fill)
            warmer = use.tenant
            if rule.recover_premium:
                recovered = min(Fraction(gross), Fraction(max(0, rate.w - rate.p) * tokens))
            paid[warmer] -= recovered
            if rule.warmer_cap_bps is not None:
                cap = max(Fraction(0), Fraction(rule.warmer_cap_bps * rate.w * tokens, 10000) - recovered)
        shared = [hit for hit in lots if not (rule.self_hits == "keep" and hit.use.tenant == warmer)]
        left = {id(hit): hit.gross * (1 - recovered / gross) for hit in lots}
        for hit in lots:
            if hit not in shared:
                paid[hit.use.tenant] -= left[id(hit)]
                continue
            provider += left[id(hit)] * rule.provider_bps / 10000
            paid[hit.use.tenant] -= left[id(hit)] * rule.beneficiary_bps / 10000
            pools[hit.use.pool] += left[id(hit)] * rule.pool_bps / 10000
        part = sum((left[id(hit)] * rule.warmer_bps / 10000 for hit in shared), Fraction(0))
        to_warmer = Fraction(0) if warmer is None else part if cap is None else min(part, cap)
        if warmer is not None:
            paid[warmer] -= to_warmer
        for hit in shared:
            paid[hit.use.tenant] -= (part - to_warmer) * hit.gross / sum(each.gross for each in shared)
    for pool, amount in pools.items():
        weights = pool_weights([use for use in records if isinstance(use, CacheUse) and use.pool == pool], rates, rule)
        for tenant, weight in weights.items():
            paid[tenant] = paid.get(tenant, Fraction(0)) - amount * weight / (sum(weights.values()) or 1)
    return paid, provider


def pool_weights(uses: list[CacheUse], rates: dict[str, SkuRates], rule: WaterfallRule) -> dict[str, int]:
    if rule.pool_weight == "equal":
        return dict.fromkeys(rule.pool_tenants or {use.tenant for use in uses}, 1)
    weights: dict[str, int] = defaultdict(int)
    for use in uses:
        cached = sum(tokens for _, tokens in use.blocks[: use.hit_blocks]) + use.cached_tokens
        whole = sum(tokens for _, tokens in use.blocks) + use.tail_tokens + use.cached_tokens + use.written_tokens
        match rule.pool_weight:
            case "list_spend":
                weights[use.tenant] += rates[use.sku].p * whole
            case "input_tokens":
                weights[use.tenant] += whole
            case "cached_tokens":
                weights[use.tenant] += cached
    return weights
