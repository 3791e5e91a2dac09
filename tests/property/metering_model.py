"""A model of the meter's protocol: one partition, two workers that may both believe they own it, a warehouse, budgets.

The folding, the columns, the spend records and the index are the real ones; around them stand the smallest possible log,
warehouse and reader of spend. A `Protocol` says in which ways a worker is careful; each care left out is a planted bug.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Literal

from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_streams.meter.ahead import IndexAhead
from taximeter_streams.meter.batch import known_of
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.dedupe import Counted, DedupeIndex, KnownIdentities, MemoryIndex, log_mark, packed_entry
from taximeter_streams.meter.folding import Folded, Received, examine_all, fold
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.spending import spend_records
from tests.metered_traffic import declared

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
LOG_ID, PARTITION = "log", 0
KEY, MARK = f"{LOG_ID}/{PARTITION}", log_mark(LOG_ID, PARTITION)
Columns = dict[str, list[Any]]


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
    forgets_what_was_read_ahead: bool = True
    """What was read ahead goes with its partition."""
    folds_ahead_as_if_marked: bool = True
    """What is folded ahead knows of the batch in hand, which is not marked yet."""


class Step(Enum):
    """The steps of a batch, in order."""

    CHECK = auto()
    INSERT = auto()
    LOOK = auto()
    MARK = auto()
    SPEND = auto()
    COMMIT = auto()


class Warehouse:
    """usage_log and one rollup. A block is there whole or not at all in each of them, and its token drops a repetition."""

    def __init__(self) -> None:
        self.batches: dict[object, Columns] = {}
        self.rolled: dict[object, Columns] = {}

    def insert(self, token: object, columns: Columns, cut: bool = False) -> None:
        """`cut`: the server dies between the table and its rollup."""
        self.batches.setdefault(token, columns)
        if not cut:
            self.rolled.setdefault(token, columns)

    def last_batch(self) -> Columns | None:
        return max(self.batches.values(), key=lambda columns: columns["batch_last"][0], default=None)

    def column(self, name: str) -> list[Any]:
        """The values of all stored rows, in the order of their offsets."""
        rows = [
            pair for columns in self.batches.values() for pair in zip(columns["offset"], columns[name], strict=True)
        ]
        return [value for _offset, value in sorted(rows, key=lambda pair: int(pair[0]))]

    def identities(self, after: int) -> list[tuple[bytes, Counted]]:
        names = ("disposition", "offset", "identity", "body")
        return [
            (identity, Counted(body, MARK, offset))
            for columns in self.batches.values()
            for disposition, offset, identity, body in zip(*(columns[name] for name in names), strict=True)
            if disposition in {"rated", "unrated"} and offset > after
        ]


@dataclass
class Batch:
    """What a worker has in hand."""

    first: int
    last: int
    folded: Folded
    columns: Columns
    done: Step | None = None


@dataclass
class Worker:
    """A worker with an index of its own. `position` is None while it knows that it has no partition."""

    index: DedupeIndex = field(default_factory=MemoryIndex)
    position: int | None = None
    stale: bool = False
    """Its session has ended and it does not know. It finds out where it looks at its clock."""
    unconfirmed: bool = False
    batch: Batch | None = None
    ahead: Batch | None = None
    """What comes behind the batch, read and folded while that is being inserted."""

    def lose(self) -> None:
        """Forget the partition and what is in hand."""
        self.position, self.batch, self.stale = None, None, False

    def crash(self) -> None:
        """Forget whatever was in memory."""
        self.lose()
        self.ahead = None


class Cluster:
    """Log, warehouse, reader of spend, committed offset, two workers."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.log: list[bytes] = []
        self.warehouse = Warehouse()
        self.committed = 0
        self.told_pico = 0
        self.told_to = -1
        self.workers = [Worker(), Worker()]

    def assign(self, worker: Worker) -> None:
        """The group gives the partition to this worker; whoever has it is stale from now on. The worker recovers."""
        for other in self.workers:
            other.stale = other.stale or (other is not worker and other.position is not None)
        self._lose(worker)
        known_to, stored = worker.index.known_to(KEY), self.warehouse.last_batch()
        if self.protocol.rebuilds_index:
            after = -1 if known_to is None else known_to
            worker.index.mark(f"{KEY}/rebuilding", 0, self.warehouse.identities(after))
        worker.unconfirmed = True
        worker.position = 0
        if stored is not None:
            last = stored["batch_last"][0]
            if known_to is None or known_to < last:
                if self.protocol.repeats_last_batch:
                    self.warehouse.insert(self.token(stored), stored)
                worker.index.mark(KEY, last, [])
            if self.protocol.repeats_last_spend:
                self.tell_spend(stored)
            worker.position = last + 1
        if not self.protocol.reads_warehouse_on_assignment:
            worker.position = self.committed

    def begin(self, worker: Worker, size: int) -> None:
        """Take the next batch in hand, if there is any: the one that was read ahead, or else what comes next in the log."""
        if worker.position is None or worker.batch is not None:
            return
        ahead, worker.ahead = worker.ahead, None
        if ahead is not None and ahead.first >= worker.position:
            worker.batch = ahead
        else:
            worker.batch = self._taken(worker.position, size, worker.index)

    def read_ahead(self, worker: Worker, size: int) -> None:
        """Read and fold what comes behind the batch in hand."""
        batch = worker.batch
        if batch is None or batch.done is None or worker.ahead is not None:
            return
        counted = batch.folded.counted(MARK)
        entries = [packed_entry(entry) for _, entry in counted]
        marked = IndexAhead(worker.index, [identity for identity, _ in counted], entries)
        index = marked if self.protocol.folds_ahead_as_if_marked else worker.index
        worker.ahead = self._taken(batch.last + 1, size, index)

    def hand_over(self, worker: Worker, successor: Worker) -> None:
        """A rebalance while all is well: an insert that is under way is waited for and its batch finished, then they move."""
        if not worker.stale and worker.batch is not None and worker.batch.done not in (None, Step.CHECK):
            while worker.batch is not None:
                self.advance(worker)
        self._lose(worker)
        self.assign(successor)

    def _lose(self, worker: Worker) -> None:
        worker.lose()
        if self.protocol.forgets_what_was_read_ahead:
            worker.ahead = None

    def _taken(self, first: int, size: int, index: KnownIdentities) -> Batch | None:
        payloads = self.log[first : first + size]
        if not payloads:
            return None
        arrived_at_ms = int(NOW.timestamp() * 1000)
        received = [Received(first + place, arrived_at_ms, payload) for place, payload in enumerate(payloads)]
        rows = examine_all(received, SNAPSHOT.tenants)
        folded = fold(rows, known_of(rows, index), MARK, Pricing(SNAPSHOT))
        return Batch(first, received[-1].offset, folded, dict(build_columns(folded, LOG_ID, PARTITION)))

    def advance(self, worker: Worker, *, repeated: bool = False, cut: bool = False) -> None:
        """The next step of what is in hand. `repeated`: the insert's answer is lost, and it is tried again."""
        batch = worker.batch
        if batch is None:
            return
        step = Step.CHECK if batch.done is None else Step(batch.done.value + 1)
        batch.done = step
        match step:
            case Step.CHECK:
                if worker.stale:
                    self._lose(worker)
                    return
                if not self.protocol.commits_after_insert:
                    self.committed = batch.last + 1
                if not self.protocol.marks_after_insert:
                    worker.index.mark(KEY, batch.last, batch.folded.counted(MARK))
            case Step.INSERT:
                for _attempt in range(1 + repeated):
                    self.warehouse.insert(self.token(batch.columns), batch.columns, cut)
            case Step.LOOK:
                self._look(worker, batch)
            case Step.MARK:
                worker.index.mark(KEY, batch.last, batch.folded.counted(MARK))
            case Step.SPEND:
                self.tell_spend(batch.columns)
            case Step.COMMIT:
                if not worker.stale:  # Kafka itself refuses it from a stale member
                    self.committed = batch.last + 1
                worker.position, worker.batch = batch.last + 1, None

    def _look(self, worker: Worker, batch: Batch) -> None:
        if worker.stale and self.protocol.looks_after_insert:
            self._lose(worker)
            return
        if worker.unconfirmed and self.protocol.confirms_first_insert:
            stored = self.warehouse.last_batch()
            if stored is None or stored["batch_last"][0] != batch.last:
                self.assign(worker)
                return
        worker.unconfirmed = False

    def tell_spend(self, columns: Columns) -> None:
        """The reader ignores a range whose end it has seen."""
        for record in spend_records(columns, NOW):
            if record.last_offset > self.told_to:
                self.told_to = record.last_offset
                self.told_pico += sum(entry.amount_pico for entry in record.entries)

    def token(self, columns: Columns) -> object:
        first, last = columns["batch_first"][0], columns["batch_last"][0]
        return {"first": first, "range": (first, last), "none": object()}[self.protocol.token]


def _snapshot() -> ControlSnapshot:
    declaring = ControlSnapshot()
    for record in declared(["acme"], NOW):
        declaring = declaring.apply(record)
    return declaring


SNAPSHOT = _snapshot()
