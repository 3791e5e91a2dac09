"""What keeping blocks in cache costs: tokens x time of residency x the SKU's storage price, borne by the creator or shared by
hits. Kept beside the savings: it is a cost of its own on the invoice.

A period pays for what lies in it. A residency that goes on past its end is cut there: each part is borne by itself, so nothing
that comes later changes what was settled, and the parts of a residency are exactly the whole of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from taximeter_billing.domain.epochs import Cell, Epoch
from taximeter_billing.domain.split import ExactSums
from taximeter_schemas.cache_uses import SkuRates

STORAGE = "storage"
"""The kind of its lines."""

SECONDS_AN_HOUR = 3600
MICROSECONDS_AN_HOUR = 3_600_000_000

BorneBy = Literal["creator", "shared"]

Kept = tuple[Cell, str]
"""Who bears it, by tenant and SKU of its own, and the SKU whose price it has."""


@dataclass(frozen=True, slots=True)
class StorageClass:
    """Storage that is borne alike: `cell` bears 1 / `of` of `token_time` (tokens x units of time) at the price of `sku`."""

    cell: Cell
    sku: str
    token_time: int
    of: int


def storage_classes(epochs: Iterable[Epoch], borne_by: BorneBy) -> Iterator[StorageClass]:
    """Who bears each epoch. A block that nobody hit is its creator's; one whose creator nobody saw is shared by those who hit it,
    at their own SKU's price, and where nobody did in this part of its residency, by those who hit it before."""
    for epoch in epochs:
        token_time = epoch.tokens * (epoch.ended_at - epoch.opened_at)
        if not token_time:
            continue
        if epoch.warmer is not None and (borne_by == "creator" or not epoch.hits):
            yield StorageClass(epoch.warmer, epoch.warmer[1], token_time, 1)
            continue
        hits = epoch.hits or epoch.hits_before
        whole = sum(hits.values())
        for cell, count in hits.items():
            yield StorageClass(cell, (epoch.warmer or cell)[1], token_time * count, whole)


def token_times(classes: Iterable[StorageClass]) -> dict[Kept, Fraction]:
    """Exact sums of what each bears, in tokens x units of time."""
    kept: ExactSums[Kept] = ExactSums()
    for one in classes:
        kept.add((one.cell, one.sku), one.token_time, one.of)
    return kept.totals()


def storage_costs(epochs: Iterable[Epoch], rates: Mapping[str, SkuRates], borne_by: BorneBy) -> dict[Cell, Fraction]:
    """Exact storage cost by tenant and SKU, of epochs whose times are in seconds."""
    costs: dict[Cell, Fraction] = {}
    for (cell, sku), token_seconds in token_times(storage_classes(epochs, borne_by)).items():
        costs[cell] = costs.get(cell, Fraction(0)) + token_seconds * rates[sku].s / SECONDS_AN_HOUR
    return costs
