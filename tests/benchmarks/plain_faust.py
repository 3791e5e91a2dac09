"""The baseline in faust: one agent that does the meter's work on one event after another, as faust's own documents show it.

Fairly: the decoder is msgspec, no model of faust's own; the dedupe table is faust's RocksDB table; prices are found by the
meter's own pure code; rows are gathered and inserted as one block every BATCH_EVENTS events; spend is folded for a batch.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

import faust

from taximeter_schemas.topics import USAGE_EVENTS
from tests.benchmarks.baseline_meter import BATCH_EVENTS, BaselineMeter

_folder = Path(os.environ["TAXIMETER_STATE_DIR"]) / "faust"
_folder.mkdir(parents=True, exist_ok=True)
_servers = os.environ["TAXIMETER_KAFKA_BOOTSTRAP_SERVERS"]
app = faust.App(
    os.environ["TAXIMETER_METER_GROUP"],
    broker=[f"kafka://{server}" for server in _servers.split(",")],
    store="rocksdb://",
    datadir=_folder,
    topic_partitions=int(os.environ["TAXIMETER_KAFKA_PARTITIONS"]),
    topic_replication_factor=1,
    value_serializer="raw",
    key_serializer="raw",
    web_enabled=False,
    consumer_auto_offset_reset="earliest",
    stream_buffer_maxsize=16_384,
)
events = app.topic(USAGE_EVENTS.name, value_type=bytes, key_type=bytes)
counted = app.Table("counted", key_type=bytes, value_type=bytes)
meter = BaselineMeter(os.environ["TAXIMETER_CLICKHOUSE_URL"], _servers, os.environ["TAXIMETER_LOG_ID"])


@app.agent(events)
async def metering(stream: "faust.StreamT[bytes]") -> None:
    """Count, rate and store every event."""
    async for event in stream.events():
        message = event.message
        row = meter.examine(message.offset, int(message.timestamp * 1000), message.value or b"")
        if row.disposition == "accepted":
            body = counted.get(row.identity)
            meter.decide(row, body)
            if body is None:
                counted[row.identity] = row.body
        if meter.waiting >= BATCH_EVENTS:
            meter.store(message.partition, datetime.now(UTC))


if __name__ == "__main__":
    app.main()
