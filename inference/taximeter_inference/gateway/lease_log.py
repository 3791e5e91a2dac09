"""The gateway's side of the log: sends lease questions, hears grants and the state of budgets.

One consumer without a group follows budget.leases.v1 from its end (only this gateway's grants matter, and those of an
earlier life do not) and budget.state.v1 from its beginning. Its thread calls back; the callbacks must be quick.
"""

import logging
import threading
from collections.abc import Callable

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage
from pydantic import ValidationError

from taximeter_schemas.budgets import BudgetState, LeaseClose, LeaseGrant, LeaseRequest
from taximeter_schemas.topics import BUDGET_LEASES, BUDGET_STATE

FETCH_WAIT_MS = 20
"""How long the broker may hold an empty fetch. The embedded broker looks again only after half of it."""
FLUSH_SECONDS_MAX = 5.0
CLOSE_SENDINGS_MAX = 60
"""A close that never arrives leaves its lease charged for a quarter of an hour; each sending has 10 s."""
_log = logging.getLogger(__name__)


class LeaseLog:
    """Follows both topics in a daemon thread; `on_grant` and `on_state` are called there."""

    def __init__(
        self,
        bootstrap_servers: str,
        gateway: str,
        on_grant: Callable[[LeaseGrant], None],
        on_state: Callable[[BudgetState], None],
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._mark = gateway.encode()
        self._gateway = gateway
        self._on_grant = on_grant
        self._on_state = on_state
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="lease-log", daemon=True)
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 0,
                # faust asks Kafka's own partitioner where a tenant lives, so it must be the one that sends.
                "partitioner": "murmur2_random",
                "message.timeout.ms": 10_000,
            },
            logger=_log,
        )

    @property
    def ready(self) -> bool:
        """Whether grants would be heard, and the state of budgets was read to its end."""
        return self._ready.is_set()

    def start(self) -> None:
        """Begin to follow; `ready` says when it has caught up."""
        self._thread.start()

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Wait until it has caught up."""
        return self._ready.wait(timeout_seconds)

    def send(self, message: LeaseRequest | LeaseClose) -> None:
        """Send a question or a close. It may be lost when the log is away: questions are repeated by who asks, closes here."""
        self._send(message, CLOSE_SENDINGS_MAX if isinstance(message, LeaseClose) else 1)

    def _send(self, message: LeaseRequest | LeaseClose, sendings: int) -> None:
        def again(error: KafkaError | None, _message: KafkaMessage) -> None:
            if error is not None and sendings > 1 and not self._stopping.is_set():
                self._send(message, sendings - 1)

        try:
            payload, key = message.model_dump_json().encode(), message.tenant.encode()
            self._producer.produce(BUDGET_LEASES.name, payload, key=key, on_delivery=again)
            self._producer.poll(0)
        except (BufferError, KafkaException) as error:
            _log.warning("a lease message was not sent: %s", error)

    def stop(self) -> None:
        """Send what is queued, and stop following."""
        self._producer.flush(FLUSH_SECONDS_MAX)
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _follow(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap_servers,
                "group.id": "taximeter-gateway-unused",
                "enable.auto.commit": False,
                "auto.offset.reset": "latest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "allow.auto.create.topics": False,
            },
            logger=_log,
        )
        try:
            places = self._places(consumer)
            consumer.assign(places)
            unread = {(place.topic, place.partition) for place in places}
            while not self._stopping.is_set():
                self._producer.poll(0)
                message = consumer.poll(0.2)
                if message is None:
                    continue
                error = message.error()
                if error is None:
                    self._hear(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard((message.topic() or "", message.partition() or 0))
                    if not unread:
                        self._ready.set()
                else:
                    _log.warning("lease topics: %s", error)
        finally:
            consumer.close()

    def _places(self, consumer: Consumer) -> list[TopicPartition]:
        starts = {BUDGET_LEASES.name: OFFSET_END, BUDGET_STATE.name: OFFSET_BEGINNING}
        while not self._stopping.wait(0.2):
            try:
                found = {name: consumer.list_topics(name, timeout=5).topics[name] for name in starts}
            except KafkaException as error:
                _log.warning("lease topics: %s", error)
                continue
            if all(topic.error is None and topic.partitions for topic in found.values()):
                return [
                    TopicPartition(name, partition, start)
                    for name, start in starts.items()
                    for partition in found[name].partitions
                ]
        return []

    def _hear(self, message: KafkaMessage) -> None:
        value = message.value()
        try:
            if message.topic() == BUDGET_STATE.name:
                if value is not None:
                    self._on_state(BudgetState.model_validate_json(value))
            elif value is not None and b'"grant"' in value and self._mark in value:
                grant = LeaseGrant.model_validate_json(value)
                if grant.gateway == self._gateway:
                    self._on_grant(grant)
        except ValidationError as error:
            _log.warning("a message on %s was ignored: %s", message.topic(), error)
