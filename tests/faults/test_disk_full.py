"""A disk that takes nothing more: under the producer's spool, the meter's index, and ClickHouse.

The kernel's limit on file sizes stands for the full disk: lowered to 0 on a running process, every write to a file fails at
once, whoever runs the test, and raised again it succeeds. The code sees EFBIG instead of ENOSPC, by the same call. ClickHouse
looks for room before it writes; there its own setting for that stands for the full disk.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from clickhouse_connect.driver.client import Client

from tests.faults.producing import producing
from tests.faults.yard import Yard
from tests.kafka_broker import ApacheKafka
from tests.waiting import await_true


@contextmanager
def full_disk(pid: int | None) -> Iterator[None]:
    """No file of that process can grow."""
    assert pid is not None
    _soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it may have ended of it
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def full_table(client: Client, table: str) -> Iterator[None]:
    """ClickHouse finds no room for that table: it asks for more free space than there can be."""
    client.command(f"ALTER TABLE {table} MODIFY SETTING min_free_disk_ratio_to_perform_insert = 1")
    try:
        yield
    finally:
        client.command(f"ALTER TABLE {table} RESET SETTING min_free_disk_ratio_to_perform_insert")


@pytest.mark.parametrize("table", ["usage_log", "usage_daily"])
def test_under_clickhouse(yard: Yard, table: str) -> None:
    """Under a rollup, too, when the raw rows are stored already: the same block, sent again, fills in what is missing."""
    meter = yard.meter()
    meter.await_ready()
    with yard.load() as load:
        load.send_all([yard.events.event() for _ in range(300)])
        yard.await_rows(1)
        with full_table(yard.client, table):
            load.send_all([yard.events.event() for _ in range(300)])
            load.flush()
            await_true(
                lambda: "NOT_ENOUGH_SPACE" in str(meter.ask("/readyz")[1].get("trouble")),
                lambda: f"{meter.ask('/readyz')}",
            )
            assert meter.ask("/healthz")[0] == 200
        meter.await_ready()
        load.send_all([yard.events.event() for _ in range(100)])
    yard.check()


def test_under_the_index(yard: Yard) -> None:
    """The worker ends rather than count what it could not remember; its next life reads that from the warehouse."""
    meter = yard.meter()
    meter.await_ready()
    with yard.load() as load:
        load.send_all([yard.events.event() for _ in range(300)])
        load.flush()
        yard.settle()
        with full_disk(meter.child.pid):
            load.send_all([yard.events.event() for _ in range(300)])
            load.flush()
            await_true(
                lambda: not meter.child.running, lambda: f"it ends: {meter.ask('/readyz')} {meter.child.log_tail(30)}"
            )
        meter.start()
        load.send_all([yard.events.event() for _ in range(100)])
        load.send_all(yard.counted()[:200])
    yard.check()


def test_under_the_spool(yard: Yard, kafka: ApacheKafka) -> None:
    """An event that is on no disk is not acknowledged: its caller hears of it, and sends it again."""
    yard.meter()
    kafka.kill()
    with producing(yard, "svc", 3_000, spool_bytes_max=50_000_000) as service:
        try:
            service.await_line("safe")  # the broker is away, and the spool takes events
            with full_disk(service.process.pid):
                service.await_line("failed")
            service.await_line("all taken")
            await_true(
                lambda: len(service.numbers("safe") | service.numbers("failed")) == 3_000, lambda: "each is answered"
            )
        finally:
            kafka.start()
        service.end()
    failed = service.numbers("failed")
    assert failed and not failed & service.numbers("safe")
    yard.acknowledged.usages.extend(service.acknowledged())
    with yard.load() as load:  # on the same spool, which may hold something still
        await_true(lambda: load.producer.state().spool_bytes == 0, lambda: f"it drains: {load.producer.state()}")
        yard.settle()
        assert {usage.event_id for usage in service.acknowledged()} <= yard.stored_ids()
        load.send_all([service.usages[number] for number in sorted(failed)])
    yard.check(service.usages)
