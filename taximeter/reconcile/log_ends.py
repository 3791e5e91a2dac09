"""Where the log ends, truly: by reading on to the end-of-partition event, since not every broker reports its end truly."""

import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from taximeter_schemas.topics import USAGE_EVENTS

RETRY_SECONDS = 0.2
_NO_LEADER_YET = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
"""What a broker says that has just started."""


class LogEndsError(ConnectionError):
    """The log's ends could not be read in time."""


def log_ends(bootstrap_servers: str, topic: str = USAGE_EVENTS.name, timeout_seconds: float = 60.0) -> dict[int, int]:
    """The true end offset of each partition. Raises LogEndsError."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "taximeter-ends-unused",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
        }
    )
    try:
        deadline = time.monotonic() + timeout_seconds
        partitions = sorted(consumer.list_topics(topic, timeout=timeout_seconds).topics[topic].partitions)
        starts = {partition: _start_near_end(consumer, topic, partition, deadline) for partition in partitions}
        consumer.assign([TopicPartition(topic, partition, start) for partition, start in starts.items()])
        ends: dict[int, int] = {}
        while len(ends) < len(partitions) and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            error = message.error() if message is not None else None
            if message is not None and error is not None and error.code() == KafkaError._PARTITION_EOF:
                ends[int(message.partition() or 0)] = int(message.offset() or 0)
        if len(ends) < len(partitions):
            raise LogEndsError(f"the ends of {topic} could not be read in {timeout_seconds:.0f} s")
        return ends
    finally:
        consumer.close()


def _start_near_end(consumer: Consumer, topic: str, partition: int, deadline: float) -> int:
    """The last offset that the broker tells of, or the first. Raises LogEndsError, and KafkaException for good reasons."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise LogEndsError(f"{topic}, partition {partition} has no leader")
        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=left)
        except KafkaException as error:
            if error.args[0].code() not in _NO_LEADER_YET:
                raise
            time.sleep(RETRY_SECONDS)
        else:
            return max(low, high - 1)
