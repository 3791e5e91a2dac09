"""Creates Taximeter's topics on a broker. Running it again changes nothing."""

import logging
from concurrent.futures import wait

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from taximeter_producers.errors import TopicsError
from taximeter_schemas import TOPICS, Topic

_log = logging.getLogger(__name__)
CREATE_SECONDS_MAX = 30.0


def ensure_topics(
    bootstrap_servers: str, partitions: int, replication: int, topics: tuple[Topic, ...] = TOPICS
) -> list[str]:
    """Create the topics that do not exist and return their names. Raises TopicsError: with a cause when Kafka does not answer
    or refuses, which may pass; without one when a topic has another number of partitions, which does not pass by itself
    (spend, leases and budgets must agree on where a tenant lives).
    """
    admin = AdminClient({"bootstrap.servers": bootstrap_servers}, logger=_log)
    wanted = [NewTopic(topic.name, partitions, replication, config=topic.config) for topic in topics]
    created = []
    for name, future in admin.create_topics(wanted, operation_timeout=CREATE_SECONDS_MAX).items():
        if not wait([future], CREATE_SECONDS_MAX).done:
            raise TopicsError(f"Kafka at {bootstrap_servers} does not answer") from TimeoutError()
        # Not result(): the traceback of what it raises would tie this frame, hence the client, into a cycle of garbage, which
        # the client's own thread may come to collect; librdkafka aborts the process then.
        error = future.exception()
        if error is None:
            created.append(name)
        elif not isinstance(error, KafkaException) or error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise TopicsError(f"topic {name} cannot be created: {error}") from error
    _check_partitions(admin, topics, partitions)
    return created


def _check_partitions(admin: AdminClient, topics: tuple[Topic, ...], partitions: int) -> None:
    try:
        metadata = admin.list_topics(timeout=CREATE_SECONDS_MAX)
    except KafkaException as error:
        raise TopicsError(f"the topics cannot be listed: {error}") from error
    for topic in topics:
        found = len(metadata.topics[topic.name].partitions) if topic.name in metadata.topics else 0
        if found and found != partitions:
            raise TopicsError(f"topic {topic.name} has {found} partitions, the settings say {partitions}")
