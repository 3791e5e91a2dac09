"""Shapley: a block's filling is a cost shared by everybody who used it, whoever came first.

Each use pays its own read. What the filling cost above a read, (w - r) x tokens, is split equally among the epoch's
distinct tenants, or by the number of uses. Exact fractions; nothing is rounded here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from taximeter_billing.domain.epochs import Cell, Epoch
from taximeter_billing.domain.lots import Tallies
from taximeter_billing.domain.split import ExactSums
from taximeter_schemas.cache_uses import SkuRates


@dataclass(frozen=True, slots=True)
class UseClass:
    """Uses that share fillings alike: `token_uses` is the sum of tokens x uses of `cell`; each use bears 1 / `of` of filling
    at the price of `filler`, a SKU."""

    cell: Cell
    token_uses: int
    of: int
    filler: str


@dataclass(frozen=True, slots=True)
class Filled:
    """What `cell` filled, in tokens, of blocks that were also hit."""

    cell: Cell
    tokens: int


def shapley_credits(
    epochs: Iterable[Epoch],
    tallies: Tallies,
    rates: Mapping[str, SkuRates],
    players: Literal["tenant", "use"],
) -> dict[Cell, Fraction]:
    """Each tenant's (and SKU's) reduction of list cost and write premium; they sum to the gross saving that is exact or
    inferred. Who filled gets back what it paid above a read, and every user gives its share of that."""
    return credits_of_classes((one for epoch in epochs for one in _classes(epoch, players)), tallies, rates)


def credits_of_classes(
    classes: Iterable[UseClass | Filled], tallies: Tallies, rates: Mapping[str, SkuRates]
) -> dict[Cell, Fraction]:
    """The same from uses and fillings that were summed elsewhere. Everything is proportional to tokens, so sums are exact."""
    credits: ExactSums[Cell] = ExactSums()
    for (_, tenant, sku), tally in tallies.items():
        credits.add((tenant, sku), tally.exact_pico + tally.inferred_pico)
    for one in classes:
        if isinstance(one, Filled):
            credits.add(one.cell, _filling(rates[one.cell[1]]) * one.tokens)
        else:
            credits.add(one.cell, -_filling(rates[one.filler]) * one.token_uses, one.of)
    return credits.totals()


def _filling(rate: SkuRates) -> int:
    """What filling costs above a read, for each token in pico-units."""
    return rate.w - rate.r


def _classes(epoch: Epoch, players: Literal["tenant", "use"]) -> Iterator[UseClass | Filled]:
    # Without a hit the one user pays what it paid; without a known filler there is nothing to share.
    if epoch.warmer is None or not epoch.hits:
        return
    yield Filled(epoch.warmer, epoch.tokens)
    uses = dict(epoch.hits)
    uses[epoch.warmer] = uses.get(epoch.warmer, 0) + 1
    by_tenant: dict[str, int] = {}
    for (tenant, _), count in uses.items():
        by_tenant[tenant] = by_tenant.get(tenant, 0) + count
    whole = sum(uses.values())
    for cell, count in uses.items():
        of = whole if players == "use" else len(by_tenant) * by_tenant[cell[0]]
        yield UseClass(cell, epoch.tokens * count, of, epoch.warmer[1])
