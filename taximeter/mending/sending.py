"""Sends messages to usage.events.v1 and says where each stands; waits until the meter has stored them."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaError, Message, Producer

from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_sql import query

FLUSH_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.2


class SendError(ConnectionError):
    """The log did not take everything; what it took counts once, and running the command again sends the rest."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a message stands in the log."""

    partition: int
    offset: int


class Sender:
    """Sends to the log as producers do: by the same key to the same partition, so that repetitions meet their first."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "message.max.bytes": 1_048_000,
            }
        )

    def send(self, messages: Iterable[tuple[bytes, bytes]]) -> list[Placed]:
        """Send (key, value) pairs, wait for the acknowledgement of all, and say where each stands. Raises SendError."""
        placed: dict[int, Placed] = {}
        failures: list[str] = []

        def report_of(number: int) -> Callable[[KafkaError | None, Message], None]:
            def delivered(error: KafkaError | None, message: Message) -> None:
                if error is not None:
                    failures.append(str(error))
                else:
                    placed[number] = Placed(int(message.partition() or 0), int(message.offset() or 0))

            return delivered

        count = 0
        for count, (key, value) in enumerate(messages, 1):
            while True:
                try:
                    self._producer.produce(USAGE_EVENTS.name, value, key=key, on_delivery=report_of(count - 1))
                    break
                except BufferError:
                    self._producer.poll(0.1)
            self._producer.poll(0)
        self._producer.flush(FLUSH_SECONDS_MAX)
        if len(placed) < count:
            raise SendError(f"the log took {len(placed)} of {count} messages: {'; '.join(failures[:3]) or 'no answer'}")
        return [placed[number] for number in range(count)]


def await_stored(client: Client, log_id: str, placed: Iterable[Placed], seconds_max: float) -> bool:
    """Wait until the meter has stored all of them; False when it has not within that time."""
    lasts: Mapping[int, int] = _lasts(placed)
    deadline = time.monotonic() + seconds_max
    while True:
        rows = client.query(query("reconcile_reached"), parameters={"log_id": log_id}).result_rows
        reached = {int(partition): int(end) for partition, end in rows}
        if all(reached.get(partition, 0) > last for partition, last in lasts.items()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)


def spans(placed: Iterable[Placed]) -> dict[int, tuple[int, int]]:
    """The first and last offset of each partition."""
    found: dict[int, tuple[int, int]] = {}
    for place in placed:
        first, last = found.get(place.partition, (place.offset, place.offset))
        found[place.partition] = min(first, place.offset), max(last, place.offset)
    return found


def _lasts(placed: Iterable[Placed]) -> dict[int, int]:
    return {partition: last for partition, (_first, last) in spans(placed).items()}
