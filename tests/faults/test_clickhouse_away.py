"""ClickHouse gone, slow, killed, or failing after an insert took effect: nothing twice, bounded memory, recovery by itself."""

from tests.faults.clickhouse_proxy import Place
from tests.faults.yard import Yard
from tests.waiting import await_true

GROWTH_KIBIBYTES_MAX = 64 * 1024
"""How much a worker may grow while it waits: what it fetches ahead is limited to 1 MiB here, and a batch is small."""


def test_gone_under_load_and_at_the_meters_start(yard: Yard) -> None:
    yard.proxy.go_away()
    meter = yard.meter(queue_kbytes_max=1024)
    await_true(
        lambda: "ClickHouse" in str(meter.ask("/readyz")[1].get("step")) and "trouble" in meter.ask("/readyz")[1],
        lambda: f"it waits for ClickHouse: {meter.ask('/readyz')}\n{meter.child.log_tail()}",
    )
    assert meter.ask("/healthz")[0] == 200
    assert meter.ask("/readyz")[0] == 503
    yard.proxy.come_back()
    meter.await_ready()
    with yard.load() as load:
        load.send_all([yard.events.event() for _ in range(300)])
        load.flush()
        yard.settle()
        before, rows = meter.rss_kibibytes(), yard.rows()
        yard.proxy.go_away()
        load.send_all([yard.events.event() for _ in range(12_000)])  # six times what it may fetch ahead
        load.flush()
        await_true(lambda: "trouble" in meter.ask("/readyz")[1], lambda: f"in trouble: {meter.ask('/readyz')}")
        status, answer = meter.ask("/readyz")
        assert status == 503
        assert "insert" in str(answer["trouble"])
        assert meter.ask("/healthz")[0] == 200  # it waits, and is not stuck
        assert yard.rows() == rows
        assert meter.rss_kibibytes() - before < GROWTH_KIBIBYTES_MAX
        yard.proxy.come_back()
        meter.await_ready()
    yard.settle()
    assert meter.rss_peak_kibibytes() - before < GROWTH_KIBIBYTES_MAX
    yard.check()


def test_failing_before_within_and_after_inserts_and_slow(yard: Yard) -> None:
    """Each cut looks the same to the meter. After one that took effect, the same block comes again under the same token."""
    meter = yard.meter()
    yard.proxy.delay_seconds = 0.1
    with yard.load() as load:
        for _turn in range(12):
            load.send_all([yard.events.event() for _ in range(100)])
            yard.proxy.cut(yard.random.choice(list(Place)))
        load.flush()
        while yard.proxy.traps:
            load.send_all([yard.events.event() for _ in range(10)])
            yard.await_rows(yard.rows() + 1)
        yard.settle()
    # The client itself tries again once where a kept connection was gone.
    assert meter.metric("taximeter_meter_retries_total") > 0
    yard.check()


def test_killed_in_the_middle_of_inserts(yard: Yard) -> None:
    """The server itself dies, perhaps between a table and its rollups, and comes back with its data."""
    meter = yard.meter()
    with yard.load() as load:
        for place in (Place.AFTER, Place.MID_BODY):
            trap = yard.proxy.trap(place)
            load.send_all([yard.events.event() for _ in range(300)])
            trap.await_caught()
            yard.face.kill()
            trap.release()
            await_true(lambda: "trouble" in meter.ask("/readyz")[1], lambda: f"in trouble: {meter.ask('/readyz')}")
            yard.face.start()
            meter.await_ready()
        for _death in range(2):
            before = yard.rows()
            load.send_all([yard.events.event() for _ in range(400)])
            yard.await_rows(before + 1 + yard.random.randrange(300))
            yard.face.kill()
            yard.face.start()
    yard.check()
