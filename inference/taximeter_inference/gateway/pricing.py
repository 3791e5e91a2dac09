"""What a request can cost at most, and what it did cost, at the tenant's rate card. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from taximeter_inference.gateway.errors import InvalidTagError
from taximeter_inference.gateway.tags import Tags
from taximeter_schemas.events import Operation, ServiceTier
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.rating import Rated, beside_tokens, beside_tokens_pico, find_price, rate_data, worst_case_pico
from taximeter_schemas.wire import UsageData


@dataclass(frozen=True, slots=True)
class Rateable:
    """What a price is found by."""

    model: str
    feature: str
    operation: Operation
    service_tier: ServiceTier
    adapter: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


def price_of(card: RateCard | None, model: str, tags: Tags, operation: Operation) -> Price | None:
    """The price that applies to a request; None when the card has none (or there is no card)."""
    if card is None:
        return None
    return find_price(card, Rateable(model, tags.feature, operation, tags.service_tier, attributes=tags.attributes))


def can_bound(price: Price, operation: Operation) -> bool:
    """Whether the price covers everything that the operation may use, so that its worst case is known."""
    return operation is Operation.EMBEDDING or price.output is not None


def dearest_pico(price: Price, prompt_tokens: int, output_tokens_max: int, answers: int) -> int:
    """The most that a request can cost, in pico-units: every answer as long as its bound."""
    return worst_case_pico(price, prompt_tokens, output_tokens_max * answers)


def beside_pico(price: Price, attributes: Mapping[str, str]) -> int:
    """What a request costs beside its tokens, as far as its tags say (search units, adapter-hours). Raises InvalidTagError."""
    if not price.extended:
        return 0
    try:
        return beside_tokens_pico(price, beside_tokens(price, attributes, 0.0))
    except ValueError as error:
        raise InvalidTagError(f"an attribute that is priced must be a whole number: {error}") from None


class Quote:
    """A request's worst case, as long as its bound. `stated` is the client's own bound on each answer, if it has one.

    Otherwise `learnt` bounds it, and where the budget does not pay for that, as much as it does pay for, if that is `useful`.
    After `amount_pico`, `bound` is what the amount pays for; a reservation of it is agreed on, and the least of them holds.
    """

    def __init__(
        self,
        price: Price,
        prompt_tokens: int,
        answers: int,
        stated: int | None,
        learnt: Callable[[], int],
        useful: Callable[[], int],
        beside: int = 0,
    ) -> None:
        """`beside` is what the request costs beside its tokens, in pico-units."""
        self._beside_pico = beside
        self._price = price
        self._prompt_tokens = prompt_tokens
        self._answers = answers
        self._stated = stated
        self._learnt = learnt
        self._useful = useful
        self.bound = learnt() if stated is None else stated
        self.agreed: int | None = None

    def agree(self) -> None:
        """An amount was reserved: the answer keeps within its bound."""
        self.agreed = self.bound if self.agreed is None else min(self.agreed, self.bound)

    def amount_pico(self, left_pico: int | None = None) -> int:
        """What to reserve, in pico-units, when `left_pico` is all there is."""
        if self._stated is None:
            self.bound = self._learnt()
        amount = self._dearest_pico(self.bound)
        if self._stated is not None or left_pico is None or amount <= left_pico:
            return amount
        prompt_pico = self._dearest_pico(0)
        per_token_pico = self._dearest_pico(1) - prompt_pico
        payable = (left_pico - prompt_pico) // per_token_pico if per_token_pico else self.bound
        # Context bands may make it dearer than that: then it does not fit.
        if payable < self._useful() or self._dearest_pico(min(self.bound, payable)) > left_pico:
            return amount
        self.bound = min(self.bound, payable)
        return self._dearest_pico(self.bound)

    def _dearest_pico(self, bound: int) -> int:
        return self._beside_pico + dearest_pico(self._price, self._prompt_tokens, bound, self._answers)


def cost_pico(card: RateCard | None, price: Price | None, data: UsageData) -> int:
    """What an event costs in pico-units; 0 where no price applies, since budgets count rated events only."""
    rated = rate_data(price, card, data) if card is not None and price is not None else None
    return rated.metered_pico if isinstance(rated, Rated) else 0
