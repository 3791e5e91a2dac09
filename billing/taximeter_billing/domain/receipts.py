"""Usage lines and their receipts: a line is the sum of its spans, and the receipt shows quantity times price. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taximeter_billing.domain.parcels import OUTPUT, READS, WRITES, Component
from taximeter_billing.domain.tariffing import Standing, TierPosition

_COUNTED_AS = {
    "uncached_input": "uncached_input",
    **dict.fromkeys(READS, "cache_read"),
    **dict.fromkeys(WRITES, "cache_write"),
    **dict.fromkeys(OUTPUT, "output"),
}


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What a tenant used under one feature, model and card version in a period, in units and exact pico-units."""

    feature: str
    model: str
    rate_card: str
    events: int
    tokens: dict[str, int]
    list_pico: int
    tier_pico: int
    savings_pico: int
    components: list[dict[str, Any]]
    tiers: list[dict[str, Any]]

    @property
    def net_pico(self) -> int:
        """What the line costs."""
        return self.list_pico + self.tier_pico - self.savings_pico


def usage_lines(standings: Sequence[Standing]) -> list[UsageLine]:
    """One line for each feature, model and card version, in that order."""
    places: dict[tuple[str, str, str], list[Standing]] = {}
    for standing in standings:
        places.setdefault(standing.parcel.place, []).append(standing)
    return [_line(place, members) for place, members in sorted(places.items())]


def _line(place: tuple[str, str, str], members: list[Standing]) -> UsageLine:
    parcels = [standing.parcel for standing in members]

    used: dict[str, int] = dict.fromkeys(("uncached_input", "cache_read", "cache_write", "output"), 0)
    for parcel in parcels:
        for part in parcel.components:
            if (count := _COUNTED_AS.get(part.kind)) is not None:
                used[count] += part.quantity
    return UsageLine(
        *place,
        events=sum(parcel.events for parcel in parcels),
        tokens=used,
        list_pico=sum(parcel.list_pico for parcel in parcels),
        tier_pico=sum(standing.tier_pico for standing in members),
        savings_pico=sum(standing.savings_pico for standing in members),
        components=_components([part for parcel in parcels for part in parcel.components]),
        tiers=[_tier(position) for standing in members for position in standing.positions],
    )


def _components(parts: Sequence[Component]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, str, int], tuple[int, int]] = {}
    for part in parts:
        key = (part.scope, part.kind, part.price_pico)
        quantity, listed = sums.get(key, (0, 0))
        sums[key] = (quantity + part.quantity, listed + part.list_pico)
    return [
        {
            "price": scope,
            "class": kind,
            "quantity": quantity,
            "price_pico": str(price),
            "amount_pico": str(quantity * price),
            "list_pico": str(listed),
        }
        for (scope, kind, price), (quantity, listed) in sums.items()
    ]


def _tier(position: TierPosition) -> dict[str, Any]:
    return {
        "tariff": position.tariff,
        "mode": position.mode,
        "meter": position.meter.value,
        "pooled_from": position.start,
        "pooled_to": position.end,
        "quantity": position.quantity,
        "list_pico": str(position.list_pico),
        "tiered_pico": str(position.tiered_pico),
    }
