"""Tiered prices: graduated, volume, and tiers that are pooled across lines or carried over a change of price. Pure and exact.

A tier is an upper bound in units (None: no bound) and a price in pico-units a unit. Graduated: each unit costs what its own
tier says. Volume: all units cost what the tier of the whole says. A quantity that equals a bound still lies below it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from taximeter_billing.domain.split import round_to_total


@dataclass(frozen=True, slots=True)
class Tier:
    """Units up to and including `up_to` (None: all the rest) cost `price_pico` each."""

    up_to: int | None
    price_pico: int


@dataclass(frozen=True, slots=True)
class Tiers:
    """Tiers from the lowest bound to the one without; raises ValueError when the bounds do not rise, or none is open."""

    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        bounds = [tier.up_to for tier in self.tiers]
        closed = [bound for bound in bounds[:-1] if bound is not None]
        if not bounds or bounds[-1] is not None or len(closed) != len(bounds) - 1:
            raise ValueError("the last tier, and only that, has no bound")
        if any(later <= earlier for earlier, later in zip([0, *closed], closed, strict=False)):
            raise ValueError("the bounds of tiers rise")

    def volume(self, quantity: int) -> int:
        """What `quantity` units cost when all of them take the price of the tier that the whole reaches."""
        return quantity * self.volume_price(quantity)

    def volume_price(self, quantity: int) -> int:
        """The price a unit of the tier that `quantity` reaches."""
        return next(tier for tier in self.tiers if tier.up_to is None or quantity <= tier.up_to).price_pico

    def graduated(self, quantity: int, already: int = 0) -> int:
        """What `quantity` units cost, each at its own tier, when `already` units of the period came before them.

        So a price that changes within a period keeps the position: the later usage is priced with the new tiers from where
        the earlier usage ended.
        """
        return self._up_to(already + quantity) - self._up_to(already)

    def _up_to(self, quantity: int) -> int:
        cost, below = 0, 0
        for tier in self.tiers:
            bound = quantity if tier.up_to is None else min(quantity, tier.up_to)
            cost += max(0, bound - below) * tier.price_pico
            below = max(below, bound)
        return cost


def pooled(tiers: Tiers, usage: Mapping[str, int], salt: str = "") -> dict[str, int]:
    """Graduated tiers over the sum of several lines; the cost is shared by quantity, in whole pico-units that add up."""
    whole = sum(usage.values())
    total = tiers.graduated(whole)
    if whole == 0:
        return dict.fromkeys(usage, 0)
    return round_to_total({line: Fraction(total * units, whole) for line, units in usage.items()}, total, salt)


def price_steps(steps: Sequence[tuple[Tiers, int]]) -> list[list[int]]:
    """Usage under one price after another within a period: for each step, the cost in each of its tiers, as lines.

    The position in the tiers carries over; a tier in which nothing was used makes no line.
    """
    lines: list[list[int]] = []
    already = 0
    for tiers, quantity in steps:
        bounds = [tier.up_to for tier in tiers.tiers]
        costs = []
        position, end = already, already + quantity
        for bound in bounds:
            stop = end if bound is None else min(end, bound)
            if stop > position:
                costs.append(tiers.graduated(stop - position, position))
                position = stop
        lines.append(costs)
        already = end
    return lines
