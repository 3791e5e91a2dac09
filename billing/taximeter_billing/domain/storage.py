"""What keeping blocks in cache cost: tokens x hours of residency x the SKU's storage price, borne by the creator or
shared by hits. Kept beside the savings: it is a cost of its own on the invoice."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Literal

from taximeter_billing.domain.epochs import Cell, Epoch
from taximeter_billing.domain.split import ExactSums
from taximeter_schemas.cache_uses import SkuRates

SECONDS_AN_HOUR = 3600


def storage_costs(
    epochs: Iterable[Epoch], rates: Mapping[str, SkuRates], borne_by: Literal["creator", "shared"]
) -> dict[Cell, Fraction]:
    """Exact storage cost by tenant and SKU. A block that nobody hit is its creator's; one whose creator nobody saw is
    shared by those who hit it, at their own SKU's price."""
    costs: ExactSums[Cell] = ExactSums()
    for epoch in epochs:
        token_seconds = epoch.tokens * (epoch.ended_at - epoch.opened_at)
        if epoch.warmer is not None and (borne_by == "creator" or not epoch.hits):
            costs.add(epoch.warmer, token_seconds * rates[epoch.warmer[1]].s, SECONDS_AN_HOUR)
            continue
        hits = sum(epoch.hits.values())
        for cell, count in epoch.hits.items():
            price = rates[(epoch.warmer or cell)[1]].s
            costs.add(cell, token_seconds * price * count, SECONDS_AN_HOUR * hits)
    return costs.totals()
