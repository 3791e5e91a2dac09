"""What many meter workers reach together: simulated from what one event was measured to cost in each process. Pure.

A worker does what the real one does: it inserts a batch while it fetches and folds the next one, then marks, tells spend and
commits. What is simulated is how they wait for cores. That an event costs the same when it is paid elsewhere is assumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.benchmarks.queueing import Begin, Join, Pause, Pool, Simulation, Steps, Task, Use

_WARM_SECONDS, _SECONDS = 20.0, 120.0
"""Of simulated time; the first of them do not count."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Of an event, in microseconds of one core; and of a batch."""

    worker_us: float
    warehouse_us: float
    broker_us: float
    finish_share: float = 0.25
    """The share of the worker's time that comes after the insert: marking, spend, commit."""
    batch_events: int = 25_000
    merge_us: float = 0.0
    """What ClickHouse spends on an event later, when it merges; nobody waits for it."""
    round_trip_seconds: float = 0.005
    """What an insert takes beside the warehouse's CPU."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where everything runs. Worker i runs on `workers[i]`; the same pool may stand there many times."""

    workers: Sequence[Pool]
    warehouse: Pool
    broker: Pool

    def pools(self) -> list[Pool]:
        """Each once."""
        return list(dict.fromkeys([*self.workers, self.warehouse, self.broker]))


@dataclass(slots=True)
class Outcome:
    """Events a second of all workers together, and how busy each kind of pool was (0 to 1)."""

    rate: float
    busy: dict[str, float] = field(default_factory=dict)

    @property
    def bottleneck(self) -> str:
        """The busiest."""
        return max(self.busy, key=lambda name: self.busy[name])


def apart(count: int, warehouse_cores: float, broker_cores: float) -> Site:
    """Workers with a core each, and machines for the others."""
    workers = [Pool("workers", 1) for _ in range(count)]
    return Site(workers, Pool("ClickHouse", warehouse_cores), Pool("brokers", broker_cores))


def two_cores(count: int) -> Site:
    """As `python -m tests.benchmarks --only workers` places them: workers in turn on both, all else on the second."""
    first, second = Pool("first core", 1), Pool("second core", 1)
    return Site([(first, second)[number % 2] for number in range(count)], second, second)


def predict(costs: Costs, site: Site) -> Outcome:
    """Let all workers work on a backlog that never ends, and count."""
    done = [0]
    pools = site.pools()
    tasks = [Task(_worker(costs, site, pool, done, number * 0.11)) for number, pool in enumerate(site.workers)]
    simulation = Simulation(tasks, pools)
    simulation.run(_WARM_SECONDS)
    before, used = done[0], {pool: pool.used_seconds for pool in pools}
    simulation.run(_WARM_SECONDS + _SECONDS)
    busy: dict[str, list[float]] = {}
    for pool in pools:
        busy.setdefault(pool.name, []).append((pool.used_seconds - used[pool]) / pool.cores / _SECONDS)
    return Outcome((done[0] - before) / _SECONDS, {name: sum(found) / len(found) for name, found in busy.items()})


def _worker(costs: Costs, site: Site, core: Pool, done: list[int], begins: float) -> Steps:
    """The meter's loop: a batch is folded; then, while it is inserted, the next one is fetched and folded."""
    batch_seconds = costs.batch_events * 1e-6
    folding = Use(core, costs.worker_us * (1 - costs.finish_share) * batch_seconds)
    finishing = Use(core, costs.worker_us * costs.finish_share * batch_seconds)
    fetching = Use(site.broker, costs.broker_us * batch_seconds)
    yield Pause(begins)  # not all in step
    yield fetching
    yield folding
    while True:
        insert = Task(_insert(Use(site.warehouse, costs.warehouse_us * batch_seconds), Pause(costs.round_trip_seconds)))
        yield Begin(insert)
        yield fetching
        yield folding
        yield Join(insert)
        yield finishing
        yield Begin(Task(_merge(Use(site.warehouse, costs.merge_us * batch_seconds))))
        done[0] += costs.batch_events


def _insert(work: Use, round_trip: Pause) -> Steps:
    yield round_trip
    yield work


def _merge(work: Use) -> Steps:
    yield work
