"""The baseline in Quix Streams: one pipeline with a state store and a batching sink, as its own documents show it.

Fairly: raw bytes in and msgspec to decode them, its RocksDB state for the identities, a checkpoint every BATCH_EVENTS events.
It runs in an environment of its own (requirements-quix.txt), because it asks for older versions of what Taximeter uses.
"""

import os
from pathlib import Path

from quixstreams import Application, State
from quixstreams.sinks import BatchingSink, SinkBatch

from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_streams.meter.folding import Examined
from tests.benchmarks.baseline_meter import BATCH_EVENTS, BaselineMeter


class WarehouseSink(BatchingSink):  # type: ignore[misc]
    """Stores a checkpoint's rows as one block."""

    def __init__(self, meter: BaselineMeter) -> None:
        super().__init__()
        self._meter = meter

    def write(self, batch: SinkBatch) -> None:
        """Called at a checkpoint; the rows have been gathered while they were decided."""
        if self._meter.waiting:
            self._meter.store(batch.partition)


def main() -> None:
    """Run until killed."""
    servers = os.environ["TAXIMETER_KAFKA_BOOTSTRAP_SERVERS"]
    meter = BaselineMeter(os.environ["TAXIMETER_CLICKHOUSE_URL"], servers, os.environ["TAXIMETER_LOG_ID"])
    app = Application(
        broker_address=servers,
        consumer_group=os.environ["TAXIMETER_METER_GROUP"],
        auto_offset_reset="earliest",
        state_dir=Path(os.environ["TAXIMETER_STATE_DIR"]) / "quix",
        commit_every=BATCH_EVENTS,
        commit_interval=60.0,
        loglevel="WARNING",
    )
    events = app.topic(USAGE_EVENTS.name, value_deserializer="bytes", key_deserializer="bytes")

    def count(payload: bytes, _key: object, timestamp: int, _headers: object, state: State) -> int:
        row: Examined = meter.examine(meter.next_offset, timestamp, payload)
        if row.disposition == "accepted":
            identity = row.identity.hex()
            body = state.get(identity)
            meter.decide(row, None if body is None else bytes.fromhex(body))
            if body is None:
                state.set(identity, row.body.hex())
        return 1

    pipeline = app.dataframe(events).apply(count, stateful=True, metadata=True)
    pipeline.sink(WarehouseSink(meter))
    app.run()


if __name__ == "__main__":
    main()
