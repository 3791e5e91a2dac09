"""May this request be dispatched? Its price, the budgets that cover it, its worst case, and the lease that pays for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from taximeter_inference.gateway import budget_view
from taximeter_inference.gateway.admission import Reservation, Scope
from taximeter_inference.gateway.authenticate import Caller
from taximeter_inference.gateway.bodies import ClientBody
from taximeter_inference.gateway.budget_view import Standing
from taximeter_inference.gateway.counting import PromptCounter
from taximeter_inference.gateway.errors import UnpricedModelError
from taximeter_inference.gateway.leases import LeaseDesk
from taximeter_inference.gateway.pricing import can_bound, dearest_pico, price_of
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_inference.gateway.tags import Tags
from taximeter_schemas.budgets import Budget, BudgetPosition
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.events import Operation
from taximeter_schemas.rate_cards import RateCard

Positions = Mapping[str, Mapping[str, BudgetPosition]]
"""Tenant to budget id to position, as the keeper published them last."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may be dispatched. `output_tokens_max` bounds its answer where the client did not."""

    card: RateCard | None
    reservation: Reservation | None = None
    output_tokens_max: int | None = None
    prompt_tokens: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class Admission:
    """Decides on requests, with what is declared and what budgets have left."""

    settings: GatewaySettings
    snapshot: Callable[[], ControlSnapshot]
    positions: Positions
    counter: PromptCounter
    desk: LeaseDesk
    _told: dict[str, tuple[Standing, tuple[tuple[bytes, bytes], ...]]] = field(default_factory=dict)

    async def admit(self, caller: Caller, tags: Tags, body: ClientBody, operation: Operation) -> Admitted:
        """Admit a request. Raises UnpricedModelError, the errors of budgets, and those of counting its prompt."""
        now = datetime.now(UTC)
        tenant, snapshot = caller.tenant, self.snapshot()
        card = snapshot.card_for(tenant.id, now)
        price = price_of(card, body, tags, operation)
        currency = card.currency if card is not None else tenant.currency
        budgets = budget_view.covering(snapshot.budgets.get(tenant.id, ()), tags.feature, body.model, currency)
        hard = sorted((budget for budget in budgets if budget.hard), key=lambda budget: budget.id)
        if price is None and (hard or self.settings.gateway_unpriced == "refuse"):
            raise UnpricedModelError(f'the model "{body.model}" has no price on this tenant\'s rate card')
        if not budgets:
            return Admitted(card)
        if price is None or not hard:
            return Admitted(card, headers=self._headers(self._standings(budgets, tenant.id, tenant.time_zone)))
        if not can_bound(price, operation):
            raise UnpricedModelError(f'the answers of "{body.model}" have no price on this tenant\'s rate card')
        bound = (
            self.settings.gateway_output_tokens_default if body.output_tokens_max is None else body.output_tokens_max
        )
        prompt_tokens = await self.counter.count(body, operation)
        amount_pico = dearest_pico(price, prompt_tokens, bound, body.answers)
        scope = Scope(tenant.id, tuple(budget.id for budget in hard))
        reservation = await self.desk.admit(
            scope, amount_pico, lambda: self._standings(hard, tenant.id, tenant.time_zone)
        )
        return Admitted(
            card,
            reservation,
            bound if body.output_tokens_max is None else None,
            prompt_tokens,
            self._headers(self._standings(budgets, tenant.id, tenant.time_zone)),
        )

    def _standings(self, budgets: Sequence[Budget], tenant: str, time_zone: str) -> list[Standing]:
        now, positions = datetime.now(UTC), self.positions.get(tenant, {})
        return [budget_view.standing(budget, positions.get(budget.id), time_zone, now) for budget in budgets]

    def _headers(self, standings: Sequence[Standing]) -> tuple[tuple[bytes, bytes], ...]:
        held = budget_view.tightest(standings)
        if held is None:
            return ()
        standing, told = self._told.get(held.budget.id, (None, ()))
        if standing != held:
            told = budget_view.headers(held)
            self._told[held.budget.id] = (held, told)
        return told
