"""A batch from its messages to its end, as the loop holds it; and the consumer that the messages come from."""

from concurrent.futures import Future
from dataclasses import dataclass

from confluent_kafka import Consumer

from taximeter_streams.meter.batch import Arrivals, Batch
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.settings import MeterSettings


class LostPartitionError(RuntimeError):
    """The partition went to another worker, or the worker is stopping, while a step was being repeated."""


@dataclass(slots=True)
class Work:
    """A batch on its way."""

    partition: int
    arrivals: Arrivals
    batch: Batch | None = None
    """Once it is folded."""
    pricing: Pricing | None = None
    """By which it was folded."""
    position: int = -1
    """Where the partition stood when its writing began."""
    insert: Future[None] | None = None
    """Once it is under way."""
    finished: bool = False
    """Marked, told and committed."""


def open_consumer(settings: MeterSettings) -> Consumer:
    """A member of the meter's group. It commits nothing by itself."""
    return Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "group.id": settings.meter_group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": settings.meter_session_timeout_ms,
            "heartbeat.interval.ms": max(500, settings.meter_session_timeout_ms // 5),
            "max.poll.interval.ms": max(300_000, settings.meter_session_timeout_ms),
            "queued.max.messages.kbytes": settings.meter_queue_kbytes_max,
            "fetch.wait.max.ms": 50,
            "allow.auto.create.topics": False,
        }
    )
