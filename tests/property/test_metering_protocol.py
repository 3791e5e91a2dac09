"""The meter's protocol under crashes at any step, lost indexes, rebalances within an insert, and two owners of which one is
stale: every law holds.

And it holds for a reason: with any one care left out, the same machine finds what goes wrong.
"""

import json
from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.property.metering_model import ALL, Answer, Cluster, Protocol, Step, Worker
from tests.usage_events import usage

WHICH = st.sampled_from([0, 1])
PARTITION = st.sampled_from(list(ALL))
SIZES = st.integers(1, 6)
OWNERS = st.tuples(WHICH, WHICH)
ANSWERS = st.sampled_from(Answer)
UNDER_WAY = st.sampled_from([Step.CHECK, Step.INSERT])


class Metering(RuleBasedStateMachine):
    """Two partitions, and two workers that may hold them, each with an index of its own."""

    protocol: ClassVar[Protocol] = Protocol()

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster(self.protocol)
        self.cluster.take_over(self.cluster.workers[0])

    @rule(partition=PARTITION, number=st.integers(0, 4), body=st.integers(1, 2), model=st.sampled_from("mmmu"))
    def send(self, partition: int, number: int, body: int, model: str) -> None:
        """Few identities and few bodies, so that repeats and conflicts are common. An identity stays in its partition."""
        event = usage(f"e{number}-{partition}", model=model, tokens={"uncached_input": 3, "output": body})
        self.cluster.log[partition].append(json.dumps(event).encode())

    @rule(partition=PARTITION, payload=st.sampled_from([b"{", b"\xff", b"{}"]))
    def send_bad(self, partition: int, payload: bytes) -> None:
        self.cluster.log[partition].append(payload)

    @rule(partition=PARTITION, number=st.integers(5, 90), count=SIZES)
    def send_many(self, partition: int, number: int, count: int) -> None:
        for place in range(count):
            event = usage(f"e{number + 100 * place}-{partition}", tokens={"uncached_input": 3, "output": 1})
            self.cluster.log[partition].append(json.dumps(event).encode())

    @rule(which=WHICH, size=SIZES)
    def fetch(self, which: int, size: int) -> None:
        self.cluster.fetch(self.cluster.workers[which], size)

    @rule(which=WHICH)
    def begin(self, which: int) -> None:
        self.cluster.begin(self.cluster.workers[which])

    @rule(which=WHICH)
    def fold_ahead(self, which: int) -> None:
        self.cluster.fold_ahead(self.cluster.workers[which])

    @rule(which=WHICH, repeated=st.booleans())
    def advance(self, which: int, repeated: bool) -> None:
        self.cluster.advance(self.cluster.workers[which], repeated=repeated)

    @rule(which=WHICH, size=SIZES)
    def write_whole(self, which: int, size: int) -> None:
        worker = self.cluster.workers[which]
        self.cluster.fetch(worker, size)
        for _partition in ALL:
            self.cluster.begin(worker)
            self._advance_to(worker, Step.COMMIT)

    @rule(which=WHICH, partition=PARTITION, sizes=st.lists(SIZES, min_size=2, max_size=4))
    def write_and_read_ahead(self, which: int, partition: int, sizes: list[int]) -> None:
        """Each batch is read and folded while the one before is being inserted; one event comes again and again."""
        worker, number = self.cluster.workers[which], len(self.cluster.log[partition])
        for size in sizes:
            self.send_many(partition, number, 1)
            self._be_within_an_insert(worker, size, Step.INSERT)
            self._advance_to(worker, Step.COMMIT)

    @rule(which=WHICH, sizes=st.tuples(SIZES, SIZES), stops=UNDER_WAY, owners=OWNERS, answer=ANSWERS)
    def rebalance_within_an_insert(
        self, which: int, sizes: tuple[int, int], stops: Step, owners: tuple[int, int], answer: Answer
    ) -> None:
        """One batch is under way, one is folded ahead and more is held when the partitions are dealt anew."""
        worker = self.cluster.workers[which]
        self._be_within_an_insert(worker, sizes[0], stops)
        self.cluster.fetch(worker, sizes[1])
        self.cluster.rebalance(owners, answer)

    @rule(which=WHICH, sizes=st.tuples(SIZES, SIZES), stops=UNDER_WAY, size=SIZES, back=OWNERS)
    def lose_within_an_insert_and_win_back(
        self, which: int, sizes: tuple[int, int], stops: Step, size: int, back: tuple[int, int]
    ) -> None:
        """The other worker writes some of what this one had ahead, and then gives all of it back, or some."""
        worker = self.cluster.workers[which]
        for partition in ALL:
            self.send_many(partition, len(self.cluster.log[partition]), 4)
        self._be_within_an_insert(worker, sizes[0], stops)
        self.cluster.fetch(worker, sizes[1], (1 - which, 1 - which))
        self.write_whole(1 - which, size)
        self.cluster.rebalance(back, Answer.STORED)

    @rule(which=WHICH, sizes=st.tuples(SIZES, SIZES), owners=OWNERS, answer=ANSWERS)
    def rebalance_within_a_fetch(
        self, which: int, sizes: tuple[int, int], owners: tuple[int, int], answer: Answer
    ) -> None:
        worker = self.cluster.workers[which]
        for partition in ALL:
            self.send_many(partition, len(self.cluster.log[partition]), sum(sizes))
        self._be_within_an_insert(worker, sizes[0], Step.CHECK)
        self.cluster.fetch(worker, sizes[1], owners, answer)

    @rule(which=WHICH, size=SIZES, partition=PARTITION)
    def insert_fails_and_is_tried_again(self, which: int, size: int, partition: int) -> None:
        """Meanwhile nothing may be held, so the consumer goes back by a message that it has just given out."""
        worker = self.cluster.workers[which]
        self.send_many(partition, len(self.cluster.log[partition]), 3 * size)
        self._be_within_an_insert(worker, size, Step.CHECK)
        self.cluster.seek(worker, partition)
        self.cluster.fetch(worker, 3 * size)

    @rule(which=WHICH, sizes=st.tuples(SIZES, SIZES), owners=OWNERS)
    def rebalance_after_a_late_block(self, which: int, sizes: tuple[int, int], owners: tuple[int, int]) -> None:
        """A stale owner's block arrives first, and then a rebalance meets the new owner within its insert."""
        before, after = self.cluster.workers[which], self.cluster.workers[1 - which]
        for partition in ALL:
            self.send_many(partition, len(self.cluster.log[partition]), max(sizes))
        self._be_within_an_insert(before, sizes[0], Step.CHECK)
        self.cluster.take_over(after)
        self._be_within_an_insert(after, sizes[1], Step.CHECK)
        self._advance_to(before, Step.INSERT)
        self.cluster.rebalance(owners, Answer.STORED)

    @rule(which=WHICH, sizes=st.tuples(SIZES, SIZES), stops=st.sampled_from(Step), meets=st.sampled_from(Step))
    def overtake(self, which: int, sizes: tuple[int, int], stops: Step, meets: Step) -> None:
        """A worker stands still after a step, the other takes over and gets as far as another; then the first goes on."""
        before, after = self.cluster.workers[which], self.cluster.workers[1 - which]
        self.write_whole(which, sizes[1])
        for partition in ALL:
            self.send_many(partition, len(self.cluster.log[partition]), max(sizes))
        self._be_within_an_insert(before, sizes[0], stops)
        self.cluster.take_over(after)
        self._be_within_an_insert(after, sizes[1], meets)
        for worker in (before, after):
            self._advance_to(worker, Step.COMMIT)

    def _be_within_an_insert(self, worker: Worker, size: int, stops: Step) -> None:
        """A batch of at most that many messages is that far, and another is folded behind it."""
        self.cluster.fetch(worker, size)
        self.cluster.begin(worker)
        self._advance_to(worker, min(stops, Step.INSERT, key=lambda step: step.value))
        self.cluster.fetch(worker, size)
        self.cluster.fold_ahead(worker)
        self._advance_to(worker, stops)

    def _advance_to(self, worker: Worker, until: Step) -> None:
        while worker.writing is not None and (worker.writing.done is None or worker.writing.done.value < until.value):
            self.cluster.advance(worker)

    @rule(which=WHICH)
    def take_over(self, which: int) -> None:
        """A new owner. The one before, where it lives, is stale and has not noticed."""
        self.cluster.take_over(self.cluster.workers[which])

    @rule(owners=OWNERS, answer=ANSWERS)
    def rebalance(self, owners: tuple[int, int], answer: Answer) -> None:
        self.cluster.rebalance(owners, answer)

    @rule()
    def late_inserts_arrive(self) -> None:
        self.cluster.late_inserts_arrive()

    @rule(which=WHICH, loses_index=st.booleans(), arrives_late=st.booleans())
    def crash(self, which: int, loses_index: bool, arrives_late: bool) -> None:
        worker = self.cluster.workers[which]
        self.cluster.crash(worker, arrives_late)
        if loses_index:
            worker.index = type(worker.index)()

    @rule(which=WHICH, size=SIZES, stops=UNDER_WAY, loses_index=st.booleans(), arrives_late=st.booleans())
    def crash_with_a_batch_ahead(
        self, which: int, size: int, stops: Step, loses_index: bool, arrives_late: bool
    ) -> None:
        self._be_within_an_insert(self.cluster.workers[which], size, stops)
        self.crash(which, loses_index, arrives_late)

    @precondition(lambda self: not self.cluster.late and not any(worker.stale for worker in self.cluster.workers))
    @rule(which=WHICH, size=SIZES)
    def server_dies_within_an_insert(self, which: int, size: int) -> None:
        """The block is in the table and not in the rollup; the worker dies with it."""
        worker = self.cluster.workers[which]
        self.cluster.fetch(worker, size)
        self.cluster.begin(worker)
        if worker.writing is None or worker.writing.done not in (None, Step.CHECK):
            return
        self._advance_to(worker, Step.CHECK)
        if worker.writing is not None:
            self.cluster.advance(worker, cut=True)
            self.cluster.crash(worker, False)

    @rule(which=WHICH)
    def settle(self, which: int) -> None:
        """Nothing happens any more: late inserts have arrived, one worker owns all and writes all there is."""
        cluster = self.cluster
        cluster.late_inserts_arrive()
        for worker in cluster.workers:
            self._advance_to(worker, Step.COMMIT)
        owner = cluster.workers[which]
        cluster.take_over(owner)
        turns, sent = 0, sum(map(len, cluster.log))
        while owner.next or len(owner.held) or any(owner.fetched[one] < len(cluster.log[one]) for one in ALL):
            cluster.fetch(owner, 5)
            cluster.begin(owner)
            self._advance_to(owner, Step.COMMIT)
            turns += 1
            assert turns <= 100 + 10 * sent, "it never gets to the end of the log"
        for partition in ALL:
            warehouse = cluster.warehouses[partition]
            metered = sum(warehouse.column("metered_pico"))
            assert warehouse.column("offset") == list(range(len(cluster.log[partition])))
            assert cluster.budgets[partition].told_pico == metered, "spend is what is stored"
            rolled = sum(sum(columns["metered_pico"]) for columns in warehouse.rolled.values())
            assert rolled == metered, "the rollup is what is stored"

    def teardown(self) -> None:
        self.settle(0)

    @invariant()
    def every_message_is_one_row_in_order(self) -> None:
        for warehouse in self.cluster.warehouses:
            offsets = warehouse.column("offset")
            assert offsets == list(range(len(offsets)))

    @invariant()
    def every_identity_counts_once(self) -> None:
        for warehouse in self.cluster.warehouses:
            named = zip(warehouse.column("disposition"), warehouse.column("event_id"), strict=True)
            counted = Counter(event_id for disposition, event_id in named if disposition in {"rated", "unrated"})
            assert all(times == 1 for times in counted.values()), counted
            assert set(counted) == {event_id for event_id in warehouse.column("event_id") if event_id}

    @invariant()
    def no_spend_without_rows(self) -> None:
        for warehouse, budgets in zip(self.cluster.warehouses, self.cluster.budgets, strict=True):
            assert budgets.told_pico <= sum(warehouse.column("metered_pico"))


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
    # While an insert is under way, the next batch is fetched and folded
    {"forgets_what_was_folded_ahead": False},
    {"forgets_what_was_fetched_ahead": False},
    {"folds_ahead_as_if_marked": False},
    {"marks_nothing_ahead": False},
    {"inserts_in_turn": False},
    {"counts_what_is_in_hand": False},
    {"counts_only_what_stands": False},
    {"looks_before_handing_over": False},
    {"writes_only_where_it_stands": False},
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
