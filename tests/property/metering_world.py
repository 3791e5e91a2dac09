"""What stands around the meters of the protocol's model: the smallest possible log, warehouse, and reader of spend."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_streams.meter.dedupe import Counted, log_mark
from taximeter_streams.meter.spending import spend_records
from tests.metered_traffic import declared

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
LOG_ID, PARTITIONS = "log", 2
Columns = dict[str, list[Any]]
Token = object


@dataclass(frozen=True, slots=True)
class Message:
    """A fetched message, with as much of confluent-kafka's as is asked of it."""

    place: int
    at: int
    payload: bytes

    def error(self) -> None:
        """It is a good one."""

    def partition(self) -> int:
        return self.place

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 1, int(NOW.timestamp() * 1000)

    def value(self) -> bytes:
        return self.payload


class Warehouse:
    """One partition's rows in usage_log and one rollup. A block is there whole or not at all in each of them, and its token
    drops a repetition."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.batches: dict[Token, Columns] = {}
        self.rolled: dict[Token, Columns] = {}

    def insert(self, token: Token, columns: Columns, cut: bool = False) -> None:
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
            (identity, Counted(body, log_mark(LOG_ID, self.partition), offset))
            for columns in self.batches.values()
            for disposition, offset, identity, body in zip(*(columns[name] for name in names), strict=True)
            if disposition in {"rated", "unrated"} and offset > after
        ]


class SpendReader:
    """One partition's spend, as budgets read it: a range whose end was seen is ignored."""

    def __init__(self) -> None:
        self.told_pico = 0
        self._told_to = -1

    def tell(self, columns: Columns) -> None:
        for record in spend_records(columns, NOW):
            if record.last_offset > self._told_to:
                self._told_to = record.last_offset
                self.told_pico += sum(entry.amount_pico for entry in record.entries)


def _snapshot() -> ControlSnapshot:
    declaring = ControlSnapshot()
    for record in declared(["acme"], NOW):
        declaring = declaring.apply(record)
    return declaring


SNAPSHOT = _snapshot()
