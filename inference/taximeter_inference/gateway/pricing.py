"""What a request can cost at most, and what it did cost, at the tenant's rate card. Pure."""

from dataclasses import dataclass

from taximeter_inference.gateway.bodies import ClientBody
from taximeter_inference.gateway.tags import Tags
from taximeter_schemas.events import Operation, ServiceTier, UsageData
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.rating import Rated, find_price, rate, worst_case_pico


@dataclass(frozen=True, slots=True)
class Rateable:
    """What a price is found by."""

    model: str
    feature: str
    operation: Operation
    service_tier: ServiceTier
    adapter: str | None = None


def price_of(card: RateCard | None, body: ClientBody, tags: Tags, operation: Operation) -> Price | None:
    """The price that applies to a request; None when the card has none (or there is no card)."""
    if card is None:
        return None
    return find_price(card, Rateable(body.model, tags.feature, operation, tags.service_tier))


def can_bound(price: Price, operation: Operation) -> bool:
    """Whether the price covers everything that the operation may use, so that its worst case is known."""
    return operation is Operation.EMBEDDING or price.output is not None


def dearest_pico(price: Price, prompt_tokens: int, output_tokens_max: int, answers: int) -> int:
    """The most that a request can cost, in pico-units: every answer as long as its bound."""
    return worst_case_pico(price, prompt_tokens, output_tokens_max * answers)


def cost_pico(card: RateCard | None, data: UsageData) -> int:
    """What an event costs in pico-units; 0 where no price applies, since budgets count rated events only."""
    rated = rate(card, data)
    return rated.metered_pico if isinstance(rated, Rated) else 0
