"""What a worker does when a partition is assigned to it: make whole what the owner before may have left half done."""

from collections.abc import Callable
from datetime import UTC, datetime

from taximeter_streams.meter.batch import Place
from taximeter_streams.meter.dedupe import DedupeIndex
from taximeter_streams.meter.publishing import Publisher
from taximeter_streams.meter.spending import spend_records
from taximeter_streams.meter.warehouse import Warehouse


class Recovery:
    """Repeats the partition's last batch, unless this index knows that its insert succeeded. Every step may be repeated."""

    def __init__(
        self, log_id: str, warehouse: Warehouse, index: DedupeIndex, publisher: Publisher, on_wait: Callable[[], None]
    ) -> None:
        self._log_id = log_id
        self._warehouse = warehouse
        self._index = index
        self._publisher = publisher
        self._on_wait = on_wait
        """Called after every answer, and after every chunk of a long read: the worker is not stuck."""

    def recover(self, partition: int) -> int:
        """Make the partition whole and return the offset to go on from (the log's beginning when nothing is stored)."""
        key, now = Place(self._log_id, partition).key, datetime.now(UTC)
        stored = self._warehouse.last_batch(partition)
        self._on_wait()
        known_to = self._index.known_to(key)
        if stored is None:
            self._rebuild_index(partition, known_to, now)
            return 0
        columns = self._warehouse.batch_columns(partition, stored.first)
        self._on_wait()
        if known_to is None or known_to < stored.last:
            # Nobody here saw the insert succeed. An old batch is let be: its token may be forgotten, and it would count twice.
            if self._warehouse.remembers(stored, now):
                self._warehouse.insert(columns)
            self._on_wait()
            self._rebuild_index(partition, known_to, now)
            self._index.mark(key, stored.last, [])
        self._publisher.send_spend(spend_records(dict(columns), now))
        return stored.last + 1

    def _rebuild_index(self, partition: int, known_to: int | None, now: datetime) -> None:
        """Read from the warehouse what the partition has counted and the index lacks."""
        key = Place(self._log_id, partition).key
        for chunk in self._warehouse.identities(partition, known_to, now):
            self._index.mark(f"{key}/rebuilding", 0, chunk)
            self._on_wait()
