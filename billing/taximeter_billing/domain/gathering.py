"""A period's usage by invoice line, span and price, from events one by one or from sums of many. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from taximeter_billing.domain.split import ExactSums
from taximeter_billing.domain.takeback import Takeback
from taximeter_billing.domain.usage import UsageRow
from taximeter_schemas.rate_cards import Price

Place = tuple[str, str, str, str]
"""Tenant, feature, model, rate card."""


@dataclass(slots=True)
class Used:
    """What a tenant used in one span under one feature, model and card, with what the events themselves cost."""

    events: int = 0
    list_pico: int = 0
    metered_pico: int = 0
    by_price: dict[int, tuple[Price, dict[str, int]]] = field(default_factory=dict)
    """By the identity of the price, which is one object through a settlement; its fields would take too long to hash."""

    def add(
        self, price: Price, quantities: Mapping[str, int], list_pico: int, metered_pico: int, events: int = 1
    ) -> None:
        """Add events that were rated at one price, and the units of each class that they used."""
        self.events += events
        self.list_pico += list_pico
        self.metered_pico += metered_pico
        found = self.by_price.get(id(price))
        if found is None:
            found = self.by_price[id(price)] = (price, defaultdict(int))
        used = found[1]
        for kind, quantity in quantities.items():
            used[kind] += quantity


@dataclass(slots=True)
class Gathered:
    """Usage by line and span, and what of its metered cost something else pays for, by what it is."""

    cells: dict[Place, dict[int, Used]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Used)))
    covered: ExactSums[tuple[Place, int, str]] = field(default_factory=ExactSums)

    def take_back(self, place: Place, segment: int, takeback: Takeback, row: UsageRow) -> None:
        """Note what of an event's cost its own line does not pay. A tenant's rows come in order of time."""
        for what, numerator, denominator in takeback.of(row):
            self.covered.add((place, segment, what), numerator, denominator)
