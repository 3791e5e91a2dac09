"""The lease wallet under any order of requests, settlements, grants (lost, late, doubled, cut), renewals and time."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taximeter_inference.gateway.admission import Answer, Ask, Close, Reservation, Scope, Wallet, WalletTerms

LASTS_SECONDS = 8.0
HELD_SECONDS = 12.0
"""How long after its end a lease's amounts stay charged."""
TICK_SECONDS = 0.5
SCOPES = (Scope("acme", ("b",)), Scope("acme", ("b", "c")))
AMOUNTS = st.sampled_from((0, 1, 30, 100))
# Small slices that stay: leases run empty, and run out while they are in use.
TERMS = WalletTerms(slice_requests=2, idle_seconds=100.0)


@dataclass
class Granted:
    """A lease as its keeper remembers it."""

    scope: Scope
    amounts: dict[str, int]
    granted_at: float
    until: float
    """Admits nothing from then on; its amounts are granted again HELD_SECONDS later."""
    closed: Close | None = None
    reserved: int = 0
    settled: int = 0


class WalletMachine(RuleBasedStateMachine):
    """The keeper's side in the plainest form: what it granted, and when that ends by its own account."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.ids = 0
        self.wallet = Wallet(self.new_id, TERMS)
        self.leases: dict[str, Granted] = {}
        self.asked: dict[str, Ask] = {}
        self.questions: list[tuple[Ask, float]] = []
        """Sent, with the time; the log may hold one for a while, lose it, and stamp it with the time of its sending."""
        self.answers: list[tuple[str, dict[str, int], float]] = []
        """The keeper's, which may come late, more than once, in another order, or never."""
        self.held: list[Reservation] = []

    def new_id(self) -> str:
        self.ids += 1
        return f"lease-{self.ids}"

    def hear(self, message: Ask | Close | None) -> None:
        if isinstance(message, Ask):
            assert self.asked.setdefault(message.lease_id, message) == message, "a question is repeated as it was"
            self.questions.append((message, self.now))
        elif message is not None:
            lease = self.leases[message.lease_id]
            assert lease.closed is None, "a lease is closed once"
            assert not lease.reserved, "a lease is closed when nobody holds it"
            assert message.settled_pico == lease.settled, "a close tells the true cost"
            lease.closed = message

    @rule(scope=st.sampled_from(SCOPES), amount=AMOUNTS, waits=st.booleans())
    def any_request(self, scope: Scope, amount: int, waits: bool) -> None:
        self.request(scope, amount, waits)

    def request(self, scope: Scope, amount: int, waits: bool) -> None:
        reservation = self.wallet.reserve(scope, amount, self.now)
        self.hear(self.wallet.ask(scope, amount if reservation is None and waits else 0, self.now))
        if reservation is None:
            return
        lease = self.leases[reservation.lease_id]
        assert lease.scope == scope
        assert lease.closed is None
        assert self.now < lease.until, "a lease that is over at its keeper's admits nothing"
        lease.reserved += amount
        self.held.append(reservation)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), part=st.integers(0, 100))
    def settle(self, data: st.DataObject, part: int) -> None:
        reservation = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.end(reservation, reservation.amount_pico * part // 100)

    def end(self, reservation: Reservation, cost: int) -> None:
        self.wallet.settle(reservation, cost, self.now)
        lease = self.leases[reservation.lease_id]
        lease.reserved -= reservation.amount_pico
        lease.settled += cost

    @rule(scope=st.sampled_from(SCOPES), amount=AMOUNTS, percent=st.integers(50, 100), uneven=st.integers(0, 50))
    def promptly_supplied_request(self, scope: Scope, amount: int, percent: int, uneven: int) -> None:
        """What mostly happens: the wallet is empty, asks, and is answered at once."""
        if self.wallet.available_pico(scope, self.now) < amount:
            sent = len(self.questions)
            self.hear(self.wallet.ask(scope, amount, self.now))
            if len(self.questions) > sent:
                self._keeper_answers(len(self.questions) - 1, percent, uneven)
                self._answer_arrives(len(self.answers) - 1, comes_again=False)
        self.request(scope, amount, waits=False)

    @precondition(lambda self: self.questions)
    @rule(data=st.data(), percent=st.integers(0, 100), uneven=st.integers(0, 50))
    def keeper_answers(self, data: st.DataObject, percent: int, uneven: int) -> None:
        self._keeper_answers(data.draw(st.integers(0, len(self.questions) - 1)), percent, uneven)

    def _keeper_answers(self, position: int, percent: int, uneven: int) -> None:
        ask, at = self.questions.pop(position)
        known = self.leases.get(ask.lease_id)
        if known is None:
            amounts = dict.fromkeys(ask.scope.budgets, ask.amount_pico * percent // 100)
            amounts[ask.scope.budgets[-1]] += uneven
            if any(amounts.values()):
                self.leases[ask.lease_id] = Granted(ask.scope, amounts, at, at + LASTS_SECONDS)
            self.answers.append((ask.lease_id, amounts, LASTS_SECONDS))
        elif known.closed is None and at < known.until:
            known.until = max(known.until, at + LASTS_SECONDS)
            self.answers.append((ask.lease_id, known.amounts, known.until - known.granted_at))
        else:
            over = dict.fromkeys(known.amounts, 0)
            self.answers.append((ask.lease_id, over, known.until - known.granted_at))

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), comes_again=st.booleans())
    def answer_arrives(self, data: st.DataObject, comes_again: bool) -> None:
        self._answer_arrives(data.draw(st.integers(0, len(self.answers) - 1)), comes_again)

    def _answer_arrives(self, position: int, comes_again: bool) -> None:
        lease_id, amounts, lasts_seconds = self.answers[position] if comes_again else self.answers.pop(position)
        held_seconds = lasts_seconds + HELD_SECONDS
        answer = self.wallet.grant(lease_id, amounts, lasts_seconds, self.now, held_seconds)
        known = self.leases.get(lease_id)
        if answer is Answer.STRAY and known is not None and known.closed is None:
            self.hear(Close(lease_id, known.scope, 0))

    @rule(seconds=st.sampled_from((0.1, 1.0, 2.0, 5.0, 20.0)))
    def time_passes(self, seconds: float) -> None:
        while seconds > 0:
            self.now += min(seconds, TICK_SECONDS)
            seconds -= TICK_SECONDS
            for message in self.wallet.due(self.now):
                self.hear(message)
            for reservation in self.wallet.overdue(self.now):
                self.held.remove(reservation)
                self.end(reservation, reservation.amount_pico)

    @rule()
    def budgets_are_declared_anew(self) -> None:
        self.wallet.retire("acme")
        assert all(self.wallet.available_pico(scope, self.now) == 0 for scope in SCOPES)

    @rule(scope=st.sampled_from(SCOPES))
    def squeeze(self, scope: Scope) -> None:
        for close in self.wallet.squeeze(scope):
            self.hear(close)

    @invariant()
    def no_lease_admits_more_than_it_holds(self) -> None:
        for lease in self.leases.values():
            assert lease.reserved + lease.settled <= min(lease.amounts.values()) or not (lease.reserved + lease.settled)

    @invariant()
    def no_request_outlives_the_hold_of_its_lease(self) -> None:
        for reservation in self.held:
            assert self.now < self.leases[reservation.lease_id].until + HELD_SECONDS

    @invariant()
    def no_reservation_is_lost(self) -> None:
        assert self.wallet.reservations == len(self.held)

    def teardown(self) -> None:
        for reservation in self.held:
            self.wallet.settle(reservation, 0, self.now)
            self.leases[reservation.lease_id].reserved -= reservation.amount_pico
        for close in self.wallet.close_all():
            self.hear(close)
        assert self.wallet.reservations == 0


WalletMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestWallet = WalletMachine.TestCase
