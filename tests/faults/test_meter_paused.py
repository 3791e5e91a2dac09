"""SIGSTOP for longer than the session, then SIGCONT: a worker that has lost its partitions writes nothing more.

Also in the middle of an insert, where no clock of the worker's own can help: the token of a batch names where it begins, so
of two blocks that begin at the same offset the server keeps the first and drops the other.
"""

import pytest

from tests.faults.clickhouse_proxy import Place
from tests.faults.processes import SESSION_TIMEOUT_MS
from tests.faults.yard import Yard
from tests.waiting import await_true


def owners(yard: Yard) -> list[int]:
    """How many partitions each running worker says that it has."""
    return [len(worker.ask("/readyz")[1].get("partitions", [])) for worker in yard.meters]


def test_paused_while_it_works_and_while_it_waits(yard: Yard) -> None:
    first, second = yard.meter(), yard.meter()
    await_true(
        lambda: sorted(owners(yard)) == [2, 2], lambda: f"both have two partitions: {owners(yard)}\n{yard.logs()}"
    )
    with yard.load() as load:
        for worker in (first, second):
            before = yard.rows()
            load.send_all([yard.events.event() for _ in range(600)])
            yard.await_rows(before + 1)
            worker.pause()
            load.flush()
            yard.settle()  # the other one has taken everything over
            worker.resume()
            load.send_all([yard.events.event() for _ in range(200)])
            first.await_ready()
            second.await_ready()
        second.pause()  # now with nothing in hand
        load.send_all([yard.events.event() for _ in range(200)])
        load.flush()
        yard.settle()
        second.resume()
        load.send_all([yard.events.event() for _ in range(200)])
    yard.check()


def test_a_batch_may_wait_longer_to_fill_than_the_session(yard: Yard) -> None:
    """Whoever waits for messages is not paused."""
    yard.meter(linger_ms=SESSION_TIMEOUT_MS + 1_000)
    with yard.load() as load:
        load.send_all([yard.events.event() for _ in range(60)])
        load.flush()
    yard.check()


@pytest.mark.parametrize("winner", ["the new owner", "the owner before"])
@pytest.mark.parametrize("place", [Place.BEFORE, Place.MID_BODY], ids=lambda place: place.name.lower())
def test_paused_within_an_insert(yard: Yard, place: Place, winner: str) -> None:
    """The request is under way while its sender stands still, and arrives when another worker owns the partition.

    Once the new owner has inserted from the same offset, the late block is dropped. Where the late block comes first, after the
    new owner has asked where to begin, the new owner's is dropped, and it finds that out.
    """
    first = yard.meter()
    first.await_ready()
    with yard.load() as load:
        late = yard.proxy.trap(place, goes_on=True)
        load.send_all([yard.events.event() for _ in range(40)])
        load.flush()
        late.await_caught()
        first.pause()
        rival = yard.proxy.trap(Place.BEFORE, goes_on=True)
        second = yard.meter()
        # Its batches are larger: the same beginning, and another end.
        load.send_all([yard.events.event() for _ in range(400)])
        load.flush()
        rival.await_caught()
        if winner == "the new owner":
            rival.release()
            yard.settle()
            late.release()
        else:
            late.release()
            rival.release()
        first.resume()
        load.send_all([yard.events.event() for _ in range(200)])
        load.flush()
        yard.settle()
        await_true(lambda: sorted(owners(yard)) == [2, 2], lambda: f"both work: {owners(yard)}\n{yard.logs()}")
    assert second.child.running
    yard.check()
