"""Reads budget.state.v1 once, from its beginning to its end: where every tenant's budgets stand."""

import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from taximeter_schemas.budgets import BudgetState
from taximeter_schemas.topics import BUDGET_STATE

SECONDS_MAX = 30.0


def read_states(bootstrap_servers: str) -> dict[str, BudgetState]:
    """The newest state of each tenant. Raises KafkaException when the log does not answer in time."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "taximeter-states-unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    try:
        topic = consumer.list_topics(BUDGET_STATE.name, timeout=SECONDS_MAX).topics[BUDGET_STATE.name]
        if topic.error is not None:
            raise KafkaException(topic.error)
        consumer.assign([TopicPartition(BUDGET_STATE.name, partition, 0) for partition in topic.partitions])
        return _read(consumer, set(topic.partitions))
    finally:
        consumer.close()


def _read(consumer: Consumer, unread: set[int]) -> dict[str, BudgetState]:
    states: dict[str, BudgetState] = {}
    deadline = time.monotonic() + SECONDS_MAX
    while unread:
        if time.monotonic() > deadline:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"the end of {BUDGET_STATE.name} was not reached"))
        message = consumer.poll(0.5)
        if message is None:
            continue
        error = message.error()
        if error is None:
            state = BudgetState.model_validate_json(message.value() or b"")
            states[state.tenant] = state
        elif error.code() == KafkaError._PARTITION_EOF and (partition := message.partition()) is not None:
            unread.discard(partition)
    return states
