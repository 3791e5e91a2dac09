"""The law of budgets under anything that a network does: posted + leased never passes the limit by a grant."""

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
GATEWAYS = ("g1", "g2", "g3")
MODELS = ("large", "small")
START = datetime(2026, 11, 24, 20, 0, tzinfo=UTC)


@dataclass
class HeldLease:
    """A lease as its gateway sees it: what it may still admit, and what it has spent."""

    gateway: str
    model: str
    asked: LeaseRequest
    left_pico: int
    expires_at: datetime
    spent_pico: int = 0
    unposted_pico: int = 0
    closed: bool = False


@dataclass
class World:
    """What is true, kept beside what the ledger believes."""

    leases: dict[str, HeldLease] = field(default_factory=dict)
    sent: list[SpendRecord] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)


class Budgets(RuleBasedStateMachine):
    """Gateways that keep to their leases, a meter that repeats itself, operators who change limits, and time that passes."""

    @initialize(limit_pico=st.integers(10, 400), small_pico=st.integers(5, 200))
    def begin(self, limit_pico: int, small_pico: int) -> None:
        self.now = START
        self.world = World()
        self.waiting: dict[int, list[SpendRecord]] = {0: [], 1: []}
        self.state = TenantLedger(tenant="acme")
        self.alert_ids: list[str] = []
        self.all_under_lease = True
        self.budgets: tuple[Budget, ...] = (
            Budget(id="all", tenant="acme", limit_pico=limit_pico, period=PeriodKind.DAY, soft_thresholds_bps=(5_000, 8_000)),
            Budget(id="small", tenant="acme", model="small", limit_pico=small_pico, period=PeriodKind.HOUR),
        )  # fmt: skip

    @property
    def in_force(self) -> Rules:
        return Rules(self.budgets, ZONE)

    def excess_pico(self) -> int:
        """By how much posted + leased stands above the limit, at most, over all budgets."""
        standing = ledger.positions(self.state, self.in_force, self.now).positions
        return max(at.spent_pico + at.leased_pico - at.budget.limit_pico for at in standing)

    @rule(
        gateway=st.sampled_from(GATEWAYS),
        model=st.sampled_from(MODELS),
        asked_pico=st.integers(1, 120),
        greedy=st.booleans(),
    )
    def ask(self, gateway: str, model: str, asked_pico: int, greedy: bool) -> None:
        ids = ["all", "small"] if model == "small" else ["all"]
        asked = LeaseRequest(
            lease_id=f"lease{len(self.world.leases)}", gateway=gateway, tenant="acme", requested_at=self.now,
            amounts_pico=dict.fromkeys(ids, asked_pico), needed_pico=dict.fromkeys(ids, 1) if greedy else {},
        )  # fmt: skip
        grant = self.send(asked)
        assert set(grant.amounts_pico) == set(ids)
        assert all(amount <= asked_pico for amount in grant.amounts_pico.values())
        left_pico = min(grant.amounts_pico.values())
        assert (left_pico > 0) == any(grant.amounts_pico.values()), "all are granted, or none"
        if left_pico:
            self.world.leases[asked.lease_id] = HeldLease(gateway, model, asked, left_pico, grant.expires_at)

    def send(self, asked: LeaseRequest) -> LeaseGrant:
        before = self.state
        self.state, grant = ledger.request(self.state, self.in_force, asked, self.now)
        if any(grant.amounts_pico.values()) and asked.lease_id not in before.leases:
            for at in ledger.positions(self.state, self.in_force, self.now).positions:
                if at.budget.id in grant.amounts_pico:
                    assert at.spent_pico + at.leased_pico <= at.budget.limit_pico
        self.heard_from(asked.gateway)
        return grant

    def heard_from(self, gateway: str) -> None:
        for lease in self.world.leases.values():
            if lease.gateway == gateway and lease.expires_at > self.now:
                lease.expires_at = self.now + self.in_force.terms.lease_timeout

    def open_leases(self) -> list[str]:
        return [
            lease_id for lease_id, lease in self.world.leases.items() if not lease.closed and lease.expires_at > self.now
        ]  # fmt: skip

    @precondition(lambda self: self.world.leases)
    @rule(data=st.data())
    def repeat_a_request(self, data: st.DataObject) -> None:
        lease = self.world.leases[data.draw(st.sampled_from(sorted(self.world.leases)))]
        is_open = not lease.closed and lease.expires_at > self.now
        first = self.state.leases.get(lease.asked.lease_id)
        grant = self.send(lease.asked)
        if is_open and first is not None:
            assert grant.amounts_pico == first.granted_pico
        else:
            assert not any(grant.amounts_pico.values())

    @precondition(lambda self: self.open_leases())
    @rule(data=st.data(), partition=st.sampled_from((0, 1)))
    def spend(self, data: st.DataObject, partition: int) -> None:
        lease_id = data.draw(st.sampled_from(self.open_leases()))
        lease = self.world.leases[lease_id]
        amount_pico = data.draw(st.integers(0, lease.left_pico))
        lease.left_pico -= amount_pico
        lease.spent_pico += amount_pico
        lease.unposted_pico += amount_pico
        self.emit(partition, lease.model, lease_id, amount_pico)

    @rule(partition=st.sampled_from((0, 1)), model=st.sampled_from(MODELS), amount_pico=st.integers(1, 60))
    def spend_without_a_lease(self, partition: int, model: str, amount_pico: int) -> None:
        self.all_under_lease = False
        self.emit(partition, model, None, amount_pico)

    def emit(self, partition: int, model: str, lease_id: str | None, amount_pico: int) -> None:
        offset = self.world.offsets.get(partition, 0)
        slot = int(self.now.timestamp()) // SPEND_SLOT_SECONDS * SPEND_SLOT_SECONDS
        entry = SpendEntry(
            feature="chat", model=model, lease_id=lease_id, slot_start=slot, amount_pico=amount_pico, events=1
        )  # fmt: skip
        self.world.offsets[partition] = offset + 2
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

    @precondition(lambda self: self.open_leases())
    @rule(data=st.data(), twice=st.booleans())
    def close(self, data: st.DataObject, twice: bool) -> None:
        lease_id = data.draw(st.sampled_from(self.open_leases()))
        lease = self.world.leases[lease_id]
        lease.closed = True
        settled = dict.fromkeys(lease.asked.amounts_pico, lease.spent_pico)
        message = LeaseClose(
            lease_id=lease_id, gateway=lease.gateway, tenant="acme", settled_pico=settled, closed_at=self.now
        )  # fmt: skip
        for _ in range(1 + twice):
            self.state = ledger.close(self.state, self.in_force, message, self.now)
        self.heard_from(lease.gateway)

    @rule(seconds=st.sampled_from((1, 20, 59, 61, 600, 3_600, 5 * 3_600)))
    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        if any(lease.unposted_pico and self.is_over(lease_id) for lease_id, lease in self.world.leases.items()):
            # What a silent gateway had spent comes after its lease was freed: known late, so it counts as unleased.
            self.all_under_lease = False
        self.state = ledger.expire(self.state, self.now)

    def is_over(self, lease_id: str) -> bool:
        lease = self.state.leases.get(lease_id)
        return lease is None or lease.expires_at <= self.now

    @rule(data=st.data())
    def change_limits(self, data: st.DataObject) -> None:
        changed = tuple(
            budget.model_copy(update={"limit_pico": data.draw(st.integers(0, 500))}) for budget in self.budgets
        )  # fmt: skip
        if any(new.limit_pico < old.limit_pico for new, old in zip(changed, self.budgets, strict=True)):
            self.all_under_lease = False
        self.budgets = changed
        self.state, alerts = ledger.review(self.state, self.in_force, self.now)
        self.alert_ids += [alert.id for alert in alerts]

    @rule()
    def restart(self) -> None:
        """The keeper starts again from its stored state."""
        self.state = TenantLedger.model_validate_json(self.state.model_dump_json())

    @invariant()
    def never_over_the_limit_while_all_spend_is_under_leases(self) -> None:
        if self.all_under_lease:
            assert self.excess_pico() <= 0

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


TestBudgets = Budgets.TestCase
TestBudgets.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
