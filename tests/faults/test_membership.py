"""Workers that come and go, and a worker that is stuck: health is asked for all the while, and tells the truth."""

from taximeter_streams.meter.pulse import STUCK_SECONDS_MAX
from taximeter_streams.meter.settings import MeterSettings
from tests.faults.clickhouse_proxy import Place
from tests.faults.processes import Worker
from tests.faults.yard import PARTITIONS, Yard
from tests.waiting import await_true


def test_workers_come_and_go_every_few_batches(yard: Yard) -> None:
    """Started, stopped in order, killed: at no time does a worker that is there call itself stuck."""
    workers = [yard.meter()]
    asked = 0

    def healthy() -> None:
        nonlocal asked
        for worker in workers:
            status, answer = worker.ask("/healthz")
            asked += status == 200
            if status == 503:
                # Only an answer of ClickHouse or Kafka may take that long, on a machine that has far too much to do.
                assert answer["step"] in ("recovery", "insert", "spend"), answer
                await_true(lambda worker=worker: worker.ask("/healthz")[0] == 200, yard.logs)  # type: ignore[misc]

    def stored(count: int) -> bool:
        healthy()
        return yard.rows() >= count

    with yard.load() as load:
        for _change in range(8):
            before = yard.rows()
            load.send_all([yard.events.event() for _ in range(150)])
            await_true(lambda least=before + 1: stored(least), lambda: f"rows come\n{yard.logs()}")  # type: ignore[misc]
            if len(workers) < 2 or (len(workers) < PARTITIONS and yard.random.random() < 0.5):
                workers.append(yard.meter())
                continue
            leaving = workers.pop(yard.random.randrange(len(workers)))
            if yard.random.random() < 0.5:
                leaving.kill()
            else:
                leaving.child.stop()
        load.flush()
        await_true(lambda: stored(len(yard.acknowledged.usages)), lambda: f"all is stored\n{yard.logs()}")
    assert asked
    yard.check()


def test_a_stuck_worker_says_so_and_names_the_partition(yard: Yard) -> None:
    """Its insert never returns. Heartbeats go on in librdkafka's own thread, so only its own health can tell."""
    assert STUCK_SECONDS_MAX + MeterSettings().meter_linger_ms / 1000 < 10
    worker = yard.meter()
    worker.await_ready()
    with yard.load() as load:
        trap = yard.proxy.trap(Place.AFTER, goes_on=True)
        load.send_all([yard.events.event() for _ in range(100)])
        trap.await_caught()
        await_true(lambda: worker.ask("/healthz")[0] == 503, lambda: f"stuck: {worker.ask('/healthz')}")
        status, answer = worker.ask("/healthz")
        assert (status, answer["status"], answer["step"]) == (503, "stuck", "insert")
        assert answer["partition"] in range(PARTITIONS)
        status, answer = worker.ask("/readyz")
        assert (status, answer["step"]) == (503, "insert")
        trap.release()
        await_true(lambda: _well(worker), lambda: f"well again: {worker.ask('/healthz')} {worker.ask('/readyz')}")
    yard.check()


def _well(worker: Worker) -> bool:
    return worker.ask("/healthz")[0] == 200 and worker.ask("/readyz")[0] == 200


def test_partitions_lost_while_it_waits_are_read_when_they_come_back(yard: Yard) -> None:
    """librdkafka remembers that a partition was paused, also over its loss: the worker must not find it paused again."""
    first = yard.meter()
    with yard.load() as load:
        load.send_all([yard.events.event() for _ in range(100)])
        load.flush()
        yard.settle()
        yard.proxy.go_away()
        load.send_all([yard.events.event() for _ in range(100)])
        await_true(lambda: "trouble" in first.ask("/readyz")[1], lambda: f"it waits: {first.ask('/readyz')}")
        yard.environment["TAXIMETER_CLICKHOUSE_URL"] = yard.face.url(yard.database)
        second = yard.meter()  # it reaches ClickHouse by another way, and takes half
        await_true(
            lambda: len(second.ask("/readyz")[1].get("partitions", [])) == 2, lambda: f"two are lost\n{yard.logs()}"
        )
        yard.proxy.come_back()
        second.child.stop()
        await_true(
            lambda: len(first.ask("/readyz")[1].get("partitions", [])) == PARTITIONS,
            lambda: f"all again\n{yard.logs()}",
        )
        load.send_all([yard.events.event() for _ in range(400)])
    yard.check()
