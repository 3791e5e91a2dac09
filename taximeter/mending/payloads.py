"""Finds the messages themselves in usage.rejected.v1, where the meter put each with its reason."""

import base64
import time
from collections.abc import Callable, Collection

from confluent_kafka import Consumer, KafkaError, TopicPartition
from pydantic import ValidationError

from taximeter.mending.rejected import Place, Rejected
from taximeter_schemas.rejections import RejectedEvent
from taximeter_schemas.topics import USAGE_REJECTED

SECONDS_MAX = 300.0
_TOPIC_SECONDS_MAX = 30.0


class PayloadsError(ConnectionError):
    """usage.rejected.v1 could not be read to its end."""


def read_rejected(
    bootstrap_servers: str, wanted: Collection[Rejected], progress: Callable[[int], None] = lambda _read: None
) -> dict[Place, RejectedEvent]:
    """The records of these messages; one is missing where the topic does not hold it any more. Raises PayloadsError."""
    by_place = {(one.place[1], one.place[2], int(one.arrived_at.timestamp() * 1000)): one.place for one in wanted}
    found: dict[Place, RejectedEvent] = {}
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "taximeter-rejected-unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
        }
    )
    try:
        topic = consumer.list_topics(USAGE_REJECTED.name, timeout=_TOPIC_SECONDS_MAX).topics[USAGE_REJECTED.name]
        unread = set(topic.partitions)
        consumer.assign([TopicPartition(USAGE_REJECTED.name, partition, 0) for partition in unread])
        deadline, read = time.monotonic() + SECONDS_MAX, 0
        while unread and len(found) < len(by_place):
            if time.monotonic() > deadline:
                raise PayloadsError(f"{USAGE_REJECTED.name} could not be read to its end in {SECONDS_MAX:.0f} s")
            for message in consumer.consume(1_000, 0.5):
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        unread.discard(int(message.partition() or 0))
                    continue
                read += 1
                if (record := _record(message.value())) is not None:
                    key = (record.partition, record.offset, int(record.arrived_at.timestamp() * 1000))
                    if (place := by_place.get(key)) is not None:
                        found[place] = record
            progress(read)
        return found
    finally:
        consumer.close()


def payload_of(record: RejectedEvent) -> bytes:
    """The message's bytes."""
    return base64.b64decode(record.payload) if record.payload_encoding == "base64" else record.payload.encode()


def _record(value: bytes | None) -> RejectedEvent | None:
    try:
        return RejectedEvent.model_validate_json(value or b"")
    except ValidationError:
        return None
