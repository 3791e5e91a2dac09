"""Rates events again under another card: what they would have cost. Pure."""

from dataclasses import replace

from taximeter_billing.domain.parcels import components
from taximeter_billing.domain.quantities import quantities_of
from taximeter_billing.domain.usage import Prices, UnknownPriceError, UsageRow
from taximeter_schemas.rate_cards import RateCard


class Rerating:
    """Rates every event by one card, whatever rated it before."""

    def __init__(self, card: RateCard) -> None:
        self._card = card
        self._prices = Prices([card])

    def __call__(self, row: UsageRow) -> UsageRow:
        """The event as that card would have rated it. Raises UnknownPriceError when the card has no price for it."""
        moved = replace(row, rate_card=self._card.name)
        try:
            price = self._prices.price(moved)
        except UnknownPriceError:
            raise UnknownPriceError(
                f"{self._card.name} has no price for {row.model}, which {row.tenant} used (event {row.event_id})"
            ) from None
        parts = components("", price, quantities_of(moved, price))
        return replace(
            moved,
            list_pico=sum(part.list_pico for part in parts),
            metered_pico=sum(part.amount_pico for part in parts),
        )
