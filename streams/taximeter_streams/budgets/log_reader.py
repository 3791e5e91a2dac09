"""Reading the log by offset, beside faust's own consumer, which does not hand over all that it fetches.

When partitions move, faust drops what it has fetched, cancels what it is handing over, and goes on behind it. So the keeper
keeps its own place in each partition and reads from here what lies between that and what faust hands over.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import OFFSET_INVALID, TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaError, TopicPartition
from confluent_kafka import Message as Record
from faust.types.tuples import TP, Message

CHUNK = 500
ASK_SECONDS_MAX = 10.0
READ_SECONDS_MAX = 30.0
_FAUST_LOG_APPEND_TIME = 1


class LogUnreadableError(Exception):
    """The broker did not answer in time."""


class LogReader:
    """Places and records of partitions, for one consumer group. Calls block, and may come from any thread."""

    def __init__(self, bootstrap_servers: str, group: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                # Only to ask for its committed offsets: what is assigned by hand does not join the group.
                "group.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
            }
        )
        self._turn = threading.Lock()

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def start_of(self, tp: TP) -> int:
        """The offset from which the group has to read the partition. Raises KafkaException when the broker is away."""
        with self._turn:
            (committed,) = self._consumer.committed([TopicPartition(tp.topic, tp.partition)], timeout=ASK_SECONDS_MAX)
            if committed.error is not None:
                raise LogUnreadableError(f"{tp}: {committed.error}")
            return self._ends(tp)[0] if committed.offset == OFFSET_INVALID else int(committed.offset)

    def end_of(self, tp: TP) -> int:
        """The offset that the next record will get. Raises KafkaException when the broker is away."""
        with self._turn:
            return self._ends(tp)[1]

    def between(self, tp: TP, first: int, end: int) -> tuple[list[Message], int]:
        """The records from `first` until before `end`, at most `CHUNK`, and the offset to go on from (`end` when through).

        Raises LogUnreadableError when the log says nothing for 30 s.
        """
        deadline = time.monotonic() + READ_SECONDS_MAX
        found: list[Message] = []
        with self._turn, self._reading(tp, first):
            while time.monotonic() < deadline:
                for record in self._consumer.consume(CHUNK, timeout=1.0):
                    error = record.error()
                    if error is not None:
                        if error.code() == KafkaError._PARTITION_EOF:
                            return found, end
                        continue
                    message = _as_faust_has_it(record, tp)
                    if message.offset >= end:
                        return found, end
                    found.append(message)
                    if len(found) >= CHUNK or message.offset + 1 == end:
                        return found, message.offset + 1
        raise LogUnreadableError(f"{tp}: nothing came between {first} and {end} in {READ_SECONDS_MAX:.0f} s")

    @contextmanager
    def _reading(self, tp: TP, first: int) -> Iterator[None]:
        self._consumer.assign([TopicPartition(tp.topic, tp.partition, first)])
        try:
            yield
        finally:
            self._consumer.unassign()

    def _ends(self, tp: TP) -> tuple[int, int]:
        ends = self._consumer.get_watermark_offsets(
            TopicPartition(tp.topic, tp.partition), timeout=ASK_SECONDS_MAX, cached=False
        )
        if ends is None:
            raise LogUnreadableError(f"{tp}: no word of where it ends in {ASK_SECONDS_MAX:.0f} s")
        return int(ends[0]), int(ends[1])


def _as_faust_has_it(record: Record, tp: TP) -> Message:
    kind, milliseconds = record.timestamp()
    return Message(
        tp.topic,
        tp.partition,
        record.offset() or 0,
        milliseconds / 1_000,
        _FAUST_LOG_APPEND_TIME if kind == TIMESTAMP_LOG_APPEND_TIME else 0,
        [],
        record.key(),
        record.value(),
        None,
        tp=tp,
    )
