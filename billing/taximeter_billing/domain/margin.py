"""Cost beside price: what an event cost us, and the margin that leaves, by tenant, feature and model. Pure.

A cost card is a rate card of our own costs: a provider's token prices, or a price for a GPU-second. Where several have a price
for an event (a provider's and the machine's), their costs add up. An event without any is *uncosted*: counted, never free.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from taximeter_billing.domain.charges import Charges
from taximeter_billing.domain.parcels import unit_price
from taximeter_billing.domain.quantities import quantities_of
from taximeter_billing.domain.spans import microseconds
from taximeter_billing.domain.usage import UsageRow
from taximeter_schemas.rate_cards import Price, RateCard, card_at
from taximeter_schemas.rating import find_price

Key = tuple[str, str, str]
"""Tenant, feature, model. Revenue that belongs to no feature (minimums, reservations) has neither: ("acme", "", "")."""

By = Literal["tenant", "feature", "model"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Margin:
    """What was earned and what it cost, in pico-units of one currency; `uncosted` events have no cost in it."""

    currency: str
    revenue_pico: int = 0
    cost_pico: int = 0
    events: int = 0
    uncosted: int = 0

    @property
    def margin_pico(self) -> int:
        """Revenue less cost."""
        return self.revenue_pico - self.cost_pico

    @property
    def negative(self) -> bool:
        """Whether it cost more than it earned."""
        return self.margin_pico < 0


class Usage(Protocol):
    """Events that have in common all that chooses a price, and the version of each cost card that holds at their time."""

    @property
    def sample(self) -> UsageRow:
        """What they have in common, and the time and the length of the input of one of them."""
        ...

    @property
    def events(self) -> int:
        """How many."""
        ...

    def quantities(self, price: Price) -> Mapping[str, int]:
        """What they used by class, as the price asks for it."""
        ...


@dataclass(frozen=True, slots=True)
class OneEvent:
    """Usage that is one event."""

    sample: UsageRow
    events: int = 1

    def quantities(self, price: Price) -> Mapping[str, int]:
        """What it used."""
        return quantities_of(self.sample, price)


class Costs:
    """Prices usage by cost cards, each by the version that holds at its time. Prices are linear, so sums cost what events do."""

    def __init__(self, cards: Iterable[RateCard]) -> None:
        self._cards: dict[str, list[RateCard]] = defaultdict(list)
        for card in cards:
            self._cards[card.id].append(card)

    @property
    def cards(self) -> list[RateCard]:
        """All of them."""
        return [card for cards in self._cards.values() for card in cards]

    @property
    def cuts(self) -> list[int]:
        """The moments, in microseconds since the epoch, at which a version begins to hold."""
        return sorted({microseconds(card.effective_from) for card in self.cards})

    def cost_pico(self, used: Usage, currency: str) -> int | None:
        """What it cost in that currency, or None when no card says."""
        row = used.sample
        found: int | None = None
        moment = _EPOCH + timedelta(microseconds=row.time_us)
        for card_id, cards in self._cards.items():
            card = card_at(cards, card_id, moment)
            price = find_price(card, row) if card is not None and card.currency == currency else None
            if price is not None:
                reached = price.for_length(row.input_tokens)
                quantities = used.quantities(reached)
                found = (found or 0) + sum(unit_price(reached, kind) * count for kind, count in quantities.items())
        return found


def margins_of(
    charges: Mapping[str, Charges], usage: Iterable[Usage], costs: Costs, currency: str
) -> dict[Key, Margin]:
    """Margins of the tenants of one currency. Revenue is what is owed before credits, which are paid for elsewhere."""
    found: dict[Key, Margin] = {}
    for tenant, owed in charges.items():
        by_line = 0
        for standing in owed.usage:
            key = (tenant, standing.parcel.feature, standing.parcel.model)
            so_far = found.get(key, Margin(currency))
            found[key] = replace(so_far, revenue_pico=so_far.revenue_pico + standing.left_pico)
            by_line += standing.left_pico
        if rest := owed.owed_pico - by_line:
            found[tenant, "", ""] = Margin(currency, revenue_pico=rest)
    for used in usage:
        key = (used.sample.tenant, used.sample.feature, used.sample.model)
        so_far = found.get(key, Margin(currency))
        cost = costs.cost_pico(used, currency)
        found[key] = replace(
            so_far,
            cost_pico=so_far.cost_pico + (cost or 0),
            events=so_far.events + used.events,
            uncosted=so_far.uncosted + (used.events if cost is None else 0),
        )
    return found


def summed(margins: Mapping[Key, Margin], by: By) -> dict[tuple[str, str], Margin]:
    """Margins by tenant, feature or model, each currency apart: (name, currency) to sums."""
    place = ("tenant", "feature", "model").index(by)
    sums: dict[tuple[str, str], Margin] = {}
    for key, margin in margins.items():
        name = (key[place], margin.currency)
        so_far = sums.get(name, Margin(margin.currency))
        sums[name] = Margin(
            margin.currency,
            so_far.revenue_pico + margin.revenue_pico,
            so_far.cost_pico + margin.cost_pico,
            so_far.events + margin.events,
            so_far.uncosted + margin.uncosted,
        )
    return dict(sorted(sums.items()))
