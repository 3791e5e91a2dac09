"""Records on their way, and the crates in which they go to the Kafka client: many by one call, one crate at a time.

A call and a callback of its own for each record would cost more than all else that is done for it. And an idempotent client
that has more to send than its requests under way allow spins: its thread takes a whole core until the broker has answered.
So what comes while a crate is under way is the next one.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, NotRequired, TypedDict, cast

from confluent_kafka import KafkaError, Message, Producer

from taximeter_producers.frames import FRAME_BYTES_OVERHEAD, SpoolRecord


class Safe(StrEnum):
    """Where a record is safe: acknowledged by the broker, or fsync'd in the spool."""

    BROKER = "broker"
    SPOOL = "spool"


class Parcel(TypedDict):
    """A record as the client takes it by the batch. `safe`, where somebody waits for it, is set once it is.

    It fails with UndeliverableError or SpoolError.
    """

    key: bytes
    value: bytes
    safe: NotRequired[Future[Safe]]
    callback: NotRequired[Callable[[KafkaError | None, Message], None]]
    """The client's: it reports to this one instead of the crate's own."""
    _error: NotRequired[KafkaError]
    """The client's: why it did not take this one."""


def record_of(parcel: Parcel) -> SpoolRecord:
    """As the spool keeps it."""
    return SpoolRecord(parcel["key"], parcel["value"])


def frame_bytes(parcel: Parcel) -> int:
    """How many bytes it takes in the spool."""
    return FRAME_BYTES_OVERHEAD + len(parcel["key"]) + len(parcel["value"])


@dataclass(slots=True, eq=False)
class Crate:
    """Parcels that are sent together. `failed` hears of each that was not delivered; `emptied`, once all are reported."""

    parcels: list[Parcel]
    failed: Callable[["Crate", Parcel, KafkaError], None]
    emptied: Callable[["Crate"], None]
    size_bytes: int = field(init=False)
    """What the parcels take in the spool, less those that failed."""
    wanted: int = field(init=False)
    """How many the client took; each of them is reported once."""
    reported: int = 0
    settled: bool = False
    """Nothing of it is under way, or what is does not matter any more."""

    def __post_init__(self) -> None:
        self.wanted = len(self.parcels)
        self.size_bytes = sum(map(frame_bytes, self.parcels))

    def send(self, client: Producer, topic: str) -> list[tuple[Parcel, KafkaError]]:
        """Hand the parcels over, and return those that the client did not take. Raises BufferError and KafkaException."""
        for parcel in self.parcels:
            if "safe" in parcel:
                parcel["callback"] = partial(self._on_awaited, parcel["safe"])
        batch = cast("list[dict[str, Any]]", self.parcels)
        if client.produce_batch(topic, batch, on_delivery=self._on_delivered) == len(self.parcels):
            return []
        taken = [parcel for parcel in self.parcels if "_error" not in parcel]
        refused = [(parcel, parcel.pop("_error")) for parcel in self.parcels if "_error" in parcel]
        self.parcels, self.wanted = taken, len(taken)
        self.size_bytes -= sum(frame_bytes(parcel) for parcel, _ in refused)
        return refused

    # The client's reports, in the courier's thread.

    def _on_delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and not self.settled:
            self.failed(self, {"key": message.key() or b"", "value": message.value() or b""}, error)
        self.reported += 1
        if self.reported >= self.wanted:
            self.emptied(self)

    def _on_awaited(self, safe: Future[Safe], error: KafkaError | None, message: Message) -> None:
        if error is None:
            if not self.settled:
                safe.set_result(Safe.BROKER)
        elif not self.settled:
            self.failed(self, {"key": message.key() or b"", "value": message.value() or b"", "safe": safe}, error)
        self.reported += 1
        if self.reported >= self.wanted:
            self.emptied(self)
