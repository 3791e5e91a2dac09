"""Shapley: a block's filling is a cost shared by everybody who used it, whoever came first.

Each use pays its own read. What the filling cost above a read, (w - r) x tokens, is split equally among the epoch's
distinct tenants, or by the number of uses. Exact fractions; nothing is rounded here.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Literal

from taximeter_billing.domain.epochs import Cell, Epoch
from taximeter_billing.domain.lots import Tallies
from taximeter_billing.domain.split import ExactSums
from taximeter_schemas.cache_uses import SkuRates


def shapley_credits(
    epochs: Iterable[Epoch],
    tallies: Tallies,
    rates: Mapping[str, SkuRates],
    players: Literal["tenant", "use"],
) -> dict[Cell, Fraction]:
    """Each tenant's (and SKU's) reduction of list cost and write premium; they sum to the gross saving that is exact or
    inferred. Who filled gets back what it paid above a read, and every user gives its share of that."""
    credits: ExactSums[Cell] = ExactSums()
    for (_, tenant, sku), tally in tallies.items():
        credits.add((tenant, sku), tally.exact_pico + tally.inferred_pico)
    for epoch in epochs:
        # Without a hit the one user pays what it paid; without a known filler there is nothing to share.
        if epoch.warmer is None or not epoch.hits:
            continue
        rate = rates[epoch.warmer[1]]
        filling = (rate.w - rate.r) * epoch.tokens
        credits.add(epoch.warmer, filling)
        uses = dict(epoch.hits)
        uses[epoch.warmer] = uses.get(epoch.warmer, 0) + 1
        by_tenant: dict[str, int] = {}
        for (tenant, _), count in uses.items():
            by_tenant[tenant] = by_tenant.get(tenant, 0) + count
        whole = sum(uses.values())
        for cell, count in uses.items():
            of = whole if players == "use" else len(by_tenant) * by_tenant[cell[0]]
            credits.add(cell, -filling * count, of)
    return credits.totals()
