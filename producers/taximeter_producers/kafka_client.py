"""The one file that makes librdkafka producers, and says which of its errors mean what."""

import logging
from collections.abc import Callable

from confluent_kafka import KafkaError, Producer

from taximeter_schemas.rejections import EVENT_BYTES_MAX

_log = logging.getLogger(__name__)

QUEUE_MESSAGES_MAX = 100_000
QUEUE_KIBIBYTES_MAX = 65_536

# The broker will say the same again, whenever it is asked.
_REFUSED_FOR_GOOD = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD})


def make_client(
    bootstrap_servers: str, delivery_seconds_max: float, on_error: Callable[[KafkaError], None]
) -> Producer:
    """An idempotent producer that reports a message as failed after `delivery_seconds_max` at most.

    Callbacks are served by its `poll`.
    """
    delivery_ms_max = int(delivery_seconds_max * 1000)
    return Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": "lz4",
            "partitioner": "murmur2_random",
            # A crate comes whole; to wait for more is time in which nothing is under way.
            "linger.ms": 1,
            "message.timeout.ms": delivery_ms_max,
            "request.timeout.ms": min(30_000, delivery_ms_max),
            "message.max.bytes": EVENT_BYTES_MAX + 20_000,
            "queue.buffering.max.messages": QUEUE_MESSAGES_MAX,
            "queue.buffering.max.kbytes": QUEUE_KIBIBYTES_MAX,
            "reconnect.backoff.max.ms": 2_000,
            "socket.connection.setup.timeout.ms": 10_000,
            "error_cb": on_error,
        },
        logger=_log,
    )


def broker_is_away(error: KafkaError) -> bool:
    """Whether the client's error means that no broker can be reached."""
    return bool(error.code() == KafkaError._ALL_BROKERS_DOWN)


def taken_back(error: KafkaError) -> bool:
    """Whether a message failed only because we purged it."""
    return error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)


def refused_for_good(error: KafkaError) -> bool:
    """Whether sending the same message again is useless."""
    return error.code() in _REFUSED_FOR_GOOD
