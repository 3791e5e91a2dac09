"""May this request be dispatched? Its price, the budgets that cover it, its worst case, and the leases that pay for it.

All budgets of a request are reserved, or none is: the caps on its root request first, then those of its tenant, feature,
model and key, which one lease holds together. What a budget refuses may go to a cheaper model, or wait, as was declared.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from taximeter_inference.gateway import budget_view
from taximeter_inference.gateway.admission import Reservation, Scope
from taximeter_inference.gateway.authenticate import Caller
from taximeter_inference.gateway.bodies import ClientBody, with_model
from taximeter_inference.gateway.budget_view import Standing
from taximeter_inference.gateway.counting import PromptCounter
from taximeter_inference.gateway.errors import BudgetError, BudgetExhaustedError, GatewayError, UnpricedModelError
from taximeter_inference.gateway.leases import LeaseDesk
from taximeter_inference.gateway.output_bound import OutputBounds
from taximeter_inference.gateway.pricing import Quote, beside_pico, can_bound, price_of
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_inference.gateway.tags import Tags
from taximeter_inference.gateway.waiting import DisplacedError, QueueFullError, WaitingRoom
from taximeter_schemas.budgets import Budget, BudgetPosition
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.events import Operation
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.tenants import Tenant

Positions = Mapping[str, Mapping[str, BudgetPosition]]
"""Tenant to budget id to position, as the keeper published them last."""
FALLBACKS_MAX = 3
"""Models that are tried after the one that was asked for."""
PLANS_REMEMBERED_MAX = 20_000
_NEVER = datetime.max.replace(tzinfo=UTC)
TRY_AGAIN_SECONDS = 1.0
"""Who waits looks again this often without news: periods roll over silently."""
TRY_SECONDS = 0.5
"""How long such a try waits for its grant."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may be dispatched, as `body`, which may name a cheaper model than `asked_model`.

    `output_tokens_max` bounds its answer where the client did not. `prompt_tokens` is what was counted.
    """

    body: ClientBody
    asked_model: str
    card: RateCard | None
    price: Price | None
    reservations: tuple[Reservation, ...] = ()
    lease_id: str | None = None
    output_tokens_max: int | None = None
    prompt_tokens: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    counts_by_key: bool = False

    @property
    def fell_back(self) -> bool:
        """Whether a cheaper model stands in."""
        return self.body.model != self.asked_model


@dataclass(frozen=True, slots=True)
class _Plan:
    """What holds for all requests alike in tenant, key, feature, model, operation and tier: price and budgets.

    The budgets are those of a period, hard ones apart, and the caps on the root request. `scope` is that of the hard ones.
    """

    card: RateCard | None
    price: Price | None
    budgets: tuple[Budget, ...]
    hard: tuple[Budget, ...]
    caps: tuple[Budget, ...]
    scope: Scope
    by_key: bool
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class _Told:
    """Warn headers, and from what they were made."""

    positions: Mapping[str, BudgetPosition] | None
    budgets: tuple[Budget, ...]
    valid_until: datetime
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class Admission:
    """Decides on requests, with what is declared and what budgets have left."""

    settings: GatewaySettings
    snapshot: Callable[[], ControlSnapshot]
    positions: Positions
    counter: PromptCounter
    desk: LeaseDesk
    room: WaitingRoom
    bounds: OutputBounds
    _plans: dict[tuple[str, ...], _Plan] = field(default_factory=dict)
    _plans_of: ControlSnapshot | None = None
    _told: dict[Scope, _Told] = field(default_factory=dict)

    async def admit(self, caller: Caller, tags: Tags, body: ClientBody, operation: Operation) -> Admitted:
        """Admit a request. Raises UnpricedModelError, the errors of budgets, and those of counting its prompt."""
        try:
            return await self._admit_some_model(caller, tags, body, operation, None)
        except BudgetError as error:
            if not tags.wait_seconds:
                raise
            return await self._queue(caller, tags, body, operation, error)

    async def _queue(
        self, caller: Caller, tags: Tags, body: ClientBody, operation: Operation, refused: BudgetError
    ) -> Admitted:
        """Wait for room in the budget until the client's deadline; then the refusal stands."""
        deadline = time.monotonic() + min(tags.wait_seconds, self.settings.gateway_queue_seconds_max)
        line = (caller.tenant.id, caller.key.id, tags.feature, body.model)
        try:
            ticket = self.room.enter(caller.tenant.id, line)
        except QueueFullError:
            refused.outcome = {"queue": "full"}
            raise refused from None
        try:
            while (left := deadline - time.monotonic()) > 0:
                ticket.news.clear()
                if self.room.is_first(ticket):
                    try:
                        return await self._admit_some_model(caller, tags, body, operation, min(left, TRY_SECONDS))
                    except BudgetError as error:
                        refused = error
                await _news(ticket.news, min(deadline - time.monotonic(), TRY_AGAIN_SECONDS))
        except DisplacedError:
            refused.outcome = {"queue": "full"}
            raise refused from None
        finally:
            self.room.leave(ticket)
        refused.outcome = {"queue": "out_of_time"}
        raise refused

    async def _admit_some_model(
        self, caller: Caller, tags: Tags, body: ClientBody, operation: Operation, wait_seconds: float | None
    ) -> Admitted:
        """Admit with the model that was asked for, or with the one that the refusing budget names in its stead."""
        first: BudgetExhaustedError | None = None
        tried, offered = {body.model}, body
        while True:
            try:
                return await self._admit_one(caller, tags, offered, body.model, operation, wait_seconds)
            except BudgetExhaustedError as error:
                first = first or error
                cheaper = error.fallbacks.get(offered.model)
                if cheaper is None or cheaper in tried or len(tried) > FALLBACKS_MAX:
                    raise first from None
            except GatewayError:
                if first is not None:
                    # The stand-in is not priced or not served: what was asked for is what counts.
                    raise first from None
                raise
            tried.add(cheaper)
            offered = with_model(body, cheaper)

    async def _admit_one(
        self,
        caller: Caller,
        tags: Tags,
        body: ClientBody,
        asked_model: str,
        operation: Operation,
        wait_seconds: float | None,
    ) -> Admitted:
        tenant = caller.tenant
        plan = self._plan(caller, tags, body.model, operation)
        card, price = plan.card, plan.price
        held = bool(plan.hard or plan.caps)
        if price is None and (held or self.settings.gateway_unpriced == "refuse"):
            raise UnpricedModelError(f'the model "{body.model}" has no price on this tenant\'s rate card')
        if price is None or not held:
            headers = self._headers(plan, tenant) if plan.budgets else ()
            return Admitted(body, asked_model, card, price, headers=headers, counts_by_key=plan.by_key)
        if not can_bound(price, operation):
            raise UnpricedModelError(f'the answers of "{body.model}" have no price on this tenant\'s rate card')
        beside = beside_pico(price, tags.attributes)
        at_most = self.counter.worst(body.model, body.tokens_at_most)
        counted, quote = None, self._quote(tenant.id, body, price, at_most, beside)
        reservation = None if plan.caps else self.desk.admit_at_ease(plan.scope, quote)
        if reservation is not None:
            reservations: tuple[Reservation, ...] = (reservation,)
            quote.agree()
        else:
            counted = await self.counter.count(body, operation)
            quote = self._quote(tenant.id, body, price, self.counter.worst(body.model, counted), beside)
            reservations = await self._reserve(caller, tags, plan, quote, wait_seconds)
        return Admitted(
            body,
            asked_model,
            card,
            price,
            reservations,
            next((held.lease_id for held in reservations if held.scope.root_request_id is None), None),
            quote.agreed if body.output_tokens_max is None else None,
            counted,
            self._headers(plan, tenant),
            plan.by_key,
        )

    def _plan(self, caller: Caller, tags: Tags, model: str, operation: Operation) -> _Plan:
        """Price and budgets, remembered until anything is declared anew or a later price begins."""
        snapshot, now = self.snapshot(), datetime.now(UTC)
        if snapshot is not self._plans_of or len(self._plans) > PLANS_REMEMBERED_MAX:
            self._plans, self._plans_of = {}, snapshot
        tenant = caller.tenant
        region = tags.attributes.get("region", "")
        key = (tenant.id, caller.key.id, tags.feature, model, operation, tags.service_tier, region)
        plan = self._plans.get(key)
        if plan is None or now >= plan.valid_until:
            plan = self._plans[key] = _made_plan(snapshot, caller, tags, model, operation, now)
        return plan

    def _quote(self, tenant: str, body: ClientBody, price: Price, prompt_tokens: int, beside: int) -> Quote:
        return Quote(
            price,
            prompt_tokens,
            body.answers,
            body.output_tokens_max,
            lambda: self.bounds.bound(tenant, body.model),
            lambda: self.bounds.useful(tenant, body.model),
            beside,
        )

    async def _reserve(
        self, caller: Caller, tags: Tags, plan: _Plan, quote: Quote, wait_seconds: float | None
    ) -> tuple[Reservation, ...]:
        """Reserve under every budget, or raise and hold nothing."""
        tenant = caller.tenant
        held: list[Reservation] = []
        try:
            if plan.caps:
                reservation = await self._reserve_root(tenant.id, tags.root_request_id, plan.caps, quote, wait_seconds)
                held += [reservation] if reservation is not None else []
            if plan.hard:
                reservation = await self.desk.admit(
                    plan.scope, quote, lambda: self._standings(plan.hard, tenant.id, tenant.time_zone), wait_seconds
                )
                held += [reservation] if reservation is not None else []
                quote.agree()
        except BaseException:
            for reservation in held:
                self.desk.settle(reservation, 0)
            raise
        return tuple(held)

    async def _reserve_root(
        self, tenant: str, root: str | None, caps: Sequence[Budget], quote: Quote, wait_seconds: float | None
    ) -> Reservation | None:
        if root is None:
            # A turn of one request: nobody else can draw on its caps.
            least = min(caps, key=lambda cap: cap.limit_pico)
            amount_pico = quote.amount_pico(least.limit_pico)
            quote.agree()
            if amount_pico > least.limit_pico:
                raise budget_view.refusal(Standing(least, 0), amount_pico)
            return None
        scope = Scope(tenant, tuple(cap.id for cap in caps), root)

        def standings() -> list[Standing]:
            spent = self.desk.root_spent_pico(scope)
            return [Standing(cap, spent.get(cap.id, 0)) for cap in caps]

        reservation = await self.desk.admit(scope, quote, standings, wait_seconds)
        quote.agree()
        return reservation

    def _standings(self, budgets: Sequence[Budget], tenant: str, time_zone: str) -> list[Standing]:
        now, positions = datetime.now(UTC), self.positions.get(tenant, {})
        return [budget_view.standing(budget, positions.get(budget.id), time_zone, now) for budget in budgets]

    def _headers(self, plan: _Plan, tenant: Tenant) -> tuple[tuple[bytes, bytes], ...]:
        """The warning of the tightest budget; made anew when the keeper has published, or a period ends."""
        positions, now = self.positions.get(tenant.id), datetime.now(UTC)
        told = self._told.get(plan.scope)
        if (
            told is None
            or told.positions is not positions
            or told.budgets is not plan.budgets
            or now >= told.valid_until
        ):
            standings = self._standings(plan.budgets, tenant.id, tenant.time_zone)
            held = budget_view.tightest(standings)
            ends = [standing.resets_at for standing in standings if standing.resets_at is not None]
            told = _Told(positions, plan.budgets, min(ends, default=_NEVER), budget_view.headers(held) if held else ())
            if len(self._told) > PLANS_REMEMBERED_MAX:
                self._told.clear()
            self._told[plan.scope] = told
        return told.headers


def _made_plan(
    snapshot: ControlSnapshot, caller: Caller, tags: Tags, model: str, operation: Operation, now: datetime
) -> _Plan:
    tenant = caller.tenant
    card = snapshot.card_for(tenant.id, now)
    price = price_of(card, model, tags, operation)
    currency = card.currency if card is not None else tenant.currency
    declared = snapshot.budgets.get(tenant.id, ())
    covering = budget_view.covering(declared, tags.feature, model, caller.key.id, currency)
    by_id = sorted(covering, key=lambda budget: budget.id)
    hard = tuple(budget for budget in by_id if budget.hard and not budget.per_root_request)
    later = [
        version.effective_from
        for version in snapshot.rate_cards.get(tenant.rate_card, ())
        if version.effective_from > now
    ]
    return _Plan(
        card,
        price,
        tuple(budget for budget in covering if not budget.per_root_request),
        hard,
        tuple(budget for budget in by_id if budget.per_root_request),
        Scope(tenant.id, tuple(budget.id for budget in hard)),
        any(budget.api_key for budget in declared),
        min(later, default=_NEVER),
    )


async def _news(news: asyncio.Event, seconds_max: float) -> None:
    """Wait for news, or for a while."""
    if seconds_max > 0 and not news.is_set():
        try:
            async with asyncio.timeout(seconds_max):
                await news.wait()
        except TimeoutError:
            return
