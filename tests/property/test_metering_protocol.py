"""The meter's protocol under crashes, lost indexes and moves between workers: every message one row, every identity counted once.

The folding, the columns, the spend and the index are the real ones; around them stand the smallest possible log, warehouse
(one atomic block a token) and spend topic.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.spend import SpendEntry
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.dedupe import Counted, DedupeIndex, MemoryIndex, log_mark
from taximeter_streams.meter.folding import Received, examine_all, fold
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.spending import spend_records
from tests.metered_traffic import declared
from tests.usage_events import usage

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
LOG_ID, PARTITION = "log", 0
KEY, MARK = f"{LOG_ID}/{PARTITION}", log_mark(LOG_ID, PARTITION)
Columns = dict[str, list[Any]]


class CrashError(Exception):
    """The worker dies here."""


class Step(Enum):
    """After which step of a batch the worker dies."""

    FOLD = auto()
    INSERT = auto()
    MARK = auto()
    SPEND = auto()
    COMMIT = auto()


class Warehouse:
    """usage_log as the protocol sees it: a batch is there whole or not at all, and its token drops a repetition."""

    def __init__(self) -> None:
        self.batches: dict[tuple[int, int], Columns] = {}

    def insert(self, columns: Columns) -> None:
        self.batches.setdefault((columns["batch_first"][0], columns["batch_last"][0]), columns)

    def last_batch(self) -> Columns | None:
        return self.batches[max(self.batches, key=lambda span: span[1])] if self.batches else None

    def column(self, name: str) -> list[Any]:
        return [value for span in sorted(self.batches) for value in self.batches[span][name]]

    def identities(self, after: int) -> list[tuple[bytes, Counted]]:
        names = ("disposition", "offset", "identity", "body")
        return [
            (identity, Counted(body, MARK, offset))
            for disposition, offset, identity, body in zip(*map(self.column, names), strict=True)
            if disposition in {"rated", "unrated"} and offset > after
        ]


def snapshot() -> ControlSnapshot:
    declaring = ControlSnapshot()
    for record in declared(["acme"], NOW):
        declaring = declaring.apply(record)
    return declaring


SNAPSHOT = snapshot()
PRICING = Pricing(SNAPSHOT)


class Metering(RuleBasedStateMachine):
    """One partition, and two workers that may hold it, each with an index of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[bytes] = []
        self.warehouse = Warehouse()
        self.spend: dict[tuple[int, int, str], tuple[SpendEntry, ...]] = {}
        self.indexes: list[DedupeIndex] = [MemoryIndex(), MemoryIndex()]
        self.worker = 0
        self.position = 0

    @property
    def index(self) -> DedupeIndex:
        return self.indexes[self.worker]

    @rule(number=st.integers(0, 4), body=st.integers(1, 2), model=st.sampled_from(["m", "m", "m", "unpriced"]))
    def send(self, number: int, body: int, model: str) -> None:
        """Few identities and few bodies, so that repeats and conflicts are common."""
        event = usage(f"e{number}", model=model, tokens={"uncached_input": 3, "output": body})
        self.log.append(json.dumps(event).encode())

    @rule(payload=st.sampled_from([b"{", b"\xff", b"{}"]))
    def send_bad(self, payload: bytes) -> None:
        self.log.append(payload)

    @rule(size=st.integers(1, 6), repeated=st.booleans())
    def write(self, size: int, repeated: bool) -> None:
        self.write_batch(size, None, repeated)

    @rule(size=st.integers(1, 6), dies_after=st.sampled_from(Step), repeated=st.booleans())
    def die(self, size: int, dies_after: Step, repeated: bool) -> None:
        try:
            self.write_batch(size, dies_after, repeated)
        except CrashError:
            self.recover()

    @rule()
    def lose_index(self) -> None:
        self.indexes[self.worker] = MemoryIndex()
        self.recover()

    @rule(size=st.integers(1, 6), dies_after=st.sampled_from(Step))
    def die_and_move(self, size: int, dies_after: Step) -> None:
        """The other worker takes over; what its index lacks, the warehouse knows."""
        with suppress(CrashError):
            self.write_batch(size, dies_after, False)
        self.worker = 1 - self.worker
        self.recover()

    def write_batch(self, size: int, dies_after: Step | None, repeated: bool) -> None:
        """What the service does with a batch, in its order. `repeated`: the insert's answer was lost, and it is tried again."""
        arrived_at_ms = int(NOW.timestamp() * 1000)
        payloads = self.log[self.position : self.position + size]
        if not payloads:
            return
        batch = [Received(self.position + place, arrived_at_ms, payload) for place, payload in enumerate(payloads)]
        rows = examine_all(batch, SNAPSHOT.tenants)
        identities = [row.identity for row in rows if row.disposition == "accepted"]
        known = {
            identity: found for identity, found in zip(identities, self.index.find(identities), strict=True) if found
        }
        folded = fold(rows, known, MARK, PRICING)
        columns = dict(build_columns(folded, LOG_ID, PARTITION))

        def insert() -> None:
            for _attempt in range(1 + repeated):
                self.warehouse.insert(columns)

        steps: dict[Step, Callable[[], None]] = {
            Step.FOLD: lambda: None,
            Step.INSERT: insert,
            Step.MARK: lambda: self.index.mark(KEY, batch[-1].offset, folded.counted(MARK)),
            Step.SPEND: lambda: self.tell_spend(columns),
            Step.COMMIT: lambda: None,
        }
        for step, action in steps.items():
            action()
            if step is dies_after:
                raise CrashError
        self.position = batch[-1].offset + 1

    def tell_spend(self, columns: Columns) -> None:
        for record in spend_records(columns, NOW):
            key = (record.first_offset, record.last_offset, record.tenant)
            assert self.spend.setdefault(key, record.entries) == record.entries

    def recover(self) -> None:
        """What the service does when a partition is assigned."""
        known_to, last = self.index.known_to(KEY), self.warehouse.last_batch()
        after = -1 if known_to is None else known_to
        self.index.mark(f"{KEY}/rebuilding", 0, self.warehouse.identities(after))
        if last is None:
            self.position = 0
            return
        if after < last["batch_last"][0]:
            self.warehouse.insert(last)
            self.index.mark(KEY, last["batch_last"][0], [])
        self.tell_spend(last)
        self.position = last["batch_last"][0] + 1

    @invariant()
    def every_message_is_one_row(self) -> None:
        assert self.warehouse.column("offset") == list(range(self.position))

    @invariant()
    def every_identity_counts_once(self) -> None:
        named = zip(self.warehouse.column("disposition"), self.warehouse.column("event_id"), strict=True)
        counted = Counter(event_id for disposition, event_id in named if disposition in {"rated", "unrated"})
        assert all(times == 1 for times in counted.values()), counted
        accepted = {event_id for event_id in self.warehouse.column("event_id") if event_id}
        assert set(counted) == accepted

    @invariant()
    def spend_is_what_is_stored(self) -> None:
        told = sum(entry.amount_pico for entries in self.spend.values() for entry in entries)
        assert told == sum(self.warehouse.column("metered_pico"))


Metering.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestMetering = Metering.TestCase
