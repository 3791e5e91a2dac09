"""A model of the meter's protocol: two partitions, two workers that may both believe they own them, a warehouse, budgets.

The folding, the columns, the spend records, the index and what is held before it is written are the real ones; around them
stands the world of `metering_world`. A `Protocol` says in which ways a worker is careful; each care left out is a planted bug.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal, cast

from confluent_kafka import Message

from taximeter_streams.meter.ahead import IndexAhead
from taximeter_streams.meter.batch import Arrivals, Place, known_of
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.dedupe import DedupeIndex, KnownIdentities, MemoryIndex, packed_entry
from taximeter_streams.meter.folding import Folded, examine_all, fold
from taximeter_streams.meter.holding import Held
from taximeter_streams.meter.pricing import Pricing
from tests.property import metering_world as world
from tests.property.metering_world import LOG_ID, PARTITIONS, SNAPSHOT, Columns, SpendReader, Token, Warehouse

ALL = range(PARTITIONS)


@dataclass(frozen=True)
class Protocol:
    """What a worker takes care of."""

    token: Literal["first", "range", "none"] = "first"
    """What names a block, so that the server drops another under the same name."""
    reads_warehouse_on_assignment: bool = True
    """Where to go on is asked of the warehouse, not of Kafka's committed offset."""
    commits_after_insert: bool = True
    marks_after_insert: bool = True
    confirms_first_insert: bool = True
    """The first block since an assignment is looked for in the warehouse before it counts as stored."""
    looks_after_insert: bool = True
    """A pause past the session is looked for after the insert, too."""
    repeats_last_batch: bool = True
    """On assignment the last batch is inserted again, unless this index knows that it succeeded."""
    repeats_last_spend: bool = True
    rebuilds_index: bool = True
    forgets_what_was_folded_ahead: bool = True
    """What was read and folded ahead goes with its partition."""
    forgets_what_was_fetched_ahead: bool = True
    """So does what was only fetched."""
    folds_ahead_as_if_marked: bool = True
    """What is folded ahead knows of the batch in hand, which is not marked yet."""
    marks_nothing_ahead: bool = True
    """What is folded ahead is not in the index before it is inserted."""
    inserts_in_turn: bool = True
    """What was folded ahead is inserted when the batch before it is done, not while its insert is under way."""
    counts_what_is_in_hand: bool = True
    """After an insert that failed the consumer is put back behind all that is held, not behind the last batch that is done."""
    looks_before_handing_over: bool = True
    """A batch that a rebalance meets in its insert counts as stored only if no pause and no late block stands against it."""
    counts_only_what_stands: bool = True
    """But not behind a batch whose partition has gone and come back behind its beginning: it will not be written."""
    writes_only_where_it_stands: bool = True
    """A batch whose partition is gone, or came back somewhere else, is not written."""


class Step(Enum):
    """The steps of a batch, in order. After the check its insert is under way, until the worker has looked at the answer."""

    CHECK = auto()
    INSERT = auto()
    LOOK = auto()
    MARK = auto()
    SPEND = auto()
    COMMIT = auto()


class Answer(Enum):
    """What becomes of an insert that is under way when its worker must wait for it."""

    STORED = auto()
    FAILED = auto()
    LATE = auto()
    """It fails for its sender and reaches the server later."""


@dataclass
class Work:
    """A batch that was taken out of what is held."""

    partition: int
    arrivals: Arrivals
    position: int = -1
    folded: Folded | None = None
    columns: Columns = field(default_factory=dict)
    done: Step | None = None

    @property
    def under_way(self) -> bool:
        """Whether its insert is."""
        return self.done in (Step.CHECK, Step.INSERT)


@dataclass
class Worker:
    """A worker with an index of its own. `offsets` names the partitions that it takes for its own."""

    index: DedupeIndex = field(default_factory=MemoryIndex)
    offsets: dict[int, int] = field(default_factory=dict)
    fetched: dict[int, int] = field(default_factory=dict)
    """Where its consumer goes on, of each partition."""
    stale: bool = False
    """Its session has ended and it does not know. It finds out where it looks at its clock."""
    unconfirmed: set[int] = field(default_factory=set)
    held: Held = field(default_factory=Held)
    writing: Work | None = None
    next: Work | None = None
    """What comes behind the batch in hand. It may be folded already."""


class Cluster:
    """Log, warehouse, readers of spend, committed offsets, two workers, and inserts that will arrive late."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.log: list[list[bytes]] = [[] for _ in ALL]
        self.warehouses = [Warehouse(partition) for partition in ALL]
        self.budgets = [SpendReader() for _ in ALL]
        self.committed = [0 for _ in ALL]
        self.late: list[tuple[int, Token, Columns]] = []
        self.workers = [Worker(), Worker()]

    # What the group does

    def take_over(self, worker: Worker) -> None:
        """This worker gets everything; the other one's session has ended, and it has not noticed."""
        for other in self.workers:
            other.stale = other.stale or (other is not worker and bool(other.offsets))
        self._finish_what_was_looked_at(worker)
        worker.stale = False
        self._assign(worker, list(ALL), Answer.STORED)

    def rebalance(self, owners: Sequence[int], answer: Answer) -> None:
        """Every worker hears that its partitions go, and then which it has. `answer`: of inserts that are under way."""
        for worker in self.workers:
            self._finish_what_was_looked_at(worker)
            self._revoke(worker, answer)
            worker.stale = False
        for number, worker in enumerate(self.workers):
            self._assign(worker, [partition for partition in ALL if owners[partition] == number], answer)

    def late_inserts_arrive(self) -> None:
        while self.late:
            partition, token, columns = self.late.pop()
            self.warehouses[partition].insert(token, columns)

    def crash(self, worker: Worker, arrives_late: bool) -> None:
        """Whatever was in memory is gone; an insert that was under way arrives later, or never."""
        if worker.writing is not None and worker.writing.done is Step.CHECK and arrives_late:
            self._send_late(worker.writing)
        worker.offsets, worker.fetched, worker.held = {}, {}, Held()
        worker.writing, worker.next, worker.stale = None, None, False

    # What a worker does

    def fetch(
        self, worker: Worker, size: int, owners: Sequence[int] | None = None, answer: Answer = Answer.STORED
    ) -> None:
        """Fetch at most so many messages of each partition; `owners`: a rebalance falls into it."""
        if worker.writing is not None and not worker.writing.under_way:
            return
        if worker.stale:
            self._rejoin(worker)
        messages = [
            world.Message(partition, at, payload)
            for partition, start in worker.fetched.items()
            for at, payload in enumerate(self.log[partition][start : start + size], start)
        ]
        for message in messages:
            worker.fetched[message.place] = message.at + 1
        if owners is not None:
            self.rebalance(owners, answer)
            # librdkafka throws away what it had of a partition that is assigned anew, but not of one that is gone.
            messages = [message for message in messages if message.place not in worker.fetched]
        worker.held.take(cast("list[Message]", messages), self._expected(worker), 0.0)

    def fold_ahead(self, worker: Worker) -> None:
        """Fold what comes behind the batch in hand, while its insert is under way."""
        writing = worker.writing
        if writing is None or not writing.under_way or writing.folded is None:
            return
        worker.next = worker.next or self._taken(worker)
        if worker.next is None or worker.next.folded is not None:
            return
        counted = writing.folded.counted(Place(LOG_ID, writing.partition).mark)
        marked = IndexAhead(
            worker.index, [identity for identity, _ in counted], [packed_entry(entry) for _, entry in counted]
        )
        self._fold(worker.next, marked if self.protocol.folds_ahead_as_if_marked else worker.index)
        if not self.protocol.marks_nothing_ahead:
            self._mark(worker, worker.next)
        if not self.protocol.inserts_in_turn:
            self.warehouses[worker.next.partition].insert(self.token(worker.next.columns), worker.next.columns)

    def begin(self, worker: Worker) -> None:
        """Take the next batch in hand, if there is any: the one that was taken ahead, or else what is held."""
        if worker.writing is not None:
            return
        work, worker.next = worker.next or self._taken(worker), None
        if work is None:
            return
        position = worker.offsets.get(work.partition)
        if self.protocol.writes_only_where_it_stands and (position is None or work.arrivals.first < position):
            return
        worker.writing, work.position = work, work.arrivals.first if position is None else position
        if work.folded is None:
            self._fold(work, worker.index)

    def seek(self, worker: Worker, partition: int) -> None:
        """An insert failed; a message that came before the consumer was paused is read again."""
        if worker.writing is None or not worker.writing.under_way or partition not in worker.fetched or worker.stale:
            return
        worker.fetched[partition] = self._expected(worker)[partition]

    def advance(self, worker: Worker, *, repeated: bool = False, cut: bool = False) -> None:
        """The next step of what is in hand. `repeated`: the insert's answer is lost, and it is tried again."""
        work = worker.writing
        if work is None or work.folded is None:
            return
        step = Step.CHECK if work.done is None else Step(work.done.value + 1)
        work.done = step
        match step:
            case Step.CHECK:
                self._check(worker, work)
            case Step.INSERT:
                for _attempt in range(1 + repeated):
                    self.warehouses[work.partition].insert(self.token(work.columns), work.columns, cut)
            case Step.LOOK:
                self._look(worker, work)
            case Step.MARK:
                self._mark(worker, work)
                worker.offsets[work.partition] = work.arrivals.last + 1
            case Step.SPEND:
                self.budgets[work.partition].tell(work.columns)
            case Step.COMMIT:
                if not worker.stale:  # Kafka itself refuses it from a stale member
                    self.committed[work.partition] = work.arrivals.last + 1
                worker.writing = None

    def _check(self, worker: Worker, work: Work) -> None:
        if not self._is_own(worker, work):
            return
        if not self.protocol.commits_after_insert:
            self.committed[work.partition] = work.arrivals.last + 1
        if not self.protocol.marks_after_insert:
            self._mark(worker, work)

    def _look(self, worker: Worker, work: Work) -> None:
        if self.protocol.looks_after_insert and not self._is_own(worker, work):
            return
        if not self._is_stored(worker, work):
            owned = list(worker.offsets)
            self._rejoin(worker)
            self._give_up(worker)
            self._assign(worker, owned, Answer.STORED)

    def token(self, columns: Columns) -> Token:
        first, last = columns["batch_first"][0], columns["batch_last"][0]
        return {"first": first, "range": (first, last), "none": object()}[self.protocol.token]

    # Callbacks, and what they share

    def _revoke(self, worker: Worker, answer: Answer) -> None:
        """An insert that is under way is waited for and its batch finished, or left to the next owner; then all is let go."""
        work = worker.writing
        if work is not None and work.under_way and work.partition in worker.offsets:
            self._wait(worker, answer)
            current = not worker.stale and worker.offsets[work.partition] == work.position
            looks = self.protocol.looks_before_handing_over
            if work.done is Step.INSERT and (not looks or (current and self._is_stored(worker, work))):
                work.done = Step.LOOK
                self._finish_what_was_looked_at(worker)
        self._forget(worker, list(worker.offsets), answer)

    def _assign(self, worker: Worker, partitions: Sequence[int], answer: Answer) -> None:
        self._forget(worker, list({*worker.offsets, *partitions}), answer)
        worker.fetched = {}
        for partition in partitions:
            position = self._recover(worker, partition)
            worker.offsets[partition] = worker.fetched[partition] = position
            worker.unconfirmed.add(partition)

    def _recover(self, worker: Worker, partition: int) -> int:
        warehouse, key = self.warehouses[partition], Place(LOG_ID, partition).key
        known_to, stored = worker.index.known_to(key), warehouse.last_batch()
        if self.protocol.rebuilds_index:
            after = -1 if known_to is None else known_to
            worker.index.mark(f"{key}/rebuilding", 0, warehouse.identities(after))
        position = 0
        if stored is not None:
            last = int(stored["batch_last"][0])
            if known_to is None or known_to < last:
                if self.protocol.repeats_last_batch:
                    warehouse.insert(self.token(stored), stored)
                worker.index.mark(key, last, [])
            if self.protocol.repeats_last_spend:
                self.budgets[partition].tell(stored)
            position = last + 1
        return position if self.protocol.reads_warehouse_on_assignment else self.committed[partition]

    def _finish_what_was_looked_at(self, worker: Worker) -> None:
        """From the look on, a worker asks Kafka for nothing, so no callback comes before the batch is done."""
        while worker.writing is not None and worker.writing.done in (Step.LOOK, Step.MARK, Step.SPEND):
            self.advance(worker)

    def _wait(self, worker: Worker, answer: Answer) -> None:
        work = worker.writing
        if work is None or work.done is not Step.CHECK:
            return
        if answer is Answer.STORED:
            self.advance(worker)
            return
        if answer is Answer.LATE:
            self._send_late(work)
        work.done = None

    def _send_late(self, work: Work) -> None:
        self.late.append((work.partition, self.token(work.columns), work.columns))

    def _forget(self, worker: Worker, partitions: Sequence[int], answer: Answer) -> None:
        self._wait(worker, answer)
        for partition in partitions:
            worker.offsets.pop(partition, None)
            worker.fetched.pop(partition, None)
            if self.protocol.forgets_what_was_fetched_ahead:
                worker.held.drop(partition)
            if worker.next and worker.next.partition == partition and self.protocol.forgets_what_was_folded_ahead:
                worker.next = None

    def _rejoin(self, worker: Worker) -> None:
        """Forget everything, and ask the group anew."""
        worker.stale = False
        worker.offsets.clear()
        worker.fetched.clear()
        if self.protocol.forgets_what_was_fetched_ahead:
            worker.held.clear()
        if self.protocol.forgets_what_was_folded_ahead:
            worker.next = None

    def _is_own(self, worker: Worker, work: Work) -> bool:
        if worker.stale:
            self._rejoin(worker)
        if worker.offsets.get(work.partition) == work.position or not self.protocol.writes_only_where_it_stands:
            return True
        self._give_up(worker)
        return False

    def _give_up(self, worker: Worker) -> None:
        worker.writing = None
        if worker.next is not None:
            worker.next.folded = None

    def _is_stored(self, worker: Worker, work: Work) -> bool:
        if work.partition in worker.unconfirmed and self.protocol.confirms_first_insert:
            stored = self.warehouses[work.partition].last_batch()
            if stored is None or stored["batch_last"][0] != work.arrivals.last:
                return False
        worker.unconfirmed.discard(work.partition)
        return True

    def _expected(self, worker: Worker) -> dict[int, int]:
        """The least offset of each of its partitions that is new."""
        in_hand = [(work.partition, work.arrivals) for work in (worker.writing, worker.next) if work]
        if not self.protocol.counts_what_is_in_hand:
            return worker.offsets.copy()
        expected = worker.held.expected(worker.offsets, in_hand)
        if not self.protocol.counts_only_what_stands:
            for partition, arrivals in in_hand:
                if partition in expected:
                    expected[partition] = max(expected[partition], arrivals.last + 1)
        return expected

    def _taken(self, worker: Worker) -> Work | None:
        taken = worker.held.next()
        return Work(*taken) if taken else None

    def _fold(self, work: Work, index: KnownIdentities) -> None:
        place, arrivals = Place(LOG_ID, work.partition), work.arrivals
        rows = examine_all([arrivals.received(at) for at in range(len(arrivals))], SNAPSHOT.tenants)
        work.folded = fold(rows, known_of(rows, index), place.mark, Pricing(SNAPSHOT))
        work.columns = dict(build_columns(work.folded, LOG_ID, work.partition))

    def _mark(self, worker: Worker, work: Work) -> None:
        place = Place(LOG_ID, work.partition)
        assert work.folded is not None
        worker.index.mark(place.key, work.arrivals.last, work.folded.counted(place.mark))
