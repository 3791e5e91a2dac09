"""The dedupe index deleted, a partition moved to another worker, and the whole topic again: nothing counts a second time."""

from confluent_kafka import Producer

from taximeter_schemas.topics import USAGE_EVENTS
from tests.faults.load import Load
from tests.faults.yard import Yard
from tests.topic_reader import read_topic
from tests.waiting import await_true


def duplicates(yard: Yard) -> int:
    return int(yard.client.query("SELECT count() FROM usage_duplicates").result_rows[0][0])


def send_again(yard: Yard, load: Load) -> int:
    """Every event of this run once more, as a client would that was never answered."""
    again = yard.counted()
    load.send_all(again)
    load.flush()
    yard.settle()
    return len(again)


def test_index_deleted_and_partitions_moved(yard: Yard) -> None:
    first = yard.meter()
    with yard.load() as load:
        load.send_all([yard.events.event() for _ in range(500)])
        load.flush()
        yard.settle()
        first.kill()
        first.lose_index()
        first.start()
        repeated = send_again(yard, load)
        assert duplicates(yard) == repeated
        # The other worker has never seen any of it; one joins first, so that some partitions move and some stay.
        second = yard.meter()
        await_true(
            lambda: len(second.ask("/readyz")[1].get("partitions", [])) == 2, lambda: f"two moved\n{yard.logs()}"
        )
        repeated += send_again(yard, load)
        assert duplicates(yard) == repeated
        first.child.stop()
        repeated += send_again(yard, load)
        assert duplicates(yard) == repeated
        load.send_all([yard.events.event() for _ in range(100)])
    yard.check()


def test_a_replay_of_the_whole_topic_changes_nothing(yard: Yard) -> None:
    """Read again from its first offset by another group, and written again, message by message, at its end."""
    first = yard.meter()
    with yard.load() as load:
        load.send_all([yard.events.event() for _ in range(600)])
        load.flush()
        yard.settle()
    first.child.stop()
    rows = yard.rows()
    yard.meter(group=f"another-{yard.mark}").await_ready()
    yard.settle()
    assert yard.rows() == rows
    producer = Producer({"bootstrap.servers": yard.servers, "partitioner": "murmur2_random"})
    messages = read_topic(yard.servers, USAGE_EVENTS.name)
    for message in messages:
        producer.produce(USAGE_EVENTS.name, message.value(), key=message.key())
    assert producer.flush(60) == 0
    yard.settle()
    assert duplicates(yard) == len(messages) == yard.rows() - rows
    yard.check()
