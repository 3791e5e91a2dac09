"""The limit: a process that consumes with confluent-kafka and inserts ready columns, with no logic at all.

The block is built once, before the clock runs; each batch inserts it again under a token of its own.
"""

import os

from confluent_kafka import Consumer

from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_sql import connect
from tests.benchmarks.ready_block import ready_block

BATCH_EVENTS = 50_000


def main() -> None:
    """Run until killed."""
    client = connect(os.environ["TAXIMETER_CLICKHOUSE_URL"])
    block = ready_block(client, BATCH_EVENTS)
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["TAXIMETER_KAFKA_BOOTSTRAP_SERVERS"],
            "group.id": os.environ["TAXIMETER_METER_GROUP"],
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "queued.max.messages.kbytes": 65_536,
            "fetch.wait.max.ms": 50,
        }
    )
    consumer.subscribe([USAGE_EVENTS.name])
    number, taken = 0, 0
    while True:
        taken += len(consumer.consume(BATCH_EVENTS - taken, 0.2))
        if taken < BATCH_EVENTS:
            continue
        settings = {
            "insert_deduplication_token": f"limit-{number}",
            "deduplicate_blocks_in_dependent_materialized_views": 1,
            "async_insert": 0,
        }
        client.raw_insert("usage_log", insert_block=block, settings=settings, fmt="Native")
        consumer.commit(asynchronous=True)
        number, taken = number + 1, 0


if __name__ == "__main__":
    main()
