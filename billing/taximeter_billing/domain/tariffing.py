"""Applies tariffs to a period's parcels: what their units cost by quantity, and what that makes of the cache savings. Pure.

A saving is worth what its tokens would have cost: where tiers change the price of input, list and savings change by the same
factor, so a cached token keeps the part of the full price that the rate card gives it, and nothing can cost less than nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from taximeter_billing.domain.contracts import Meter, Tariff
from taximeter_billing.domain.parcels import Parcel
from taximeter_billing.domain.spans import Span
from taximeter_billing.domain.split import exact_sum, largest_remainder, round_half, round_to_total


@dataclass(frozen=True, slots=True)
class TierPosition:
    """Where a parcel's units lie in a tariff: the pooled units of its span run from `start` to `end` of the period's."""

    tariff: str
    meter: Meter
    mode: str
    start: int
    end: int
    quantity: int
    list_pico: int
    tiered_pico: int


@dataclass(slots=True)
class Standing:
    """A parcel on its way through the order of computing. `left` is what it still costs, by meter."""

    parcel: Parcel
    savings_pico: int
    tier_pico: int = 0
    left: dict[Meter, int] = field(default_factory=dict)
    positions: list[TierPosition] = field(default_factory=list)

    @property
    def left_pico(self) -> int:
        """What is left to pay."""
        return sum(self.left.values())


def apply_tariffs(parcels: Sequence[Parcel], spans: Sequence[Span], salt: str) -> list[Standing]:
    """Price every meter that a tariff covers, by the first that does; the others stay as the rate card priced them.

    Parcels are taken in an order of their own, so that theirs does not decide who gets an odd unit.
    """
    ordered = sorted(parcels, key=lambda parcel: (parcel.place, parcel.segment))
    standings = [Standing(parcel, parcel.savings_pico) for parcel in ordered]
    covered: dict[tuple[str, Meter], list[Standing]] = defaultdict(list)
    for standing in standings:
        parcel = standing.parcel
        standing.left = parcel.list_by_meter
        span = spans[parcel.segment]
        for meter in Meter if span.agreement is not None and span.agreement.terms.tariffs else ():
            tariff = _tariff(parcel, meter, span)
            if tariff is not None and parcel.quantity(meter):
                covered[tariff.id, meter].append(standing)
    for (tariff_id, meter), members in sorted(covered.items()):
        _price(tariff_id, meter, members, spans, f"{salt}/{tariff_id}/{meter}")
    _scale_savings(standings, salt)
    for standing in standings:
        standing.left[Meter.INPUT] -= standing.savings_pico
    return standings


def _tariff(parcel: Parcel, meter: Meter, span: Span) -> Tariff | None:
    """Of the first tariff that covers it, the version that holds when the span begins."""
    if span.agreement is None:
        return None
    in_force = [
        tariff
        for tariff in span.agreement.terms.tariffs
        if tariff.meter is meter
        and tariff.covers(parcel.feature, parcel.model)
        and (tariff.effective_from is None or tariff.effective_from <= span.start)
    ]
    if not in_force:
        return None
    versions = [tariff for tariff in in_force if tariff.id == in_force[0].id]
    return max(versions, key=lambda tariff: (tariff.effective_from is not None, tariff.effective_from or span.start))


@dataclass(frozen=True, slots=True)
class _Reach:
    """What a tariff covers in one span: its members, their units, and how many units of the period came before."""

    mode: str
    members: list[Standing]
    units: dict[str, int]
    already: int

    @property
    def quantity(self) -> int:
        """Units in this span."""
        return sum(self.units.values())


def _price(tariff_id: str, meter: Meter, members: list[Standing], spans: Sequence[Span], salt: str) -> None:
    whole = sum(standing.parcel.quantity(meter) for standing in members)
    reaches: dict[str, _Reach] = {}
    exact: dict[str, Fraction] = {}
    already = 0
    for segment, span in enumerate(spans):
        here = [standing for standing in members if standing.parcel.segment == segment]
        if not here:
            continue
        tariff = _tariff(here[0].parcel, meter, span)
        assert tariff is not None and tariff.id == tariff_id
        units = {str(place): standing.parcel.quantity(meter) for place, standing in enumerate(here)}
        reach = reaches[str(segment)] = _Reach(tariff.mode, here, units, already)
        exact[str(segment)] = tariff.cost(reach.quantity, already, whole)
        already += reach.quantity
    for segment_text, cost in round_to_total(exact, round_half(exact_sum(exact.values())), salt).items():
        _share(tariff_id, meter, reaches[segment_text], cost, f"{salt}/{segment_text}")


def _share(tariff_id: str, meter: Meter, reach: _Reach, cost: int, salt: str) -> None:
    """A span's cost to its parcels, by units."""
    end = reach.already + reach.quantity
    shares = largest_remainder(cost, reach.units, salt)
    for place, standing in enumerate(reach.members):
        listed, tiered = standing.left[meter], shares[str(place)]
        standing.tier_pico += tiered - listed
        standing.left[meter] = tiered
        standing.positions.append(
            TierPosition(tariff_id, meter, reach.mode, reach.already, end, reach.units[str(place)], listed, tiered)
        )


def _scale_savings(standings: list[Standing], salt: str) -> None:
    """Savings by the factor that tiers changed the list price of input by; rounded once, over the whole tenant."""
    exact: dict[str, Fraction] = {}
    for place, standing in enumerate(standings):
        listed = standing.parcel.list_of(Meter.INPUT)
        if standing.left[Meter.INPUT] != listed and listed:
            exact[str(place)] = Fraction(standing.savings_pico * standing.left[Meter.INPUT], listed)
    whole = round_half(exact_sum(exact.values()))
    for place_text, pico in round_to_total(exact, whole, f"{salt}/savings").items():
        standings[int(place_text)].savings_pico = pico
