"""The simulation of many workers: what can be reckoned by hand, it says too."""

import pytest

from tests.benchmarks.queueing import Begin, Join, Pause, Pool, Simulation, Steps, Task, Use
from tests.benchmarks.scaling import Costs, apart, predict, two_cores


def noting(at: list[float], simulation: list[Simulation], *steps: Use | Pause | Begin | Join) -> Task:
    """A task that does the steps and notes when it is over."""

    def run() -> Steps:
        yield from steps
        at.append(round(simulation[0].now, 9))

    return Task(run())


@pytest.mark.parametrize(
    ("cores", "works", "ends"),
    [
        (1, [2.0], [2.0]),
        (1, [1.0, 1.0], [2.0, 2.0]),  # each has half of the core
        (1, [1.0, 3.0], [2.0, 4.0]),  # and the whole once it is alone
        (2, [1.0, 3.0], [1.0, 3.0]),  # no task has more than a core
        (2, [1.0, 1.0, 1.0], [1.5, 1.5, 1.5]),
    ],
)
def test_a_pool_divides_itself(cores: float, works: list[float], ends: list[float]) -> None:
    pool, at, simulation = Pool("cores", cores), list[float](), list[Simulation]()
    simulation.append(Simulation([noting(at, simulation, Use(pool, work)) for work in works], [pool]))
    simulation[0].run(100)
    assert at == ends
    assert pool.used_seconds == pytest.approx(sum(works))


def test_a_task_begins_another_and_waits_for_it() -> None:
    pool, at, simulation = Pool("core", 1), list[float](), list[Simulation]()
    other = noting(at, simulation, Pause(3))
    first = noting(at, simulation, Begin(other), Use(pool, 1), Join(other), Join(other), Use(pool, 1))
    simulation.append(Simulation([first], [pool]))
    simulation[0].run(2.5)
    assert at == []
    simulation[0].run(100)
    assert at == [3.0, 4.0]


COSTS = Costs(worker_us=8, warehouse_us=6, broker_us=1, round_trip_seconds=0)


def test_a_worker_alone_overlaps_the_insert_with_fetching_and_folding() -> None:
    # Of 8 µs it folds 6 and finishes 2; the broker's 1 comes before it folds. The insert's 6 are hidden by those 7.
    assert predict(COSTS, apart(1, 4, 4)).rate == pytest.approx(1e6 / 9, rel=0.01)
    # Where the insert takes longer than that, the worker waits for it.
    slow = Costs(worker_us=8, warehouse_us=10, broker_us=1, round_trip_seconds=0)
    assert predict(slow, apart(1, 4, 4)).rate == pytest.approx(1e6 / 12, rel=0.01)


def test_throughput_adds_up_until_something_is_full() -> None:
    one = predict(COSTS, apart(1, 6, 6)).rate
    assert predict(COSTS, apart(6, 6, 6)).rate == pytest.approx(6 * one, rel=0.01)
    full = predict(COSTS, apart(64, 6, 64))
    assert full.rate == pytest.approx(1e6, rel=0.02)  # six cores at 6 µs an event
    assert full.bottleneck == "ClickHouse"
    assert full.busy["ClickHouse"] == pytest.approx(1, abs=0.01)


def test_two_cores_for_all_are_shared() -> None:
    # The second core has ClickHouse's 6 and the broker's 1; with two workers it has half of the 8 as well.
    assert predict(COSTS, two_cores(1)).rate < 1e6 / 9 + 1
    assert predict(COSTS, two_cores(4)).rate == pytest.approx(1e6 / 11, rel=0.1)
