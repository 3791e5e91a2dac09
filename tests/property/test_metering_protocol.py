"""The meter's protocol under crashes at any step, lost indexes, and two owners of which one is stale: every law holds.

And it holds for a reason: with any one care left out, the same machine finds what goes wrong.
"""

import json
from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.property.metering_model import Cluster, Protocol, Step, Worker
from tests.usage_events import usage

WHICH = st.sampled_from([0, 1])
SIZES = st.integers(1, 6)


class Metering(RuleBasedStateMachine):
    """One partition, and two workers that may hold it, each with an index of its own."""

    protocol: ClassVar[Protocol] = Protocol()

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster(self.protocol)
        self.cluster.assign(self.cluster.workers[0])

    @rule(number=st.integers(0, 4), body=st.integers(1, 2), model=st.sampled_from(["m", "m", "m", "unpriced"]))
    def send(self, number: int, body: int, model: str) -> None:
        """Few identities and few bodies, so that repeats and conflicts are common."""
        event = usage(f"e{number}", model=model, tokens={"uncached_input": 3, "output": body})
        self.cluster.log.append(json.dumps(event).encode())

    @rule(payload=st.sampled_from([b"{", b"\xff", b"{}"]))
    def send_bad(self, payload: bytes) -> None:
        self.cluster.log.append(payload)

    @rule(number=st.integers(5, 90), count=SIZES)
    def send_many(self, number: int, count: int) -> None:
        for place in range(count):
            event = usage(f"e{number + 100 * place}", tokens={"uncached_input": 3, "output": 1})
            self.cluster.log.append(json.dumps(event).encode())

    @rule(which=WHICH, size=SIZES)
    def begin(self, which: int, size: int) -> None:
        self.cluster.begin(self.cluster.workers[which], size)

    @rule(which=WHICH, repeated=st.booleans())
    def advance(self, which: int, repeated: bool) -> None:
        self.cluster.advance(self.cluster.workers[which], repeated=repeated)

    @rule(which=WHICH, size=SIZES)
    def write_whole(self, which: int, size: int) -> None:
        worker = self.cluster.workers[which]
        self.cluster.begin(worker, size)
        while worker.batch is not None:
            self.cluster.advance(worker)

    @rule(which=WHICH, size=SIZES)
    def read_ahead(self, which: int, size: int) -> None:
        self.cluster.read_ahead(self.cluster.workers[which], size)

    @rule(which=WHICH, sizes=st.lists(SIZES, min_size=2, max_size=4))
    def write_and_read_ahead(self, which: int, sizes: list[int]) -> None:
        """Each batch is read and folded while the one before is being inserted; one event comes again and again."""
        worker, number = self.cluster.workers[which], len(self.cluster.log)
        for size in sizes:
            self.send_many(number, 1)
            self.cluster.begin(worker, size)
            self._advance_to(worker, Step.INSERT)
            self.cluster.read_ahead(worker, size)
            self._advance_to(worker, Step.COMMIT)

    @rule(which=WHICH, sizes=st.tuples(SIZES, SIZES), stops=st.sampled_from(Step), back=st.booleans())
    def rebalance(self, which: int, sizes: tuple[int, int], stops: Step, back: bool) -> None:
        """The partition goes to the other worker, or comes back at once, while something was read ahead."""
        worker = self.cluster.workers[which]
        self.cluster.begin(worker, sizes[0])
        self._advance_to(worker, stops)
        self.cluster.read_ahead(worker, sizes[1])
        self.cluster.hand_over(worker, worker if back else self.cluster.workers[1 - which])

    @rule(which=WHICH, sizes=st.tuples(SIZES, SIZES), stops=st.sampled_from(Step), meets=st.sampled_from(Step))
    def overtake(self, which: int, sizes: tuple[int, int], stops: Step, meets: Step) -> None:
        """A worker stands still after a step, the other takes over and gets as far as another; then the first goes on."""
        before, after = self.cluster.workers[which], self.cluster.workers[1 - which]
        self.write_whole(which, sizes[1])
        self.send_many(len(self.cluster.log), max(sizes))
        self.cluster.begin(before, sizes[0])
        self._advance_to(before, stops)
        self.cluster.assign(after)
        self.cluster.begin(after, sizes[1])
        self._advance_to(after, meets)
        for worker in (before, after):
            self._advance_to(worker, Step.COMMIT)

    def _advance_to(self, worker: Worker, until: Step) -> None:
        while worker.batch is not None and (worker.batch.done is None or worker.batch.done.value < until.value):
            self.cluster.advance(worker)

    @rule(which=WHICH)
    def assign(self, which: int) -> None:
        """A new owner. The one before, where it lives, is stale and has not noticed."""
        self.cluster.assign(self.cluster.workers[which])

    @rule(which=WHICH, loses_index=st.booleans())
    def crash(self, which: int, loses_index: bool) -> None:
        worker = self.cluster.workers[which]
        worker.crash()
        if loses_index:
            worker.index = type(worker.index)()

    @precondition(lambda self: not any(worker.stale for worker in self.cluster.workers))
    @rule(which=WHICH, size=SIZES)
    def server_dies_within_an_insert(self, which: int, size: int) -> None:
        """The block is in the table and not in the rollup; the worker dies with it, or tries again."""
        worker = self.cluster.workers[which]
        self.cluster.begin(worker, size)
        if worker.batch is None or worker.batch.done not in (None, Step.CHECK):
            return
        if worker.batch.done is None:
            self.cluster.advance(worker)
        if worker.batch is not None:
            self.cluster.advance(worker, cut=True)
            worker.crash()

    @rule(which=WHICH)
    def settle(self, which: int) -> None:
        """Nothing happens any more: late inserts have arrived, one worker owns the partition and writes all there is."""
        cluster = self.cluster
        for worker in cluster.workers:
            while worker.batch is not None:
                cluster.advance(worker)
        owner = cluster.workers[which]
        cluster.assign(owner)
        steps = 0
        while owner.batch is not None or (owner.position or 0) < len(cluster.log):
            cluster.begin(owner, 5)
            cluster.advance(owner)
            steps += 1
            assert steps <= 100 + 10 * len(cluster.log), "it never gets to the end of the log"
        warehouse = cluster.warehouse
        assert warehouse.column("offset") == list(range(len(cluster.log)))
        assert cluster.told_pico == sum(warehouse.column("metered_pico")), "spend is what is stored"
        rolled = sum(sum(columns["metered_pico"]) for columns in warehouse.rolled.values())
        assert rolled == sum(warehouse.column("metered_pico")), "the rollup is what is stored"

    def teardown(self) -> None:
        self.settle(0)

    @invariant()
    def every_message_is_one_row_in_order(self) -> None:
        offsets = self.cluster.warehouse.column("offset")
        assert offsets == list(range(len(offsets)))

    @invariant()
    def every_identity_counts_once(self) -> None:
        warehouse = self.cluster.warehouse
        named = zip(warehouse.column("disposition"), warehouse.column("event_id"), strict=True)
        counted = Counter(event_id for disposition, event_id in named if disposition in {"rated", "unrated"})
        assert all(times == 1 for times in counted.values()), counted
        assert set(counted) == {event_id for event_id in warehouse.column("event_id") if event_id}

    @invariant()
    def no_spend_without_rows(self) -> None:
        assert self.cluster.told_pico <= sum(self.cluster.warehouse.column("metered_pico"))


Metering.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestMetering = Metering.TestCase

PLANTED: list[dict[str, Any]] = [
    {"token": "none"},
    {"token": "range"},  # two owners from the same offset, with batches of different length
    {"reads_warehouse_on_assignment": False},
    {"commits_after_insert": False, "reads_warehouse_on_assignment": False},
    {"marks_after_insert": False},
    {"confirms_first_insert": False},
    {"looks_after_insert": False},
    {"repeats_last_batch": False},
    {"repeats_last_spend": False},
    {"rebuilds_index": False},
    {"forgets_what_was_read_ahead": False},  # a batch of a partition that was lost is inserted when it comes back
    {"folds_ahead_as_if_marked": False},
]


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: ",".join(f"{name}={value}" for name, value in bug.items()))
def test_a_planted_bug_is_found(bug: dict[str, Any]) -> None:
    class Bugged(Metering):
        protocol = Protocol(**bug)

    quick = settings(
        max_examples=500,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Bugged, settings=quick)
