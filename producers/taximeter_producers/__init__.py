"""SDK for any service that uses tokens: `UsageProducer` sends usage events durably, `UsageEvent` is what it sends."""

from taximeter_producers.courier import CourierState
from taximeter_producers.crates import Safe
from taximeter_producers.errors import (
    InvalidEventError,
    ProducerClosedError,
    ProducerError,
    ProducerIdError,
    SpoolBusyError,
    SpoolError,
    SpoolFullError,
    UndeliverableError,
)
from taximeter_producers.producer import UsageProducer
from taximeter_schemas import UsageEvent

__all__ = [
    "CourierState",
    "InvalidEventError",
    "ProducerClosedError",
    "ProducerError",
    "ProducerIdError",
    "Safe",
    "SpoolBusyError",
    "SpoolError",
    "SpoolFullError",
    "UndeliverableError",
    "UsageEvent",
    "UsageProducer",
]
