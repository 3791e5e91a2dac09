"""The prices of one snapshot, arranged so that rating an event looks nothing up twice. Pure.

Finding a card's version and a price are linear searches, and the same few tenants and tags come again and again.
"""

from bisect import bisect_right
from datetime import datetime

from taximeter_schemas import wire
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.rating import Rated, Unrated, find_price, rate_data, region_of

AMOUNT_PICO_MAX = 2**63 - 1
"""What a row's Int64 holds: some 9.2 million of the currency's major unit for one event."""

PRICES_MAX = 100_000
"""Prices remembered; tags are the senders' own, so without a limit they could fill the memory."""

_Scope = tuple[str, str, str | None, str, str, str, str | None]
_Versions = tuple[list[datetime], list[RateCard]]


class Pricing:
    """Rates events under what one snapshot declares."""

    def __init__(self, snapshot: ControlSnapshot) -> None:
        self.snapshot = snapshot
        self._versions: dict[str, _Versions] = {}
        self._prices: dict[_Scope, Price | None] = {}

    def rate(self, event: wire.UsageEvent) -> Rated | Unrated:
        """What the event costs, by the card that held at its time."""
        data = event.data
        card = self._card(data.tenant, event.time)
        if card is None:
            return Unrated("no_rate_card")
        price = self._price(card, data)
        if price is None:
            return Unrated("unknown_model")
        rated = rate_data(price, card, data)
        if isinstance(rated, Rated) and max(rated.list_pico, rated.metered_pico) > AMOUNT_PICO_MAX:
            return Unrated("amount_out_of_range")
        return rated

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

    def _price(self, card: RateCard, data: wire.UsageData) -> Price | None:
        scope = (card.name, data.model, data.adapter, data.feature, data.operation, data.service_tier, region_of(data))
        try:
            return self._prices[scope]
        except KeyError:
            if len(self._prices) >= PRICES_MAX:
                self._prices.clear()
            price = self._prices[scope] = find_price(card, data)
            return price
