"""A batch on its way through the meter: what arrived, and what became of it, folded row by row.

This is the reference. `column_batch` does the same without an object for an event, and comes back here for whatever is
not plain. Both have the face that the loop needs: rejected rows, counts, an insert, marks, and spend.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np

from taximeter_schemas.spend import SpendRecord
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.dedupe import Counted, DedupeIndex, KnownIdentities, log_mark, packed_entry
from taximeter_streams.meter.folding import Examined, Folded, Received, examine_all, fold
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.spending import spend_records
from taximeter_streams.meter.warehouse import Warehouse


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Messages of one partition in offset order: where they stand, when they arrived (ms since the epoch), their bytes."""

    offsets: Sequence[int]
    arrived_at_ms: Sequence[int]
    payloads: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def first(self) -> int:
        """The first offset."""
        return self.offsets[0]

    @property
    def last(self) -> int:
        """The last offset."""
        return self.offsets[-1]

    def received(self, at: int) -> Received:
        """One of the messages."""
        return Received(self.offsets[at], self.arrived_at_ms[at], self.payloads[at])

    def months(self) -> "Iterator[Arrivals]":
        """Split where the month of arrival changes: a block must not span two partitions of the table."""
        months = np.array(self.arrived_at_ms, "datetime64[ms]").astype("datetime64[M]")
        changes = (np.flatnonzero(months[1:] != months[:-1]) + 1).tolist()
        for start, end in zip([0, *changes], [*changes, len(self)], strict=True):
            yield Arrivals(self.offsets[start:end], self.arrived_at_ms[start:end], self.payloads[start:end])


@dataclass(frozen=True, slots=True)
class Place:
    """Which partition of which log a batch is from."""

    log_id: str
    partition: int

    @property
    def mark(self) -> bytes:
        """The eight bytes that name it in the dedupe index."""
        return log_mark(self.log_id, self.partition)

    @property
    def key(self) -> str:
        """The name under which the dedupe index notes how far it knows the partition."""
        return f"{self.log_id}/{self.partition}"


class Batch(Protocol):
    """A folded batch, as the loop sees it."""

    @property
    def rejected(self) -> list[Examined]:
        """The rows to publish to usage.rejected.v1."""
        ...

    def counts(self) -> dict[tuple[str, str], int]:
        """How many rows have each disposition and reason."""
        ...

    def insert(self, warehouse: Warehouse) -> None:
        """Write it as one block under its token. Raises what Warehouse.insert raises; safe to repeat."""
        ...

    def counted(self) -> tuple[list[bytes], list[bytes]]:
        """The identities that it counts, and their entries as the index packs them."""
        ...

    def mark(self, index: DedupeIndex) -> None:
        """Note what was counted, once the insert has succeeded."""
        ...

    def spend(self, rated_at: datetime) -> list[tuple[str, bytes]]:
        """What it cost each tenant: the tenant, and the spend record as JSON."""
        ...


class Folding(Protocol):
    """Folds batches. Which identities were counted before is asked of the index."""

    def fold(self, arrivals: Arrivals, place: Place, index: KnownIdentities, pricing: Pricing) -> Batch:
        """Decide every message; nothing is written."""
        ...


class RowFolding:
    """Folds row by row."""

    def fold(self, arrivals: Arrivals, place: Place, index: KnownIdentities, pricing: Pricing) -> Batch:
        """See Folding."""
        rows = examine_all([arrivals.received(at) for at in range(len(arrivals))], pricing.snapshot.tenants)
        return RowBatch(fold(rows, known_of(rows, index), place.mark, pricing), place)


class RowBatch:
    """A batch folded row by row."""

    def __init__(self, folded: Folded, place: Place) -> None:
        self._folded = folded
        self._place = place
        self.columns = build_columns(folded, place.log_id, place.partition)

    @property
    def rejected(self) -> list[Examined]:
        """See Batch."""
        return self._folded.rejected

    def counts(self) -> dict[tuple[str, str], int]:
        """See Batch."""
        return dict(Counter((row.disposition, row.reason) for row in self._folded.rows))

    def insert(self, warehouse: Warehouse) -> None:
        """See Batch."""
        warehouse.insert(self.columns)

    def counted(self) -> tuple[list[bytes], list[bytes]]:
        """See Batch."""
        counted = self._folded.counted(self._place.mark)
        return [identity for identity, _ in counted], [packed_entry(entry) for _, entry in counted]

    def mark(self, index: DedupeIndex) -> None:
        """See Batch."""
        last = self._folded.rows[-1].message.offset
        index.mark(self._place.key, last, self._folded.counted(self._place.mark))

    def spend(self, rated_at: datetime) -> list[tuple[str, bytes]]:
        """See Batch."""
        return packed(spend_records(dict(self.columns), rated_at))


def known_of(rows: Sequence[Examined], index: KnownIdentities) -> dict[bytes, Counted]:
    """What the index knows of the accepted rows' identities."""
    identities = [row.identity for row in rows if row.disposition == "accepted"]
    return {identity: found for identity, found in zip(identities, index.find(identities), strict=True) if found}


def packed(records: Sequence[SpendRecord]) -> list[tuple[str, bytes]]:
    """Each record's tenant and its JSON."""
    return [(record.tenant, record.model_dump_json().encode()) for record in records]
