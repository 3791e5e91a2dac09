"""Reads a topic from its beginning to its true end, as end-of-partition events tell it."""

import time

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

SECONDS_MAX = 60.0


def read_topic(bootstrap_servers: str, topic: str) -> list[Message]:
    """Every message of the topic, partition by partition in order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "topic-reader-unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    try:
        partitions = set(consumer.list_topics(topic, timeout=SECONDS_MAX).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        messages: list[Message] = []
        deadline = time.monotonic() + SECONDS_MAX
        while partitions:
            assert time.monotonic() < deadline, f"the end of {topic} was not reached"
            message = consumer.poll(0.5)
            if message is None:
                continue
            error = message.error()
            if error is None:
                messages.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                partitions.discard(message.partition())
        return sorted(messages, key=lambda message: (message.partition(), message.offset()))
    finally:
        consumer.close()
