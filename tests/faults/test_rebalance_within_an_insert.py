"""The group deals partitions anew while an insert is under way and the next messages are already read and folded.

The owner finishes the batch that is under way before it lets go, or leaves it to the next; what it read ahead it forgets.
"""

import pytest
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient

from tests.faults.clickhouse_proxy import Place
from tests.faults.processes import Worker
from tests.faults.yard import PARTITIONS, Yard
from tests.waiting import await_true


def partitions(worker: Worker) -> int:
    """How many a worker says that it has."""
    return len(worker.ask("/readyz")[1].get("partitions", []))


def await_dealing(yard: Yard) -> None:
    """Wait until the group has asked its members to let go, and waits for one of them."""
    admin, group = AdminClient({"bootstrap.servers": yard.servers}), f"meter-{yard.mark}"

    def state() -> ConsumerGroupState:
        found: ConsumerGroupState = admin.describe_consumer_groups([group])[group].result(30).state
        return found

    await_true(lambda: state() == ConsumerGroupState.PREPARING_REBALANCING, lambda: f"{state()}\n{yard.logs()}")


@pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])
def test_dealt_anew_while_an_insert_is_under_way(yard: Yard, dies: bool) -> None:
    """A worker joins while an insert stands still at each of its places, and its sender lets go of the partitions, or dies."""
    # Long, so that it is not silent for too long while the other one starts; not so long where its death must be noticed.
    session_timeout_ms = 5_000 if dies else 20_000
    owner = yard.meter(session_timeout_ms=session_timeout_ms)
    owner.await_ready()
    with yard.load() as load:
        for place in Place:
            trap = yard.proxy.trap(place, goes_on=True)
            load.send_all([yard.events.event() for _ in range(500)])
            trap.await_caught()
            joining = yard.meter(session_timeout_ms=session_timeout_ms)
            await_dealing(yard)
            if dies:
                owner.kill()
            trap.release()
            await_true(lambda one=joining: partitions(one) > 0, lambda: f"it gets some\n{yard.logs()}")  # type: ignore[misc]
            if not dies:
                owner.child.stop()
            await_true(lambda one=joining: partitions(one) == PARTITIONS, lambda: f"all\n{yard.logs()}")  # type: ignore[misc]
            owner = joining
        load.flush()
        yard.await_rows(len(yard.acknowledged.usages))
    yard.check()
