"""What the meter sends on: rejected messages with their reason, and spend records to the budgets."""

import base64
from collections.abc import Iterable
from datetime import UTC, datetime

from confluent_kafka import KafkaError, Message, Producer

from taximeter_schemas.rejections import RejectedEvent, RejectionReason
from taximeter_schemas.spend import SpendRecord
from taximeter_schemas.topics import USAGE_REJECTED, USAGE_SPEND
from taximeter_streams.meter.folding import Examined

FLUSH_SECONDS_MAX = 60.0


class PublishError(ConnectionError):
    """The broker did not acknowledge what the meter sent."""


class Publisher:
    """Sends and waits for the acknowledgement of everything sent, so that a batch is either told or tried again."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._failures: list[str] = []
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 2,
                "compression.type": "lz4",
                # The same partition as faust's own producer picks, so that spend meets its tenant's budgets.
                "partitioner": "murmur2_random",
            }
        )

    def send_rejected(self, rows: Iterable[Examined], partition: int) -> None:
        """Send rejected messages whole. Raises PublishError."""
        now = datetime.now(UTC)
        for row in rows:
            record = rejected_event(row, partition, now)
            self._produce(USAGE_REJECTED.name, (record.event_id or "").encode(), record.model_dump_json().encode())
        self._flush()

    def send_spend(self, records: Iterable[SpendRecord]) -> None:
        """Send spend records. Raises PublishError."""
        for record in records:
            self._produce(USAGE_SPEND.name, record.tenant.encode(), record.model_dump_json().encode())
        self._flush()

    def _produce(self, topic: str, key: bytes, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key=key, on_delivery=self._delivered)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failures.append(str(error))

    def _flush(self) -> None:
        unsent = self._producer.flush(FLUSH_SECONDS_MAX)
        failures, self._failures = self._failures, []
        if unsent or failures:
            raise PublishError(f"{unsent + len(failures)} messages were not acknowledged: {'; '.join(failures[:3])}")


def rejected_event(row: Examined, partition: int, now: datetime) -> RejectedEvent:
    """A rejected row as the record that operators read; bytes that are not UTF-8 travel as base64. Pure."""
    try:
        payload, encoding = row.message.payload.decode(), "utf-8"
    except UnicodeDecodeError:
        payload, encoding = base64.b64encode(row.message.payload).decode(), "base64"
    event = row.event
    return RejectedEvent(
        reason=RejectionReason(row.reason),
        detail=row.detail,
        partition=partition,
        offset=row.message.offset,
        arrived_at=datetime.fromtimestamp(row.message.arrived_at_ms / 1000, UTC),
        rejected_at=now,
        tenant=event.data.tenant if event else None,
        source=event.source if event else None,
        event_id=event.id if event else None,
        payload=payload,
        payload_encoding=encoding,
    )
