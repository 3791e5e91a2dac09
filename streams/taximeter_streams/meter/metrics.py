"""The meter's metrics, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

MESSAGES = Counter("taximeter_meter_messages", "Messages written, by what became of them", ["disposition", "reason"])
BATCH_MESSAGES = Histogram(
    "taximeter_meter_batch_messages", "Messages in a batch", buckets=[1, 10, 100, 1000, 10_000, 50_000]
)
INSERT_SECONDS = Histogram("taximeter_meter_insert_seconds", "Seconds that an insert took")
RETRIES = Counter("taximeter_meter_retries", "Attempts that failed and were repeated", ["step"])
LAG_SECONDS = Gauge("taximeter_meter_lag_seconds", "Age of the newest message written, by partition", ["partition"])
POSITION = Gauge("taximeter_meter_position", "Offset behind the last message written, by partition", ["partition"])
STALE = Counter("taximeter_meter_stale_batches", "Batches given up because the worker had been paused past its session")
INDEX_ENTRIES = Gauge("taximeter_meter_index_entries", "Identities in the dedupe index, as RocksDB estimates")
