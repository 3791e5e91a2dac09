"""The broker stopped, and killed, in the middle of traffic: producers spool, refuse clearly at their limit, and drain."""

import time

import pytest

from taximeter_producers import Safe
from tests.faults.load import Load
from tests.faults.producing import producing
from tests.faults.yard import Yard
from tests.kafka_broker import ApacheKafka
from tests.waiting import await_true

AWAY_SECONDS = 60.0
"""Longer than a producer tries to deliver an event, than a session, and than any back-off between two attempts."""


def await_away(load: Load) -> None:
    await_true(lambda: load.producer.state().broker_away, lambda: "the producer has noticed")


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_gone_under_load_and_at_the_meters_start(yard: Yard, kafka: ApacheKafka, how: str) -> None:
    """Killed it is back at once; stopped it stays away for a minute."""
    meter = yard.meter()
    with yard.load() as load:
        load.send_all([yard.events.event() for _ in range(300)])
        yard.await_rows(1)
        gone_at = time.monotonic()
        if how == "killed":
            kafka.kill()
        else:
            kafka.stop()
        try:
            load.send_all([yard.events.event() for _ in range(300)])
            await_away(load)
            load.send_all([yard.events.event() for _ in range(100)])
            load.flush()
            assert yard.acknowledged.safe[Safe.SPOOL] > 0
            meter.kill()
            meter.start()
            await_true(
                lambda: "Kafka" in str(meter.ask("/readyz")[1].get("step")),
                lambda: f"the meter waits for Kafka: {meter.ask('/readyz')}\n{meter.child.log_tail()}",
            )
            assert meter.ask("/healthz")[0] == 200
            while how == "stopped" and time.monotonic() - gone_at < AWAY_SECONDS:
                load.send(yard.events.event())
                time.sleep(0.2)
            assert meter.ask("/healthz")[0] == 200
        finally:
            kafka.start()
        load.send_all([yard.events.event() for _ in range(100)])
        await_true(lambda: load.producer.state().spool_bytes == 0, lambda: f"it drains: {load.producer.state()}")
    yard.check()


def test_a_spool_fills_refuses_and_drains(yard: Yard, kafka: ApacheKafka) -> None:
    yard.meter()
    kafka.stop()
    try:
        load = yard.load(spool_bytes_max=200_000)
        await_away(load)
        while load.send(yard.events.event()):  # bounded by the spool
            pass
        load.flush()
        taken = len(yard.acknowledged.usages)
        assert load.refused == 1
        assert 100_000 < load.producer.state().spool_bytes <= 200_000
        assert not load.send(yard.events.event())
    finally:
        kafka.start()
    await_true(lambda: load.producer.state().spool_bytes == 0, lambda: f"it drains: {load.producer.state()}")
    load.send_all([yard.events.event() for _ in range(100)])
    with load:
        load.flush()
    assert len(yard.acknowledged.usages) == taken + 100
    yard.check()


def test_a_producer_killed_with_a_full_spool_and_another_started_on_it(yard: Yard, kafka: ApacheKafka) -> None:
    yard.meter()
    kafka.kill()
    try:
        with producing(yard, "svc", 2_000, spool_bytes_max=200_000) as killed:
            killed.await_line("full")
            killed.await_line("safe")  # on disk by now, and the spool is full all the same
            killed.kill()
    finally:
        kafka.start()
    safe, everything = killed.acknowledged(), killed.usages
    assert 0 < len(safe) < len(everything)
    yard.acknowledged.usages.extend(safe)
    with yard.load() as successor:
        await_true(
            lambda: successor.producer.state().spool_bytes == 0, lambda: f"it drains: {successor.producer.state()}"
        )
        successor.flush()
        yard.settle()
        stored = yard.stored_ids()
        assert {usage.event_id for usage in safe} <= stored <= {usage.event_id for usage in everything}
        # Whoever was never answered sends again.
        unanswered = [usage for number, usage in enumerate(everything) if number not in killed.numbers("safe")]
        successor.send_all(unanswered)
    yard.check(everything)
