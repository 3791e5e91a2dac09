"""kill -9 of the meter at each step of its protocol, and at random: what was acknowledged stands once, everywhere."""

from signal import SIGKILL

from tests.faults.clickhouse_proxy import Place
from tests.faults.yard import Yard
from tests.kafka_broker import ApacheKafka
from tests.waiting import await_true


def test_killed_within_an_insert(yard: Yard) -> None:
    """Before it nothing is stored; half of it is nothing; after it, the index is not marked and no spend is sent."""
    places = [*Place, Place.AFTER]
    yard.random.shuffle(places)
    meter = yard.meter()
    with yard.load() as load:
        for death, place in enumerate(places):
            trap = yard.proxy.trap(place)
            load.send_all([yard.events.event() for _ in range(250)])
            trap.await_caught()
            meter.kill()
            trap.release()
            if death == 1:
                meter.lose_index()
            meter.start()
    yard.check()


def test_killed_between_insert_and_spend_and_between_spend_and_commit(yard: Yard, kafka: ApacheKafka) -> None:
    """First the log goes away within the insert, so the index is marked and no spend can be told. Then the commit is lost."""
    meter = yard.meter(session_timeout_ms=6_000)
    meter.await_ready()
    with yard.load() as load:
        trap = yard.proxy.trap(Place.AFTER, goes_on=True)
        load.send_all([yard.events.event() for _ in range(200)])
        load.flush()
        trap.await_caught()
        kafka.kill()
        try:
            trap.release()
            await_true(
                lambda: meter.ask("/healthz")[1].get("step") == "spend",
                lambda: f"it wants to tell spend: {meter.ask('/healthz')}\n{meter.child.log_tail(20)}",
            )
            meter.kill()
        finally:
            kafka.start()
        meter.start()
        load.send_all([yard.events.event() for _ in range(100)])
        load.flush()
        yard.settle()
        meter.child.stop()
        yard.forget_commits()
        meter.start()
        load.send_all([yard.events.event() for _ in range(100)])
    yard.check()


def test_killed_at_random_under_load_with_budgets(yard: Yard) -> None:
    """Between any two steps, also soon after a start: now and then during recovery itself."""
    yard.budgets()
    meter = yard.meter()
    with yard.load() as load:
        for _death in range(6):
            before = yard.rows()
            load.send_all([yard.events.event() for _ in range(200)])
            if yard.random.random() < 0.7:
                yard.await_rows(before + 1 + yard.random.randrange(150))
            meter.kill()
            assert meter.child.exit_status == -SIGKILL
            meter.start()
    yard.check()
