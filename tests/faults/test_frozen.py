"""Broker and ClickHouse frozen (SIGSTOP): their connections stay open and nothing answers, until they go on with all they had."""

from typing import Any

from taximeter_producers import Safe
from tests.faults.yard import PARTITIONS, Yard
from tests.kafka_broker import ApacheKafka
from tests.waiting import await_true

DELIVERY_SECONDS_MAX = 2.0


def names_partitions(answer: tuple[int, dict[str, Any]]) -> bool:
    """Whether a worker is not ready, and says which partition waits in which step, or that all of them are lost."""
    status, state = answer
    waits = state.get("step") in ("rejected", "spend") and state.get("partition") in range(PARTITIONS)
    return status == 503 and (waits or state.get("lost") == list(range(PARTITIONS)))


def test_the_broker_at_work_and_with_nothing_to_do(yard: Yard, kafka: ApacheKafka) -> None:
    """Longer than sessions and deliveries. What it had received takes effect afterwards, although it is in the spool as well."""
    meter = yard.meter()
    yard.budgets()
    with yard.load(delivery_seconds_max=DELIVERY_SECONDS_MAX) as load:
        for at_work in (True, False):
            spooled = yard.acknowledged.safe[Safe.SPOOL]
            before = yard.rows()
            load.send_all([yard.events.event() for _ in range(400)])
            if at_work:
                yard.await_rows(before + 1)
            else:
                load.flush()
                yard.settle()
                meter.await_ready()
            kafka.freeze()
            try:
                # It would not return, were the broker waited for.
                load.send_all([yard.events.event() for _ in range(300)])
                await_true(lambda: load.producer.state().broker_away, lambda: f"noticed: {load.producer.state()}")
                load.send_all([yard.events.event() for _ in range(100)])
                load.flush()
                assert yard.acknowledged.safe[Safe.SPOOL] >= spooled + 100
                await_true(lambda: names_partitions(meter.ask("/readyz")), lambda: f"told\n{yard.logs()}")
                assert meter.ask("/healthz")[0] == 200  # a restart would help nobody
            finally:
                kafka.thaw()
            await_true(lambda: load.producer.state().spool_bytes == 0, lambda: f"it drains: {load.producer.state()}")
            meter.await_ready()
    yard.check()


def test_clickhouse_at_work(yard: Yard) -> None:
    """The meter's request is under way, and answered when it goes on; what is fetched meanwhile is bounded."""
    meter = yard.meter(queue_kbytes_max=1024, batch_events_max=1_000)
    with yard.load() as load:
        load.send_all([yard.events.event() for _ in range(300)])
        yard.await_rows(1)
        rss = meter.rss_kibibytes()
        yard.face.freeze()
        try:
            load.send_all([yard.events.event() for _ in range(12_000)])
            load.flush()
            await_true(lambda: meter.ask("/healthz")[0] == 503, lambda: f"told: {meter.ask('/healthz')}")
            answer = meter.ask("/healthz")[1]
            assert answer["step"] in ("insert", "recovery")
            assert answer["partition"] in range(PARTITIONS)
            assert meter.ask("/readyz")[0] == 503
            lag = meter.metric("taximeter_meter_lag_seconds")
            await_true(lambda: meter.metric("taximeter_meter_lag_seconds") > lag, "the lag grows")
            assert meter.rss_kibibytes() - rss < 64 * 1024
        finally:
            yard.face.thaw()
        meter.await_ready()
    yard.check()
