"""What the meter holds of messages that it has fetched and does not write yet."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from confluent_kafka import KafkaError, Message

from taximeter_streams.meter.batch import Arrivals
from taximeter_streams.meter.holding import Held

NOVEMBER, DECEMBER = (int(datetime(2026, month, 1, tzinfo=UTC).timestamp() * 1000) for month in (11, 12))


@dataclass(frozen=True)
class Fetched:
    """The face of a confluent_kafka.Message that the meter looks at."""

    at: int
    place: int = 0
    arrived_at_ms: int = NOVEMBER
    failure: KafkaError | None = None

    def error(self) -> KafkaError | None:
        return self.failure

    def partition(self) -> int:
        return self.place

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 2, self.arrived_at_ms

    def value(self) -> bytes:
        return str(self.at).encode()


def messages(*fetched: Fetched) -> list[Message]:
    return cast("list[Message]", list(fetched))


def arrivals(*offsets: int) -> Arrivals:
    return Arrivals(offsets, [NOVEMBER] * len(offsets), [b""] * len(offsets))


def taken(held: Held) -> list[tuple[int, list[int]]]:
    """All that is held, in the order in which it is written."""
    found = []
    while (work := held.next()) is not None:
        found.append((work[0], list(work[1].offsets)))
    return found


def test_a_partition_is_written_in_the_order_of_its_offsets_and_once() -> None:
    held = Held()
    held.take(messages(Fetched(5), Fetched(6)), {0: 5}, 1.0)
    assert (len(held), held.end(0), held.since) == (2, 7, 1.0)
    # Read again from an earlier place, out of order: only what is new is held.
    held.take(messages(Fetched(8), Fetched(6), Fetched(7)), {0: 7}, 2.0)
    assert (held.end(0), held.since) == (9, 1.0)
    assert taken(held) == [(0, [5, 6, 7, 8])]
    assert (len(held), held.end(0), held.since) == (0, None, None)


def test_what_is_not_ours_or_no_message_is_not_held() -> None:
    held = Held()
    failed = Fetched(3, failure=KafkaError(KafkaError._ALL_BROKERS_DOWN))
    held.take(messages(Fetched(1, 1), failed, Fetched(2)), {0: 0, 2: 0}, 1.0)
    assert taken(held) == [(0, [2])]


def test_the_partition_that_waited_longest_is_next() -> None:
    held = Held()
    held.take(messages(Fetched(1, 3)), {3: 0, 1: 0}, 1.0)
    held.take(messages(Fetched(1, 1), Fetched(2, 3)), {3: 2, 1: 0}, 2.0)
    assert taken(held) == [(3, [1, 2]), (1, [1])]


def test_a_month_of_arrival_is_a_batch_of_its_own_and_its_rest_comes_next() -> None:
    held = Held()
    held.take(messages(Fetched(1), Fetched(2, 0, DECEMBER), Fetched(1, 1)), {0: 0, 1: 0}, 1.0)
    assert taken(held) == [(0, [1]), (0, [2]), (1, [1])]


def test_a_lost_partition_takes_what_is_held_with_it() -> None:
    held = Held()
    held.take(messages(Fetched(1), Fetched(1, 1)), {0: 0, 1: 0}, 1.0)
    held.drop(0)
    held.drop(7)
    assert taken(held) == [(1, [1])]
    held.take(messages(Fetched(2), Fetched(2, 1)), {0: 0, 1: 0}, 1.0)
    held.clear()
    assert taken(held) == []


def test_what_is_expected_comes_behind_what_is_in_hand_and_held() -> None:
    held = Held()
    held.take(messages(Fetched(9), Fetched(10)), {0: 9}, 1.0)
    in_hand = [(0, arrivals(5, 6)), (1, arrivals(3, 4)), (2, arrivals(1, 2))]
    assert held.expected({0: 5, 1: 3, 3: 7}, in_hand) == {0: 11, 1: 5, 3: 7}


def test_a_batch_that_will_not_be_written_hides_nothing() -> None:
    """Its partition went and came back in the middle of it: the end of it is to be fetched again."""
    assert Held().expected({0: 6}, [(0, arrivals(5, 6, 7))]) == {0: 6}
