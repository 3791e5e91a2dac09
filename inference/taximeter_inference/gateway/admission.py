"""The lease wallet: which requests the leases in hand pay for, when to ask for more, and when to give back. Pure.

A lease is a slice of every hard budget that covers a request (its scope). A request's worst case is reserved from one
lease before it is dispatched, and settled to the true cost when it ends. Two things never happen: more is admitted than
a lease holds, and a reservation is forgotten. `now` is a monotonic clock in seconds; a lease is used for the time that the
keeper promised, counted from when it was asked for, so the clocks of two machines need not agree.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Scope:
    """The hard budgets that cover a request, by id, in order: their leases are granted together.

    With a root request's id they are the caps on that one, which its keeper holds apart.
    """

    tenant: str
    budgets: tuple[str, ...]
    root_request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """A request's worst case, set aside from a lease."""

    number: int
    scope: Scope
    lease_id: str
    amount_pico: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the keeper for a slice (or, with the id of an open lease, for more time)."""

    lease_id: str
    scope: Scope
    amount_pico: int
    needed_pico: int


@dataclass(frozen=True, slots=True)
class Close:
    """Tell the keeper that a lease is done, and what its events cost."""

    lease_id: str
    scope: Scope
    settled_pico: int


@dataclass(frozen=True, slots=True)
class WalletTerms:
    """When to ask and when to give back; times in seconds."""

    slice_requests: int = 32
    """A first slice pays for this many requests like the one that asks."""
    low_water_divisor: int = 3
    """The next slice is asked for when less than this part of one is left."""
    repeat_seconds: float = 1.0
    """An unanswered question is asked again, each time after twice as long, up to `repeat_seconds_max`."""
    repeat_seconds_max: float = 8.0
    retry_seconds: float = 0.1
    """After a grant that was too small the next question waits, each time for twice as long, up to `retry_seconds_max`."""
    retry_seconds_max: float = 2.0
    idle_seconds: float = 5.0
    """A lease that nobody used for so long goes back."""
    forget_seconds: float = 300.0
    """A scope without leases that nobody used for so long is forgotten."""
    margin: float = 0.1
    """The part of a lease's first time that is not used, for messages under way."""
    renewal: float = 0.6
    """More time is asked for when less than this part of a lease's first time is left."""


@dataclass(slots=True)
class _Lease:
    ask: Ask
    granted_pico: int
    asked_at: float
    lasts_seconds: float
    usable_until: float
    used_at: float
    overdue_at: float = float("inf")
    retired: bool = False
    renewal_sent_at: float = float("-inf")
    reserved_pico: int = 0
    reservations: int = 0
    settled_pico: int = 0

    @property
    def available_pico(self) -> int:
        return 0 if self.retired else max(0, self.granted_pico - self.reserved_pico - self.settled_pico)


class Answer(StrEnum):
    """What a grant was: the answer to a question for more, to one for more time, or to nobody."""

    SLICE = "slice"
    RENEWAL = "renewal"
    STRAY = "stray"


@dataclass(slots=True)
class _Purse:
    scope: Scope
    leases: list[_Lease] = field(default_factory=list)
    pending: Ask | None = None
    asked_at: float = 0.0
    sent_at: float = 0.0
    repeats: int = 0
    ask_after: float = float("-inf")
    short_grants: int = 0
    slice_pico: int = 0
    last_pico: int = 0
    granted_at: float = float("-inf")
    touched_at: float = float("-inf")


class Wallet:
    """All leases of one gateway."""

    def __init__(self, new_lease_id: Callable[[], str], terms: WalletTerms | None = None) -> None:
        self._new_lease_id = new_lease_id
        self._terms = terms or WalletTerms()
        self._purses: dict[Scope, _Purse] = {}
        self._by_lease: dict[str, _Purse] = {}
        self._open: dict[int, tuple[Reservation, _Lease]] = {}
        self._number = 0

    def reserve(self, scope: Scope, amount_pico: int, now: float) -> Reservation | None:
        """Set the amount aside, or None when no lease in hand holds that much."""
        purse = self._purse(scope)
        purse.last_pico, purse.touched_at = amount_pico, now
        for lease in purse.leases:
            if lease.available_pico >= amount_pico and now < lease.usable_until and not lease.retired:
                self._number += 1
                reservation = Reservation(self._number, scope, lease.ask.lease_id, amount_pico)
                lease.reserved_pico += amount_pico
                lease.reservations += 1
                lease.used_at = now
                self._open[self._number] = (reservation, lease)
                return reservation
        return None

    def settle(self, reservation: Reservation, cost_pico: int, now: float) -> None:
        """Replace a reservation by the true cost. Each is settled once: settling it again is the caller's mistake."""
        _, lease = self._open.pop(reservation.number)
        lease.reserved_pico -= reservation.amount_pico
        lease.reservations -= 1
        lease.settled_pico += cost_pico
        lease.used_at = now

    def ask(self, scope: Scope, waiting_pico: int, now: float) -> Ask | None:
        """The question to send now, if any. `waiting_pico` is what requests wait for that no lease in hand pays for."""
        purse = self._purse(scope)
        if purse.pending is not None:
            patience = min(self._terms.repeat_seconds * 2**purse.repeats, self._terms.repeat_seconds_max)
            if now < purse.sent_at + patience:
                return None
            purse.sent_at = now
            purse.repeats = min(purse.repeats + 1, 10)
            return purse.pending
        if now < purse.ask_after or not (waiting_pico or self._is_low(purse, now)):
            return None
        self._resize(purse, now)
        needed_pico = waiting_pico or purse.last_pico
        purse.pending = Ask(self._new_lease_id(), scope, max(purse.slice_pico, needed_pico), needed_pico)
        self._by_lease[purse.pending.lease_id] = purse
        purse.asked_at = purse.sent_at = now
        purse.repeats = 0
        return purse.pending

    def grant(
        self,
        lease_id: str,
        amounts_pico: Mapping[str, int],
        lasts_seconds: float,
        now: float,
        held_seconds: float = float("inf"),
    ) -> Answer:
        """Take the keeper's answer: `lasts_seconds` is the lease's whole time, from when it was granted to its end.

        `held_seconds` is the time from when it was granted until the keeper grants its amounts again, whatever is under
        way. A stray answer grants a lease that nobody here knows (any more): it should be closed.
        """
        purse = self._by_lease.get(lease_id)
        if purse is None:
            return Answer.STRAY
        granted_pico = _smallest(purse.scope, amounts_pico)
        if purse.pending is not None and purse.pending.lease_id == lease_id:
            self._take(purse, purse.pending, granted_pico, lasts_seconds, held_seconds, now)
            return Answer.SLICE
        for lease in purse.leases:
            if lease.ask.lease_id == lease_id:
                self._renew(lease, granted_pico, lasts_seconds, held_seconds, now)
        return Answer.RENEWAL

    def due(self, now: float) -> Iterator[Ask | Close]:
        """What to send now: questions unanswered, leases to renew, leases to give back."""
        for scope, purse in list(self._purses.items()):
            again = self.ask(scope, 0, now)
            if again is not None:
                yield again
            if not purse.leases and purse.pending is None and now > purse.touched_at + self._terms.forget_seconds:
                del self._purses[scope]
            for lease in list(purse.leases):
                if self._is_done(purse, lease, now):
                    yield self._close(purse, lease)
                elif self._wants_renewal(lease, now):
                    yield lease.ask

    def overdue(self, now: float) -> list[Reservation]:
        """Reservations whose requests must end now: their lease ran out long ago, and what it held is granted again soon."""
        return [reservation for reservation, lease in self._open.values() if now >= lease.overdue_at]

    def retire(self, tenant: str) -> None:
        """The tenant's budgets have changed: admit nothing more under the leases in hand, and give back what is free."""
        for scope, purse in self._purses.items():
            if scope.tenant == tenant:
                self.ask_soon(scope)
                for lease in purse.leases:
                    lease.retired = True

    def ask_soon(self, scope: Scope) -> None:
        """There may be room again: the next question need not wait."""
        purse = self._purse(scope)
        purse.ask_after, purse.short_grants = float("-inf"), 0

    def squeeze(self, scope: Scope) -> list[Close]:
        """Give back every lease of the scope that no request holds, so that remainders can be granted again as one."""
        purse = self._purse(scope)
        return [self._close(purse, lease) for lease in list(purse.leases) if not lease.reservations]

    def close_all(self) -> list[Close]:
        """Give everything back that no request holds; for the end."""
        return [close for scope in self._purses for close in self.squeeze(scope)]

    def available_pico(self, scope: Scope, now: float) -> int:
        """The largest request that could be admitted now."""
        usable = (lease.available_pico for lease in self._purse(scope).leases if now < lease.usable_until)
        return max(usable, default=0)

    def is_asking(self, scope: Scope) -> bool:
        """Whether a question for more is unanswered."""
        return self._purse(scope).pending is not None

    @property
    def reservations(self) -> int:
        """Requests that hold a reservation now."""
        return len(self._open)

    def _purse(self, scope: Scope) -> _Purse:
        purse = self._purses.get(scope)
        if purse is None:
            purse = self._purses[scope] = _Purse(scope)
        return purse

    def _is_low(self, purse: _Purse, now: float) -> bool:
        # Only a scope in use is kept supplied.
        in_use = [
            lease for lease in purse.leases if now < lease.used_at + self._terms.idle_seconds and not lease.retired
        ]
        left = sum(lease.available_pico for lease in in_use if now < lease.usable_until)
        return bool(in_use) and left < purse.slice_pico // self._terms.low_water_divisor

    def _resize(self, purse: _Purse, now: float) -> None:
        smallest = purse.last_pico * self._terms.slice_requests
        if now < purse.granted_at + 1:
            purse.slice_pico = max(2 * purse.slice_pico, smallest)
        elif now > purse.granted_at + 10:
            purse.slice_pico = max(purse.slice_pico // 2, smallest)
        else:
            purse.slice_pico = max(purse.slice_pico, smallest)

    def _take(
        self, purse: _Purse, ask: Ask, granted_pico: int, lasts_seconds: float, held_seconds: float, now: float
    ) -> None:
        purse.pending = None
        if granted_pico < ask.needed_pico:
            delay = min(self._terms.retry_seconds * 2**purse.short_grants, self._terms.retry_seconds_max)
            purse.ask_after = now + delay
            purse.short_grants = min(purse.short_grants + 1, 10)
            purse.slice_pico = 0
        else:
            purse.short_grants = 0
        if not granted_pico:
            del self._by_lease[ask.lease_id]
            return
        purse.granted_at = now
        # Near the limit slices are cut, and a smaller one is low later.
        purse.slice_pico = min(purse.slice_pico, granted_pico)
        lease = _Lease(ask, granted_pico, purse.asked_at, lasts_seconds, now, now)
        lease.usable_until = self._usable_until(purse.asked_at, lease, lasts_seconds)
        lease.overdue_at = self._usable_until(purse.asked_at, lease, held_seconds)
        purse.leases.append(lease)

    def _renew(self, lease: _Lease, granted_pico: int, lasts_seconds: float, held_seconds: float, now: float) -> None:
        if granted_pico:
            # Counted from the first question as well: late and doubled answers cannot lengthen it wrongly.
            lease.usable_until = max(lease.usable_until, self._usable_until(lease.asked_at, lease, lasts_seconds))
            if held_seconds < float("inf"):
                lease.overdue_at = max(lease.overdue_at, self._usable_until(lease.asked_at, lease, held_seconds))
        else:
            # Over at the keeper's: what it still held may be granted to others.
            lease.usable_until = min(lease.usable_until, now)

    def _usable_until(self, asked_at: float, lease: _Lease, lasts_seconds: float) -> float:
        return asked_at + lasts_seconds - self._terms.margin * lease.lasts_seconds

    def _wants_renewal(self, lease: _Lease, now: float) -> bool:
        is_fresh = now < lease.usable_until - self._terms.renewal * lease.lasts_seconds
        if is_fresh or now < lease.renewal_sent_at + self._terms.repeat_seconds:
            return False
        lease.renewal_sent_at = now
        return True

    def _is_done(self, purse: _Purse, lease: _Lease, now: float) -> bool:
        if lease.reservations:
            return False
        spent = lease is not purse.leases[-1] and lease.available_pico < purse.last_pico
        return lease.retired or spent or now >= lease.usable_until or now >= lease.used_at + self._terms.idle_seconds

    def _close(self, purse: _Purse, lease: _Lease) -> Close:
        purse.leases.remove(lease)
        del self._by_lease[lease.ask.lease_id]
        return Close(lease.ask.lease_id, lease.ask.scope, lease.settled_pico)


def _smallest(scope: Scope, amounts_pico: Mapping[str, int]) -> int:
    """A request costs the same under each budget of its scope, so the smallest amount decides."""
    return min((amounts_pico.get(budget, 0) for budget in scope.budgets), default=0)
