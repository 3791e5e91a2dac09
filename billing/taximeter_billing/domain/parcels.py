"""Parcels: usage under one feature, model, rate card and span of a period, broken down by price and token class. Pure.

Prices are linear, so a parcel's cost is a sum of quantity times price for each class, exactly; this is checked against the
costs that the events themselves carry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from taximeter_billing.domain.contracts import Meter
from taximeter_schemas.rate_cards import Price

READS = ("cache_read_gpu", "cache_read_cpu", "cache_read_disk", "cache_read_provider")
WRITES = ("cache_write_5m", "cache_write_1h")
INPUT = ("uncached_input", *READS, *WRITES)
OUTPUT = ("output", "reasoning")
BESIDE = ("request", "search_unit", "gpu_microsecond", "adapter_hour")
CLASSES = (*INPUT, *OUTPUT, *BESIDE)
_METER_OF = {
    **dict.fromkeys(INPUT, Meter.INPUT),
    **dict.fromkeys(OUTPUT, Meter.OUTPUT),
    **{name: Meter(name) for name in BESIDE},
}


@dataclass(frozen=True, slots=True)
class Component:
    """One class at one price: what it was, how much, at what price. `list_pico` is what it costs without a cache."""

    scope: str
    kind: str
    quantity: int
    price_pico: int
    list_pico: int

    @property
    def amount_pico(self) -> int:
        """Quantity times price."""
        return self.quantity * self.price_pico


@dataclass(frozen=True, slots=True)
class Parcel:
    """Usage of a tenant in a span, with its savings by policy. `covered`: parts of its metered cost that something else pays
    for, by what it is (a reservation "r:ID", or "void"), exact."""

    feature: str
    model: str
    rate_card: str
    segment: int
    events: int
    components: tuple[Component, ...]
    list_pico: int
    metered_pico: int
    savings_pico: int
    covered: Mapping[str, Fraction] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str, str]:
        """The invoice line that it is part of."""
        return self.feature, self.model, self.rate_card

    def quantity(self, meter: Meter) -> int:
        """Units of a meter."""
        return sum(part.quantity for part in self.components if _METER_OF[part.kind] is meter)

    def list_of(self, meter: Meter) -> int:
        """What a meter's units cost before savings, at the rate card."""
        return sum(part.list_pico for part in self.components if _METER_OF[part.kind] is meter)

    @property
    def list_by_meter(self) -> dict[Meter, int]:
        """`list_of` for every meter, in one pass."""
        found = dict.fromkeys(Meter, 0)
        for part in self.components:
            found[_METER_OF[part.kind]] += part.list_pico
        return found


def unit_price(price: Price, kind: str) -> int:
    """The price of a class: cache classes default to uncached input, reasoning to output, output to nothing (it is unrated)."""
    stated = getattr(price, kind)
    if stated is not None:
        return int(stated)
    if kind in INPUT:
        return price.uncached_input
    return price.output or 0


def components(scope: str, price: Price, quantities: Mapping[str, int]) -> tuple[Component, ...]:
    """What was used at one price, class by class, without the empty ones."""
    found = []
    for kind in CLASSES:
        if quantity := quantities.get(kind, 0):
            each = unit_price(price, kind)
            full = price.uncached_input if kind in INPUT else each
            found.append(Component(scope, kind, quantity, each, quantity * full))
    return tuple(found)
