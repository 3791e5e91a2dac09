"""What comes off (or on) after tiers and savings: voided usage, reservations, allowances, discounts. Pure and exact.

Every adjustment is one line, computed over everything that it covers and rounded once to whole pico-units; what it takes from
each parcel is remembered, so that the next one sees what is left.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from taximeter_billing.domain.contracts import Allowance, Discount, Meter
from taximeter_billing.domain.split import exact_sum, largest_remainder, round_half, round_to_total
from taximeter_billing.domain.takeback import VOID, Reserved
from taximeter_billing.domain.tariffing import Standing


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A line beside usage. `detail` says how its amount came about, in words and whole numbers."""

    kind: str
    id: str
    label: str
    amount_pico: int
    detail: Mapping[str, str] = field(default_factory=dict)


def take_back(standings: Sequence[Standing], salt: str) -> list[Adjustment]:
    """Voided usage, and what reservations cover: the part of each parcel's cost that its metered cost had in them."""
    found = []
    for what in sorted({what for standing in standings for what in standing.parcel.covered}):
        exact = {
            str(place): Fraction(standing.left_pico) * standing.parcel.covered[what] / standing.parcel.metered_pico
            for place, standing in enumerate(standings)
            if standing.parcel.covered.get(what) and standing.parcel.metered_pico
        }
        amount = _take(standings, exact, f"{salt}/{what}")
        if what == VOID:
            found.append(Adjustment("void", VOID, "voided and amended usage", -amount))
        else:
            found.append(Adjustment("covered", what[2:], f"covered by reservation {what[2:]}", -amount))
    return found


def reservation_fees(reserved: Sequence[Reserved]) -> list[Adjustment]:
    """Reserved units by the minute, used or not."""
    fees = []
    for held in reserved:
        it = held.reservation
        units = it.units * held.minutes
        detail = {"units": str(it.units), "minutes": str(held.minutes), "unit_minute_pico": str(it.unit_minute_pico)}
        label = f"reservation {it.id}: {it.units} units of {it.model}"
        fees.append(Adjustment("reservation", it.id, label, units * it.unit_minute_pico, detail))
    return fees


def apply_allowance(standings: Sequence[Standing], allowance: Allowance, salt: str) -> Adjustment | None:
    """Free units, taken from all that it covers in proportion to quantity. What costs nothing anyway uses none of them up."""
    covered = _covered(standings, allowance)
    priced = _priced(standings, allowance.meter)
    units = {
        place: quantity
        for place, standing in covered.items()
        if (quantity := standing.parcel.quantity(allowance.meter)) and _costs(standing, allowance.meter, priced)
    }
    whole = sum(units.values())
    if not whole:
        return None
    free = min(allowance.quantity, whole)
    exact = {place: Fraction(covered[place].left[allowance.meter] * free, whole) for place in units}
    amount = _take(standings, exact, f"{salt}/{allowance.id}", allowance.meter)
    detail = {"meter": allowance.meter.value, "free": str(free), "of": str(whole)}
    return Adjustment(
        "allowance", allowance.id, f"free: {free:,} of {whole:,} {allowance.meter.value}", -amount, detail
    )


def apply_discount(standings: Sequence[Standing], discount: Discount, salt: str) -> Adjustment | None:
    """A part or a sum off what is left; never more than that."""
    left = {place: standing.left_pico for place, standing in _covered(standings, discount).items()}
    left = {place: amount for place, amount in left.items() if amount > 0}
    whole = sum(left.values())
    if not whole:
        return None
    if discount.bps is not None:
        exact = {place: Fraction(amount * discount.bps, 10_000) for place, amount in left.items()}
        label = discount.label or f"discount of {Decimal(discount.bps).scaleb(-2).normalize():f}%"
    else:
        share = min(discount.amount_pico or 0, whole)
        exact = {place: Fraction(part) for place, part in largest_remainder(share, left, salt).items()}
        label = discount.label or "discount"
    amount = _take(standings, exact, f"{salt}/{discount.id}")
    detail = {"of_pico": str(whole), **({"bps": str(discount.bps)} if discount.bps is not None else {})}
    return Adjustment("discount", discount.id, label, -amount, detail)


def _priced(standings: Sequence[Standing], meter: Meter) -> set[str]:
    """Tariffs by which something of the period costs something."""
    positions = (position for standing in standings for position in standing.positions if position.meter is meter)
    return {position.tariff for position in positions if position.tiered_pico}


def _costs(standing: Standing, meter: Meter, priced: Collection[str]) -> bool:
    """Whether a parcel's units cost something. Those in the first, free tier of a tariff do where others by it cost something:
    all of them share its tiers, and where a period is cut must not decide which of them are free."""
    if standing.left[meter] > 0:
        return True
    taken_back = sum(standing.parcel.covered.values(), Fraction(0))
    if taken_back and taken_back >= standing.parcel.metered_pico:
        return False
    return any(position.meter is meter and position.tariff in priced for position in standing.positions)


def _covered(standings: Sequence[Standing], terms: Allowance | Discount) -> dict[str, Standing]:
    return {
        str(place): standing
        for place, standing in enumerate(standings)
        if terms.covers(standing.parcel.feature, standing.parcel.model)
    }


def _take(standings: Sequence[Standing], exact: Mapping[str, Fraction], salt: str, meter: Meter | None = None) -> int:
    """Take exact shares from what is left, in whole pico-units that add up to their sum (half up). Returns that sum."""
    whole = round_half(exact_sum(exact.values()))
    for place, pico in round_to_total(exact, whole, salt).items():
        left = standings[int(place)].left
        if meter is not None:
            left[meter] -= pico
        else:
            weights = {each.value: max(0, amount) for each, amount in left.items()}
            if not any(weights.values()):
                weights[Meter.INPUT.value] = 1
            for each, part in largest_remainder(pico, weights, salt).items():
                left[Meter(each)] -= part
    return whole
