"""The prices of one snapshot, arranged so that rating an event looks nothing up twice. Pure.

Finding a card's version and a price are linear searches, and the same few tenants and tags come again and again.
"""

from bisect import bisect_right
from datetime import datetime
from typing import NamedTuple

from taximeter_schemas import wire
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.rating import Rated, Unrated, find_price, rate_data, region_of

AMOUNT_PICO_MAX = 2**63 - 1
"""What a row's Int64 holds: some 9.2 million of the currency's major unit for one event."""

PRICES_MAX = 100_000
"""Prices remembered; tags are the senders' own, so without a limit they could fill the memory."""

Tags = tuple[str, str | None, str, str, str, str | None]
"""Model, adapter, feature, operation, service tier, region: what of an event the choice of its price may depend on."""

_Scope = tuple[str, str, str | None, str, str, str, str | None]
_Versions = tuple[list[datetime], list[RateCard]]


class _Tagged(NamedTuple):
    model: str
    adapter: str | None
    feature: str
    operation: str
    service_tier: str
    region: str | None

    @property
    def attributes(self) -> dict[str, str]:
        return {} if self.region is None else {"region": self.region}


class Pricing:
    """Rates events under what one snapshot declares."""

    def __init__(self, snapshot: ControlSnapshot) -> None:
        self.snapshot = snapshot
        self._versions: dict[str, _Versions] = {}
        self._prices: dict[_Scope, Price | None] = {}

    def rate(self, event: wire.UsageEvent) -> Rated | Unrated:
        """What the event costs, by the card that held at its time."""
        data = event.data
        tags = (data.model, data.adapter, data.feature, data.operation, data.service_tier, region_of(data))
        card, price = self.price_of(data.tenant, event.time, tags)
        if card is None:
            return Unrated("no_rate_card")
        if price is None:
            return Unrated("unknown_model")
        rated = rate_data(price, card, data)
        if isinstance(rated, Rated) and max(rated.list_pico, rated.metered_pico) > AMOUNT_PICO_MAX:
            return Unrated("amount_out_of_range")
        return rated

    def price_of(self, tenant_id: str, moment: datetime, tags: Tags) -> tuple[RateCard | None, Price | None]:
        """The card that the tenant has at that moment, and its price for the tags, where there are such."""
        card = self._card(tenant_id, moment)
        return card, None if card is None else self._price(card, tags)

    def _card(self, tenant_id: str, moment: datetime) -> RateCard | None:
        versions = self._versions.get(tenant_id)
        if versions is None:
            tenant = self.snapshot.tenants.get(tenant_id)
            cards = self.snapshot.rate_cards.get(tenant.rate_card, ()) if tenant else ()
            ordered = sorted(cards, key=lambda card: (card.effective_from, card.recorded_at, card.version))
            versions = self._versions[tenant_id] = ([card.effective_from for card in ordered], ordered)
        starts, ordered = versions
        held = bisect_right(starts, moment)
        return ordered[held - 1] if held else None

    def _price(self, card: RateCard, tags: Tags) -> Price | None:
        scope = (card.name, *tags)
        try:
            return self._prices[scope]
        except KeyError:
            if len(self._prices) >= PRICES_MAX:
                self._prices.clear()
            price = self._prices[scope] = find_price(card, _Tagged(*tags))
            return price
