"""Batches of 10,000 events and more: the size at which kernel, one block on the wire, and rollups of thousands of rows matter.

What is small in the other scenarios is one network packet; here an insert is megabytes, and is cut in the middle of them.
"""

from typing import Any

from confluent_kafka import Producer

from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_sql import migrate
from tests.faults.clickhouse_proxy import Place
from tests.faults.ledger import Usage
from tests.faults.load import Load
from tests.faults.processes import Worker
from tests.faults.test_disk_full import full_table
from tests.faults.yard import Yard
from tests.waiting import await_true

LARGE: dict[str, Any] = {"batch_events_max": 50_000, "linger_ms": 2_000, "session_timeout_ms": 10_000}
"""One batch holds all that a partition has; a slow machine gets the time to fetch it."""


def send_many(load: Load, usages: list[Usage]) -> None:
    """As fast as the producer takes them; where its queue is full, it is waited for."""
    for usage in usages:
        while not load.send(usage, fast=True):
            load.flush()
    load.flush()


def largest_batch(yard: Yard) -> int:
    """The rows of the largest batch that is stored."""
    rows = yard.client.query("SELECT count() FROM usage_log GROUP BY partition, batch_first ORDER BY 1 DESC LIMIT 1")
    return int(rows.result_rows[0][0]) if rows.result_rows else 0


def strike(yard: Yard, place: Place, worker: Worker) -> None:
    """Start the worker, and kill it while an insert stands at that place."""
    trap = yard.proxy.trap(place)
    worker.start()
    trap.await_caught()
    worker.kill()
    trap.release()


def test_killed_and_cut_within_a_large_block_then_folded_another_way(yard: Yard) -> None:
    """By columns first, then by rows: the same block under the same token, whoever wrote it. Poison and repetitions in it."""
    raw = Producer({"bootstrap.servers": yard.servers})
    with yard.load() as load:
        usages = [yard.events.event() for _ in range(44_000)]
        send_many(load, usages[:30_000])
        for number in range(40):
            raw.produce(USAGE_EVENTS.name, b'{"specversion": "1.0", "number": %d' % number)
        assert raw.flush(60) == 0
        send_many(load, [*usages[30_000:], *usages[::50]])
    by_columns = yard.meter(start=False, kernel="required", **LARGE)
    strike(yard, Place.MID_BODY, by_columns)
    strike(yard, Place.AFTER, by_columns)
    by_columns.lose_index()
    yard.proxy.cut(Place.AFTER)
    by_rows = yard.meter(kernel="off", **LARGE)
    yard.settle()
    by_rows.kill()
    assert largest_batch(yard) >= 10_000
    by_columns.start()
    with yard.load() as load:
        send_many(load, usages[:8_000])
    yard.check()


def test_a_rollup_fails_clickhouse_dies_and_an_owner_sleeps_under_large_batches(yard: Yard) -> None:
    """Raw rows of a large block without their rollup; the server dead within one; a late one against a new owner's shorter."""
    with yard.load() as load:
        send_many(load, [yard.events.event() for _ in range(42_000)])
        first = yard.meter(start=False, kernel="required", **LARGE)
        migrate(yard.client)
        with full_table(yard.client, "usage_daily"):
            first.start()
            await_true(
                lambda: "NOT_ENOUGH_SPACE" in str(first.ask("/readyz")[1].get("trouble")),
                lambda: f"{first.ask('/readyz')}\n{first.child.log_tail(20)}",
            )
            first.kill()
        trap = yard.proxy.trap(Place.MID_BODY)
        first.start()
        trap.await_caught()
        yard.face.kill()
        trap.release()
        yard.face.start()
        late = yard.proxy.trap(Place.BEFORE, goes_on=True)
        late.await_caught()
        first.pause()
        yard.meter(kernel="off", **LARGE | {"batch_events_max": 3_000})
        yard.settle()
        late.release()
        first.resume()
        send_many(load, [yard.events.event() for _ in range(2_000)])
    yard.settle()
    yard.check()
