"""A crate of records: it is empty when the client has reported each that it took, and knows which of them failed."""

from concurrent.futures import Future
from typing import Any, cast

from confluent_kafka import KafkaError, Message, Producer

from taximeter_producers.crates import Crate, Parcel, Safe, frame_bytes

TIMED_OUT, FULL = KafkaError(KafkaError._MSG_TIMED_OUT), KafkaError(KafkaError._QUEUE_FULL)


class Sent:
    """A message as the client reports it."""

    def __init__(self, parcel: dict[str, Any]) -> None:
        self._parcel = parcel

    def key(self) -> bytes:
        return bytes(self._parcel["key"])

    def value(self) -> bytes:
        return bytes(self._parcel["value"])


class Client:
    """Takes so many of a batch, and reports when it is told to."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._taken: list[tuple[dict[str, Any], Any]] = []

    def produce_batch(self, _topic: str, messages: list[dict[str, Any]], *, on_delivery: Any) -> int:
        for message in messages[: self._room]:
            self._taken.append((message, message.get("callback", on_delivery)))
        for message in messages[self._room :]:
            message["_error"] = FULL
        return len(self._taken)

    def report(self, error: KafkaError | None = None) -> None:
        """Of the one that was taken first."""
        message, callback = self._taken.pop(0)
        callback(error, cast(Message, Sent(message)))


class Shed:
    """A crate of four, of which the third is waited for, and what is heard of it."""

    def __init__(self, room: int = 4) -> None:
        self.safe: Future[Safe] = Future()
        self.parcels: list[Parcel] = [{"key": b"k%d" % number, "value": b"v"} for number in range(4)]
        self.parcels[2]["safe"] = self.safe
        self.failed: list[Parcel] = []
        self.emptied = 0
        self.crate = Crate(list(self.parcels), lambda _crate, parcel, _error: self.failed.append(parcel), self._empty)
        self.client = Client(room)
        self.refused = self.crate.send(cast(Producer, self.client), "topic")

    def _empty(self, _crate: Crate) -> None:
        self.emptied += 1


def test_it_is_empty_when_each_is_acknowledged() -> None:
    shed = Shed()
    for number in range(4):
        assert (shed.emptied, shed.safe.done()) == (0, number > 2)
        shed.client.report()
    assert (shed.emptied, shed.failed, shed.refused) == (1, [], [])
    assert shed.safe.result() is Safe.BROKER


def test_what_fails_comes_back_whole_with_whoever_waits_for_it() -> None:
    shed = Shed()
    for error in (None, TIMED_OUT, TIMED_OUT, None):
        shed.client.report(error)
    assert shed.failed == [{"key": b"k1", "value": b"v"}, {"key": b"k2", "value": b"v", "safe": shed.safe}]
    assert (shed.emptied, shed.safe.done()) == (1, False)


def test_what_the_client_did_not_take_is_not_waited_for() -> None:
    shed = Shed(room=1)
    assert shed.refused == [(parcel, FULL) for parcel in shed.parcels[1:]]
    assert (shed.crate.wanted, shed.crate.size_bytes) == (1, frame_bytes(shed.parcels[0]))
    shed.client.report()
    assert shed.emptied == 1


def test_reports_of_a_crate_that_was_given_up_change_nothing() -> None:
    shed = Shed()
    shed.crate.settled = True
    for error in (None, TIMED_OUT, None, TIMED_OUT):
        shed.client.report(error)
    assert (shed.failed, shed.safe.done()) == ([], False)
