"""The lease desk: admits requests against the wallet, and talks to the keeper of budgets when the wallet is empty.

All of it runs on the event loop. Requests that no lease pays for wait in order of arrival; each grant and each settled
request lets them try again.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from taximeter_inference.gateway.admission import Answer, Ask, Close, Reservation, Scope, Wallet
from taximeter_inference.gateway.budget_view import Standing, refusal
from taximeter_inference.gateway.errors import BudgetUnavailableError
from taximeter_schemas.budgets import BudgetState, LeaseClose, LeaseGrant, LeaseRequest, WhenUnreachable

TICK_SECONDS = 0.1
"""How often leases are renewed and given back, and waiting requests look again."""

EASE_FACTOR = 8
"""A lease that holds so many times what a request may cost by the roughest estimate needs no better one."""
ROOTS_REMEMBERED_MAX = 10_000
Send = Callable[[LeaseRequest | LeaseClose], None]
Standings = Callable[[], Sequence[Standing]]


class Worst(Protocol):
    """What a request may cost at most, which may shrink to what its budgets have left."""

    def amount_pico(self, left_pico: int | None = None) -> int:
        """The amount to reserve now."""


@dataclass(slots=True)
class _Waiter:
    amount_pico: int
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class LeaseDesk:
    """Admission with leases. `send` must not block; answers come in by `on_grant`, on the event loop."""

    def __init__(
        self,
        gateway: str,
        boot: str,
        send: Send,
        wait_seconds: float,
        lives_settled: Callable[[], bool] = lambda: True,
    ) -> None:
        self._gateway = gateway
        self._boot = boot
        self._send = send
        self._wait_seconds = wait_seconds
        self._lives_settled = lives_settled
        self._numbers = itertools.count(1)
        self._wallet = Wallet(lambda: f"{gateway}:{boot}:{next(self._numbers)}")
        self._waiting: dict[Scope, dict[int, _Waiter]] = {}
        self._heard_at: dict[str, float] = {}
        self._silent: set[str] = set()
        self._root_spent_pico: dict[Scope, Mapping[str, int]] = {}
        self._cuts: dict[int, Callable[[], None]] = {}
        self._ticking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew leases and to give them back."""
        self._ticking = asyncio.create_task(self._tick())

    async def admit(
        self, scope: Scope, worst: Worst, standings: Standings, wait_seconds: float | None = None
    ) -> Reservation | None:
        """Reserve a request's worst case. None means: let through without a lease, as its budgets say for this case.

        `standings` says where the budgets of the scope stand now. Raises BudgetExhaustedError, InFlightBudgetError (only
        reservations stand in the way) and BudgetUnavailableError (the keeper is silent, and a budget says to refuse then).
        """
        now = time.monotonic()
        if scope not in self._waiting:
            reservation = self._wallet.reserve(scope, worst.amount_pico(), now)
            if reservation is not None:
                self._ask(scope, now)
                return reservation
        return await self._wait(
            scope, worst, standings, now, self._wait_seconds if wait_seconds is None else wait_seconds
        )

    def admit_at_ease(self, scope: Scope, worst: Worst) -> Reservation | None:
        """Reserve when a lease in hand holds many times as much, so that nothing depends on a close estimate."""
        now = time.monotonic()
        amount_pico = worst.amount_pico()
        if scope in self._waiting or self._wallet.available_pico(scope, now) < EASE_FACTOR * amount_pico:
            return None
        reservation = self._wallet.reserve(scope, amount_pico, now)
        self._ask(scope, now)
        return reservation

    def settle(self, reservation: Reservation, cost_pico: int) -> None:
        """A request has ended: its reservation becomes its true cost. Who waits may try again."""
        self._wallet.settle(reservation, cost_pico, time.monotonic())
        self._cuts.pop(reservation.number, None)
        if self._waiting:
            self._wake(reservation.scope)

    def on_overdue(self, reservation: Reservation, cut: Callable[[], None]) -> None:
        """`cut` is called when the request must end, because what its lease held is soon granted again."""
        self._cuts[reservation.number] = cut

    def on_grant(self, grant: LeaseGrant) -> None:
        """Take the keeper's answer."""
        now = time.monotonic()
        self._heard_at[grant.tenant] = now
        self._silent.discard(grant.tenant)
        if grant.root_request_id is not None:
            self._remember_root(grant)
        lasts_seconds = (grant.expires_at - grant.granted_at).total_seconds()
        held_seconds = (grant.held_until - grant.granted_at).total_seconds() if grant.held_until else float("inf")
        answer = self._wallet.grant(grant.lease_id, grant.amounts_pico, lasts_seconds, now, held_seconds)
        if answer is Answer.STRAY and any(grant.amounts_pico.values()):
            scope = Scope(grant.tenant, tuple(sorted(grant.amounts_pico)), grant.root_request_id)
            self._tell(Close(grant.lease_id, scope, 0))
        self.on_news(grant.tenant)

    def on_state(self, state: BudgetState) -> None:
        """Take what the keeper published: where there is room for who waits, it is asked for at once."""
        available = {position.budget.id: position.available_pico for position in state.positions}
        for scope, waiters in self._waiting.items():
            if scope.tenant == state.tenant and scope.root_request_id is None:
                room_pico = min((available.get(budget, 0) for budget in scope.budgets), default=0)
                if room_pico >= min(waiter.amount_pico for waiter in waiters.values()):
                    self._wallet.ask_soon(scope)
        self.on_news(state.tenant)

    def on_news(self, tenant: str) -> None:
        """Something is known of the tenant's budgets: who waits may try again."""
        for scope in self._waiting:
            if scope.tenant == tenant:
                self._wake(scope)

    def retire(self, tenant: str) -> None:
        """The tenant's budgets were declared anew: leases granted under the old limits are used no more."""
        self._wallet.retire(tenant)
        self.on_news(tenant)

    def root_spent_pico(self, scope: Scope) -> Mapping[str, int]:
        """What a root request has spent for certain, by budget, as last heard."""
        return self._root_spent_pico.get(scope, {})

    async def stop(self) -> None:
        """Give every lease back. Requests under way should have ended."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        for close in self._wallet.close_all():
            self._tell(close)

    @property
    def reservations(self) -> int:
        """Requests that hold a reservation now."""
        return self._wallet.reservations

    def _reserve_less(self, scope: Scope, worst: Worst, amount_pico: int) -> Reservation | None:
        """A grant came short: a request without a bound of its own may make do with what is in hand."""
        now = time.monotonic()
        if self._wallet.is_asking(scope):
            return None
        less_pico = worst.amount_pico(self._wallet.available_pico(scope, now))
        return self._wallet.reserve(scope, less_pico, now) if less_pico < amount_pico else None

    def _remember_root(self, grant: LeaseGrant) -> None:
        scope = Scope(grant.tenant, tuple(sorted(grant.amounts_pico)), grant.root_request_id)
        self._root_spent_pico.pop(scope, None)
        self._root_spent_pico[scope] = grant.spent_pico
        if len(self._root_spent_pico) > ROOTS_REMEMBERED_MAX:
            del self._root_spent_pico[next(iter(self._root_spent_pico))]

    async def _wait(
        self, scope: Scope, worst: Worst, standings: Standings, began: float, wait_seconds: float
    ) -> Reservation | None:
        waiters = self._waiting.setdefault(scope, {})
        waiter, number = _Waiter(worst.amount_pico()), next(self._numbers)
        waiters[number] = waiter
        deadline = began + (0 if scope.tenant in self._silent else wait_seconds)
        try:
            while True:
                waiter.amount_pico = self._that_may_fit(worst, standings())
                now = time.monotonic()
                self._ask(scope, now)
                if now >= deadline:
                    self._give_up(scope, waiter.amount_pico, standings(), began, wait_seconds < self._wait_seconds)
                    return None
                await _turn(waiter, min(deadline - now, TICK_SECONDS))
                waiter.amount_pico = self._that_may_fit(worst, standings())
                reservation = self._wallet.reserve(scope, waiter.amount_pico, time.monotonic())
                has_heard = self._heard_at.get(scope.tenant, 0.0) >= began
                if reservation is None and has_heard:
                    reservation = self._reserve_less(scope, worst, waiter.amount_pico)
                if reservation is not None:
                    return reservation
                if has_heard:
                    # Remainders that nobody uses may make one slice that is large enough.
                    for close in self._wallet.squeeze(scope):
                        self._tell(close)
        finally:
            del waiters[number]
            if not waiters:
                del self._waiting[scope]

    @staticmethod
    def _that_may_fit(worst: Worst, standings: Sequence[Standing]) -> int:
        """What to reserve. Raises the refusal of what can never fit, for posted spend leaves too little."""
        short = min(standings, key=lambda held: held.left_pico)
        amount_pico = worst.amount_pico(short.left_pico)
        if amount_pico > short.left_pico:
            raise refusal(short, amount_pico)
        return amount_pico

    def _give_up(
        self, scope: Scope, amount_pico: int, standings: Sequence[Standing], began: float, was_short: bool
    ) -> None:
        """The wait is over: refuse, or return to let the request through. A short wait says nothing about the keeper."""
        if was_short or self._heard_at.get(scope.tenant, 0.0) >= began:
            raise refusal(min(standings, key=lambda held: held.left_pico), amount_pico)
        self._silent.add(scope.tenant)
        if any(held.budget.when_unreachable is WhenUnreachable.DENY for held in standings):
            raise BudgetUnavailableError

    def _ask(self, scope: Scope, now: float) -> None:
        waiting_pico = sum(waiter.amount_pico for waiter in self._waiting.get(scope, {}).values())
        ask = self._wallet.ask(scope, waiting_pico, now)
        if ask is not None:
            self._tell(ask)

    def _wake(self, scope: Scope) -> None:
        for waiter in self._waiting.get(scope, {}).values():
            waiter.turn.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for message in list(self._wallet.due(now)):
                self._tell(message)
            for reservation in self._wallet.overdue(now):
                cut = self._cuts.pop(reservation.number, None)
                if cut is not None:
                    cut()

    def _tell(self, message: Ask | Close) -> None:
        scope, now = message.scope, datetime.now(UTC)
        if isinstance(message, Close):
            self._send(
                LeaseClose(
                    lease_id=message.lease_id,
                    gateway=self._gateway,
                    boot=self._boot,
                    tenant=scope.tenant,
                    settled_pico=dict.fromkeys(scope.budgets, message.settled_pico),
                    closed_at=now,
                    root_request_id=scope.root_request_id,
                )
            )
            return
        self._send(
            LeaseRequest(
                lease_id=message.lease_id,
                gateway=self._gateway,
                boot=self._boot,
                lives_settled=self._lives_settled(),
                tenant=scope.tenant,
                amounts_pico=dict.fromkeys(scope.budgets, message.amount_pico),
                needed_pico=dict.fromkeys(scope.budgets, message.needed_pico),
                requested_at=now,
                root_request_id=scope.root_request_id,
            )
        )


async def _turn(waiter: _Waiter, seconds_max: float) -> None:
    """Wait until something has changed, or for a while."""
    try:
        async with asyncio.timeout(seconds_max):
            await waiter.turn.wait()
    except TimeoutError:
        return
    waiter.turn.clear()
