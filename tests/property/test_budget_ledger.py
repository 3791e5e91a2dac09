"""The law of budgets under anything that a network does: posted + outstanding passes the limit by no grant, ever.

Eight gateways at most, that crash and come back; messages that are lost, late, doubled and out of order; a meter that
repeats itself and lags; operators who change limits; and time that passes. What may stand above a limit is counted here
beside the ledger: spend that came without a lease, spend that came after its lease's hold had ended, and limits that were
lowered under what stood already. Nothing else may.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taximeter_schemas.budgets import Budget, LeaseClose, LeaseGrant, LeaseRequest
from taximeter_schemas.periods import PeriodKind, period_containing
from taximeter_schemas.spend import SPEND_SLOT_SECONDS, SpendEntry, SpendRecord
from taximeter_streams.budgets import ledger
from taximeter_streams.budgets.ledger import Rules
from taximeter_streams.budgets.state import TenantLedger

ZONE = "America/New_York"
MODELS = ("large", "small")
START = datetime(2026, 11, 24, 20, 0, tzinfo=UTC)


@dataclass
class HeldLease:
    """A lease as its gateway sees it: what it may still admit, and what it has spent."""

    gateway: str
    boot: str
    model: str
    asked: LeaseRequest
    left_pico: int
    expires_at: datetime
    held_until: datetime
    spent_pico: int = 0
    unposted_pico: int = 0
    over: bool = False
    """Closed, or its gateway died."""
    counted_late: bool = False


@dataclass
class Machine:
    """A gateway: which life it is in, and events of earlier lives that wait on its disk."""

    life: int = 0
    lives_settled: bool = True
    spool: list[tuple[int, str, str, int]] = field(default_factory=list)


@dataclass
class World:
    """What is true, kept beside what the ledger believes."""

    gateways: dict[str, Machine]
    leases: dict[str, HeldLease] = field(default_factory=dict)
    sent: list[SpendRecord] = field(default_factory=list)
    delivered: int = 0
    offsets: Counter[int] = field(default_factory=Counter)
    requests: list[LeaseRequest] = field(default_factory=list)
    """Under way: they arrive late, in any order, more than once, or never."""
    closes: list[LeaseClose] = field(default_factory=list)


class Budgets(RuleBasedStateMachine):
    """Gateways that keep to their leases, in a world that does not care."""

    @initialize(limit_pico=st.integers(10, 400), small_pico=st.integers(5, 200), gateways=st.integers(1, 8))
    def begin(self, limit_pico: int, small_pico: int, gateways: int) -> None:
        self.now = START
        self.world = World({f"g{number}": Machine() for number in range(gateways)})
        self.waiting: dict[int, list[SpendRecord]] = {0: [], 1: []}
        self.state = TenantLedger(tenant="acme")
        self.alert_ids: list[str] = []
        self.tolerated_pico = 0
        self.budgets: tuple[Budget, ...] = (
            Budget(id="all", tenant="acme", limit_pico=limit_pico, period=PeriodKind.DAY, soft_thresholds_bps=(5_000, 8_000)),
            Budget(id="small", tenant="acme", model="small", limit_pico=small_pico, period=PeriodKind.HOUR),
        )  # fmt: skip
        self.limits_max_pico = {budget.id: budget.limit_pico for budget in self.budgets}

    @property
    def in_force(self) -> Rules:
        return Rules(self.budgets, ZONE)

    def excess_pico(self) -> int:
        """By how much posted + outstanding stands above the limit, at most, over all budgets."""
        standing = ledger.positions(self.state, self.in_force, self.now).positions
        return max(at.spent_pico + at.leased_pico - at.budget.limit_pico for at in standing)

    def coming_pico(self) -> int:
        """Spend that no charged lease covers any more and that was not delivered yet."""
        coming = [record.entries[0] for records in self.waiting.values() for record in records]
        leases = self.world.leases
        return sum(
            entry.amount_pico for entry in coming if entry.lease_id not in leases or leases[entry.lease_id].counted_late
        )

    # Gateways ask, and hear or do not hear.

    @rule(
        data=st.data(), model=st.sampled_from(MODELS), asked_pico=st.integers(1, 120), greedy=st.booleans(),
        way=st.sampled_from(("arrives", "arrives", "arrives", "answer_lost", "late")),
    )  # fmt: skip
    def ask(self, data: st.DataObject, model: str, asked_pico: int, greedy: bool, way: str) -> None:
        gateway = data.draw(st.sampled_from(sorted(self.world.gateways)))
        machine = self.world.gateways[gateway]
        ids = ["all", "small"] if model == "small" else ["all"]
        lease_id = f"lease{len(self.world.leases) + len(self.world.requests)}-{self.world.offsets[-1]}"
        self.world.offsets[-1] += 1
        asked = LeaseRequest(
            lease_id=lease_id, gateway=gateway, tenant="acme", requested_at=self.now, boot=str(machine.life),
            lives_settled=machine.lives_settled, amounts_pico=dict.fromkeys(ids, asked_pico),
            needed_pico=dict.fromkeys(ids, 1) if greedy else {},
        )  # fmt: skip
        if way == "late":
            self.world.requests.append(asked)
            return
        self.hear(asked, self.send(asked), heard=way == "arrives")

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data(), again=st.booleans(), heard=st.booleans())
    def a_late_request_arrives(self, data: st.DataObject, again: bool, heard: bool) -> None:
        number = data.draw(st.integers(0, len(self.world.requests) - 1))
        asked = self.world.requests[number] if again else self.world.requests.pop(number)
        alive = self.world.gateways[asked.gateway].life == int(asked.boot)
        self.hear(asked, self.send(asked), heard=heard and alive)

    def hear(self, asked: LeaseRequest, grant: LeaseGrant, heard: bool) -> None:
        assert set(grant.amounts_pico) == set(asked.amounts_pico)
        assert all(amount <= asked.amounts_pico[name] for name, amount in grant.amounts_pico.items())
        left_pico = min(grant.amounts_pico.values())
        assert (left_pico > 0) == any(grant.amounts_pico.values()), "all are granted, or none"
        if left_pico and heard and asked.lease_id not in self.world.leases:
            model = "small" if "small" in asked.amounts_pico else "large"
            assert grant.held_until is not None
            self.world.leases[asked.lease_id] = HeldLease(
                asked.gateway, asked.boot, model, asked, left_pico, grant.expires_at, grant.held_until
            )

    def send(self, asked: LeaseRequest) -> LeaseGrant:
        before = self.state
        self.state, grant = ledger.request(self.state, self.in_force, asked, self.now)
        if any(grant.amounts_pico.values()) and asked.lease_id not in before.leases:
            for at in ledger.positions(self.state, self.in_force, self.now).positions:
                if at.budget.id in grant.amounts_pico:
                    assert at.spent_pico + at.leased_pico <= at.budget.limit_pico
        self.heard_from(asked.gateway, asked.boot)
        return grant

    def heard_from(self, gateway: str, boot: str) -> None:
        terms = self.in_force.terms
        for lease in self.world.leases.values():
            if (lease.gateway, lease.boot) == (gateway, boot) and lease.expires_at > self.now and not lease.over:
                lease.expires_at = self.now + terms.lease_timeout
                lease.held_until = lease.expires_at + terms.settle_timeout

    def usable(self) -> list[str]:
        return [name for name, lease in self.world.leases.items() if not lease.over and lease.expires_at > self.now]

    @precondition(lambda self: self.world.leases)
    @rule(data=st.data())
    def repeat_a_request(self, data: st.DataObject) -> None:
        lease = self.world.leases[data.draw(st.sampled_from(sorted(self.world.leases)))]
        first = self.state.leases.get(lease.asked.lease_id)
        grant = self.send(lease.asked)
        if first is not None and first.is_open(self.now):
            assert grant.amounts_pico == first.granted_pico
        else:
            assert not any(grant.amounts_pico.values())

    # Gateways spend, close, die and come back.

    @precondition(lambda self: self.usable())
    @rule(data=st.data(), partition=st.sampled_from((0, 1)), spooled=st.booleans())
    def spend(self, data: st.DataObject, partition: int, spooled: bool) -> None:
        lease_id = data.draw(st.sampled_from(self.usable()))
        lease = self.world.leases[lease_id]
        amount_pico = data.draw(st.integers(0, lease.left_pico))
        lease.left_pico -= amount_pico
        lease.spent_pico += amount_pico
        lease.unposted_pico += amount_pico
        machine = self.world.gateways[lease.gateway]
        if spooled:
            machine.spool.append((partition, lease.model, lease_id, amount_pico))
        else:
            self.emit(partition, lease.model, lease_id, amount_pico)

    @precondition(lambda self: any(machine.spool for machine in self.world.gateways.values()))
    @rule(data=st.data())
    def a_spool_is_delivered(self, data: st.DataObject) -> None:
        names = [name for name, machine in self.world.gateways.items() if machine.spool]
        machine = self.world.gateways[data.draw(st.sampled_from(names))]
        for event in machine.spool:
            self.emit(*event)
        machine.spool.clear()
        machine.lives_settled = True

    @rule(data=st.data())
    def a_gateway_dies_and_comes_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.gateways)))
        machine = self.world.gateways[name]
        for lease in self.world.leases.values():
            lease.over |= (lease.gateway, lease.boot) == (name, str(machine.life))
        machine.life += 1
        machine.lives_settled = not machine.spool

    @precondition(lambda self: self.usable())
    @rule(data=st.data(), copies=st.sampled_from((0, 1, 1, 2)), late=st.booleans())
    def close(self, data: st.DataObject, copies: int, late: bool) -> None:
        lease = self.world.leases[data.draw(st.sampled_from(self.usable()))]
        lease.over = True
        message = LeaseClose(
            lease_id=lease.asked.lease_id, gateway=lease.gateway, tenant="acme", boot=lease.boot, closed_at=self.now,
            settled_pico=dict.fromkeys(lease.asked.amounts_pico, lease.spent_pico),
        )  # fmt: skip
        for _ in range(copies):
            if late:
                self.world.closes.append(message)
            else:
                self.close_arrives(message)

    @precondition(lambda self: self.world.closes)
    @rule(data=st.data())
    def a_late_close_arrives(self, data: st.DataObject) -> None:
        self.close_arrives(self.world.closes.pop(data.draw(st.integers(0, len(self.world.closes) - 1))))

    def close_arrives(self, message: LeaseClose) -> None:
        self.state = ledger.close(self.state, self.in_force, message, self.now)
        self.heard_from(message.gateway, message.boot)

    # Spend reaches the ledger.

    @rule(partition=st.sampled_from((0, 1)), model=st.sampled_from(MODELS), amount_pico=st.integers(1, 60))
    def spend_without_a_lease(self, partition: int, model: str, amount_pico: int) -> None:
        self.tolerated_pico += amount_pico
        self.emit(partition, model, None, amount_pico)

    def emit(self, partition: int, model: str, lease_id: str | None, amount_pico: int) -> None:
        offset = self.world.offsets[partition]
        slot = int(self.now.timestamp()) // SPEND_SLOT_SECONDS * SPEND_SLOT_SECONDS
        entry = SpendEntry(
            feature="chat", model=model, lease_id=lease_id, slot_start=slot, amount_pico=amount_pico, events=1
        )  # fmt: skip
        self.world.offsets[partition] += 2
        record = SpendRecord(
            tenant="acme", currency="USD", partition=partition, first_offset=offset, last_offset=offset + 1,
            entries=(entry,), rated_at=self.now,
        )  # fmt: skip
        self.waiting[partition].append(record)
        self.world.sent.append(record)

    @rule(partition=st.sampled_from((0, 1)), count=st.integers(1, 4))
    def deliver(self, partition: int, count: int) -> None:
        """Partitions run at their own pace; within one, the order holds."""
        for record in self.waiting[partition][:count]:
            self.post(record)
            entry = record.entries[0]
            lease = self.world.leases.get(entry.lease_id or "")
            if lease is not None:
                lease.unposted_pico -= entry.amount_pico
        del self.waiting[partition][:count]

    def post(self, record: SpendRecord) -> None:
        self.state, alerts = ledger.post(self.state, self.in_force, record, self.now)
        self.alert_ids += [alert.id for alert in alerts]

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """A meter that starts again sends the ranges that it had sent, from some point on."""
        delivered = [record for record in self.world.sent if record not in self.waiting[record.partition]]
        before = self.state
        for record in delivered[data.draw(st.integers(0, len(delivered))) :]:
            self.post(record)
        assert before.postings == self.state.postings

    # Time, operators, and the keeper's own crashes.

    @rule(seconds=st.sampled_from((1, 20, 59, 61, 600, 3_600, 5 * 3_600)))
    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        for lease_id, lease in self.world.leases.items():
            known = self.state.leases.get(lease_id)
            has_ended = known is None or known.hold_ends_at <= self.now
            if has_ended and lease.unposted_pico and not lease.counted_late:
                # Its events took longer than the hold: all of it may come on top.
                lease.counted_late = True
                self.tolerated_pico += lease.spent_pico
            if has_ended:
                # The gateway knows when that is, and lets nothing run on.
                lease.over = True
        self.state = ledger.expire(self.state, self.now)

    @rule(data=st.data())
    def change_limits(self, data: st.DataObject) -> None:
        changed = tuple(
            budget.model_copy(update={"limit_pico": data.draw(st.integers(0, 500))}) for budget in self.budgets
        )  # fmt: skip
        self.budgets = changed
        for budget in changed:
            self.limits_max_pico[budget.id] = max(self.limits_max_pico[budget.id], budget.limit_pico)
        # What stands above a limit that was lowered, and what was tolerated before and is still on its way.
        self.tolerated_pico = max(self.tolerated_pico, self.excess_pico() + self.coming_pico())
        self.state, alerts = ledger.review(self.state, self.in_force, self.now)
        self.alert_ids += [alert.id for alert in alerts]

    @rule()
    def restart(self) -> None:
        """The keeper starts again from its stored state."""
        self.state = TenantLedger.model_validate_json(self.state.model_dump_json(exclude_defaults=True))

    @invariant()
    def nothing_but_late_and_unleased_spend_stands_above_a_limit(self) -> None:
        assert self.excess_pico() <= self.tolerated_pico

    @invariant()
    def nor_does_it_in_periods_that_are_over(self) -> None:
        for budget_id, periods in self.state.postings.items():
            for posting in periods.values():
                assert posting.spent_pico <= self.limits_max_pico[budget_id] + self.tolerated_pico

    @invariant()
    def what_a_gateway_may_still_spend_is_charged(self) -> None:
        for lease_id in self.usable():
            lease, known = self.world.leases[lease_id], self.state.leases[lease_id]
            for name in lease.asked.amounts_pico:
                assert known.outstanding_pico(name, self.now) >= lease.left_pico + lease.unposted_pico

    @invariant()
    def each_alert_once(self) -> None:
        assert len(set(self.alert_ids)) == len(self.alert_ids)

    @invariant()
    def spent_is_the_sum_of_what_was_delivered(self) -> None:
        delivered = [record for record in self.world.sent if record not in self.waiting[record.partition]]
        for at in ledger.positions(self.state, self.in_force, self.now).positions:
            running = period_containing(self.now, at.budget.period, ZONE)
            expected = sum(
                entry.amount_pico
                for record in delivered
                for entry in record.entries
                if at.budget.covers(entry.feature, entry.model)
                and datetime.fromtimestamp(entry.slot_start, UTC) in running
            )
            assert at.spent_pico == expected

    @invariant()
    def nothing_stays_reserved_without_a_reason(self) -> None:
        held = sum(lease.granted_pico["all"] for lease in self.state.leases.values() if lease.holds(self.now))
        assert self.state.leased_pico("all", self.now) <= held

    @invariant()
    def nothing_stays_reserved_for_ever(self) -> None:
        terms = self.in_force.terms
        horizon = self.now + terms.lease_timeout + terms.settle_timeout
        assert self.state.leased_pico("all", horizon) == 0


TestBudgets = Budgets.TestCase
TestBudgets.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
