"""What the meter sends on: rejected messages with their reason, and spend records to the budgets."""

import base64
import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from taximeter_schemas.rejections import RejectedEvent, RejectionReason
from taximeter_schemas.spend import SpendRecord
from taximeter_schemas.topics import USAGE_REJECTED, USAGE_SPEND
from taximeter_streams.meter.folding import Examined

FLUSH_SECONDS_MAX = 60.0
RECORD_BYTES_MAX = 1_040_000
"""The largest record sent: a little under what a topic takes by default (1,048,588 bytes with its headers)."""

CUT_BYTES_MAX = 65_536
"""How much of a rejected message is sent on when the whole would make too large a record."""

_log = logging.getLogger(__name__)


class PublishError(ConnectionError):
    """The broker did not acknowledge what the meter sent."""


class Publisher:
    """Sends and waits for the acknowledgement of everything sent, so that a batch is either told or tried again."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._failures: list[str] = []
        self.on_wait: Callable[[], None] = lambda: None
        """Called every second while an acknowledgement is awaited."""
        self._producer = self._open()

    def send_rejected(self, rows: Iterable[Examined], partition: int) -> None:
        """Send rejected messages, each whole unless that makes too large a record. Raises PublishError."""
        now = datetime.now(UTC)
        for row in rows:
            payload, record = rejected_record(row, partition, now)
            self._produce(USAGE_REJECTED.name, (record.event_id or "").encode(), payload)
        self._flush()

    def send_spend(self, records: Iterable[SpendRecord]) -> None:
        """Send spend records. Raises PublishError."""
        self.send_packed_spend([(record.tenant, record.model_dump_json().encode()) for record in records])

    def send_packed_spend(self, records: Iterable[tuple[str, bytes]]) -> None:
        """Send spend records that are encoded already, each with its tenant. Raises PublishError."""
        for tenant, payload in records:
            self._produce(USAGE_SPEND.name, tenant.encode(), payload)
        self._flush()

    def _open(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self._bootstrap_servers,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 2,
                "compression.type": "lz4",
                "message.max.bytes": RECORD_BYTES_MAX + 8_000,
                # The same partition as faust's own producer picks, so that spend meets its tenant's budgets.
                "partitioner": "murmur2_random",
            },
            logger=_log,
        )

    def _produce(self, topic: str, key: bytes, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key=key, on_delivery=self._delivered)
                return
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                self._start_over()
                raise PublishError(f"{topic}: {error}") from error

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failures.append(str(error))

    def _flush(self) -> None:
        deadline = time.monotonic() + FLUSH_SECONDS_MAX
        while (unsent := self._producer.flush(1.0)) and time.monotonic() < deadline:
            self.on_wait()
        failures, self._failures = self._failures, []
        if unsent or failures:
            self._start_over()
            raise PublishError(f"{unsent + len(failures)} messages were not acknowledged: {'; '.join(failures[:3])}")

    def _start_over(self) -> None:
        """Drop what is queued, since it is sent again whole; a producer that failed for good never sends anything more."""
        self._producer.purge()
        self._producer.flush(1)
        self._failures = []
        self._producer = self._open()


def rejected_record(row: Examined, partition: int, now: datetime) -> tuple[bytes, RejectedEvent]:
    """A rejected row as the record that operators read, and its JSON, which is at most RECORD_BYTES_MAX long. Pure."""
    record = _rejected_event(row, row.message.payload, partition, now)
    encoded = record.model_dump_json().encode()
    if len(encoded) > RECORD_BYTES_MAX:
        record = _rejected_event(row, row.message.payload[:CUT_BYTES_MAX], partition, now)
        encoded = record.model_dump_json().encode()
    return encoded, record


def _rejected_event(row: Examined, kept: bytes, partition: int, now: datetime) -> RejectedEvent:
    try:
        payload, encoding = kept.decode(), "utf-8"
    except UnicodeDecodeError:
        payload, encoding = base64.b64encode(kept).decode(), "base64"
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
        payload_bytes_cut=len(row.message.payload) - len(kept),
    )
