"""Follows control.v1 into a snapshot, and publishes to it.

A follower reads every partition from its beginning without a consumer group: each process needs all of it, and nothing is
committed. The end is learnt from end-of-partition events, because not every broker reports its end offset truly.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from pydantic import ValidationError

from taximeter_producers.errors import ControlError
from taximeter_schemas.control import ControlRecord
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.topics import CONTROL

PUBLISH_SECONDS_MAX = 30.0
_log = logging.getLogger(__name__)


class ControlFollower:
    """Keeps a ControlSnapshot up to date in a daemon thread. `on_change` is called there after each change."""

    def __init__(self, bootstrap_servers: str, on_change: Callable[[ControlSnapshot], None] | None = None) -> None:
        self._consumer_config = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "taximeter-control-unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 100,
            "allow.auto.create.topics": False,
        }
        self._on_change = on_change
        self._snapshot = ControlSnapshot()
        self._caught_up = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, timeout_seconds: float = 30.0) -> None:
        """Read to the end, then follow. Raises ControlError when the end is not reached in time."""
        self._thread = threading.Thread(target=self._follow, name="control-follower", daemon=True)
        self._thread.start()
        if not self._caught_up.wait(timeout_seconds):
            self.stop()
            raise ControlError(f"{CONTROL.name} could not be read to its end in {timeout_seconds:.0f} s")

    def snapshot(self) -> ControlSnapshot:
        """What is declared now."""
        return self._snapshot

    @property
    def following(self) -> bool:
        """Whether the snapshot is kept up to date: read to the end once, and the thread is there."""
        return self._caught_up.is_set() and self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Stop following."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10)

    def _follow(self) -> None:
        consumer = Consumer(self._consumer_config, logger=_log)
        try:
            partitions = self._partitions(consumer)
            consumer.assign([TopicPartition(CONTROL.name, partition, 0) for partition in partitions])
            unread = set(partitions)
            while not self._stopping.is_set():
                message = consumer.poll(0.2)
                if message is None:
                    continue
                error = message.error()
                if error is None:
                    self._apply(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition())
                    if not unread:
                        self._caught_up.set()
                else:
                    _log.warning("control topic: %s", error)
        finally:
            consumer.close()

    def _partitions(self, consumer: Consumer) -> list[int]:
        while not self._stopping.is_set():
            try:
                topic = consumer.list_topics(CONTROL.name, timeout=5).topics[CONTROL.name]
            except Exception as error:  # noqa: BLE001 - whatever keeps the broker away, the answer is to ask again
                _log.warning("control topic: %s", error)
                continue
            if topic.partitions and topic.error is None:
                return sorted(topic.partitions)
            time.sleep(0.2)
        return []

    def _apply(self, message: Message) -> None:
        key, value = message.key() or b"", message.value()
        try:
            record = ControlRecord.model_validate_json(value) if value is not None else _tombstone(key)
            self._snapshot = self._snapshot.apply(record)
        except ValidationError as error:
            _log.error("a control record is not valid and was ignored: %s", error, extra={"key": repr(key)})
            return
        if self._on_change is not None:
            self._on_change(self._snapshot)


def _tombstone(key: bytes) -> ControlRecord:
    """What a message without a value says: the thing under that key ("kind/id") is deleted. Raises ValidationError."""
    kind, _, name = key.decode(errors="replace").partition("/")
    return ControlRecord.model_validate({"kind": kind, "id": name, "body": None, "recorded_at": datetime.now(UTC)})


def publish(bootstrap_servers: str, records: Iterable[ControlRecord]) -> int:
    """Publish control records and wait for the broker's acknowledgement of each. Raises ControlError when one is missing."""
    failures: list[str] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(str(error))

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "message.timeout.ms": int(PUBLISH_SECONDS_MAX * 1000),
        },
        logger=_log,
    )
    count = 0
    for record in records:
        # A deletion keeps its record (with a body of None): compaction keeps the last word on each key.
        payload = record.model_dump_json().encode()
        while True:
            try:
                producer.produce(CONTROL.name, payload, key=record.key.encode(), on_delivery=delivered)
                break
            except BufferError:  # the local queue is full; delivery makes room, or its time-out does
                producer.poll(0.1)
        producer.poll(0)
        count += 1
    unsent = producer.flush(PUBLISH_SECONDS_MAX + 5)
    if failures or unsent:
        raise ControlError(f"{unsent + len(failures)} control records were not acknowledged: {'; '.join(failures[:3])}")
    return count
