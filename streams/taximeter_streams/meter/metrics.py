"""The meter's metrics, for Prometheus. What can only be known by looking is looked up when it is asked for."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

MESSAGES = Counter("taximeter_meter_messages", "Messages written, by what became of them", ["disposition", "reason"])
BATCH_MESSAGES = Histogram(
    "taximeter_meter_batch_messages", "Messages in a batch", buckets=[1, 10, 100, 1000, 10_000, 50_000]
)
INSERT_SECONDS = Histogram(
    "taximeter_meter_insert_seconds",
    "Seconds that an attempt to insert a batch took",
    buckets=[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
)
RETRIES = Counter("taximeter_meter_retries", "Attempts that failed and were repeated", ["step"])
POSITION = Gauge("taximeter_meter_position", "Offset behind the last message written, by partition", ["partition"])
STALE = Counter("taximeter_meter_stale_batches", "Batches given up because the worker had been paused past its session")
INDEX_ENTRIES = Gauge("taximeter_meter_index_entries", "Identities in the dedupe index, as RocksDB estimates")
INDEX_BYTES = Gauge("taximeter_meter_index_bytes", "Bytes of the dedupe index on disk")

EndOf = Callable[[int], int | None]
"""The offset behind the last message of a partition of the log; None when it cannot be told now."""


class Lag(Collector):
    """How far the worker is behind the log in each partition that it owns, in events and in seconds.

    Seconds are the age of the oldest event that waits: of the first one of the batch that is being written. Where none is, at
    most: since the newest one that was written, or since the worker was last seen to have reached the end, whichever is later.
    They grow while nothing moves, and are 0 while nothing waits.
    """

    def __init__(
        self, positions: Callable[[], Mapping[int, int]], end_of: EndOf, clock: Callable[[], float] = time.time
    ) -> None:
        self._positions = positions
        self._end_of = end_of
        self._clock = clock
        self._taken: dict[int, float] = {}
        self._arrived_at: dict[int, float] = {}
        self._level_at: dict[int, float] = {}
        self._began_at = clock()

    def taken(self, partition: int, arrived_at_ms: int) -> None:
        """Note when the first message of the batch that is to be written now had arrived."""
        self._taken[partition] = arrived_at_ms / 1000

    def written(self, partition: int, arrived_at_ms: int) -> None:
        """Note when the newest message that is written had arrived."""
        self._taken.pop(partition, None)
        self._arrived_at[partition] = arrived_at_ms / 1000

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Look now."""
        events = GaugeMetricFamily(
            "taximeter_meter_lag_events", "Messages of the log not written yet", labels=["partition"]
        )
        seconds = GaugeMetricFamily(
            "taximeter_meter_lag_seconds", "Age of the oldest message not written yet, at most", labels=["partition"]
        )
        for partition, position in sorted(self._positions().items()):
            end = self._end_of(partition)
            if end is None:
                continue
            behind = max(0, end - position)
            events.add_metric([str(partition)], behind)
            seconds.add_metric([str(partition)], self._seconds(partition, behind))
        yield events
        yield seconds

    def _seconds(self, partition: int, behind: int) -> float:
        now = self._clock()
        if not behind:
            self._level_at[partition] = now
            self._taken.pop(partition, None)
            return 0.0
        taken = self._taken.get(partition)
        if taken is not None:
            return max(0.0, now - taken)
        level_at = self._level_at.get(partition, self._began_at if partition not in self._arrived_at else 0.0)
        return max(0.0, now - max(self._arrived_at.get(partition, 0.0), level_at))


def folder_bytes(folder: Path) -> int:
    """The size of the files in a folder. A file that goes away meanwhile does not count."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
