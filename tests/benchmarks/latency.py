"""From `produce` to visible: how long an event takes to the rollup, and to the budget's state, at a steady rate."""

import bisect
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, Producer, TopicPartition

from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.tether import tethered_command
from taximeter_producers.control import publish
from taximeter_schemas.budgets import Budget, BudgetState
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.topics import BUDGET_STATE, USAGE_EVENTS
from taximeter_sql import connect, migrate
from tests.benchmarks import processes, traffic
from tests.benchmarks.progress import note
from tests.benchmarks.stand import Stand

TENANT = "tenant-0000"
_WARM_SECONDS = 5.0
_READY_SECONDS_MAX = 120.0


@dataclass(slots=True)
class Watched:
    """When which count was seen, and when which was produced (monotonic seconds)."""

    produced: list[float] = field(default_factory=list)
    seen: list[tuple[float, int]] = field(default_factory=list)

    def latencies(self, skip: int) -> list[float]:
        """Seconds from the production of the n-th event until n were seen, for all but the first ones."""
        counts = [count for _, count in self.seen]
        found = []
        for number in range(skip, len(self.produced)):
            at = bisect.bisect_left(counts, number + 1)
            if at < len(counts):
                found.append(self.seen[at][0] - self.produced[number])
        return found


@dataclass(frozen=True, slots=True)
class Latency:
    """Median and 99th percentile, in seconds, to the rollup and to the budget's state."""

    rollup: tuple[float, float]
    budget: tuple[float, float]
    events: int


def measure(stand: Stand, rate: int, seconds: float) -> Latency:
    """Run the meter and the budgets worker, and produce one tenant's events at that rate."""
    database = f"latency_{free_port()}"
    environment = {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": stand.kafka.bootstrap_servers,
        "TAXIMETER_KAFKA_PARTITIONS": str(stand.partitions),
        "TAXIMETER_CLICKHOUSE_URL": stand.face.url(database),
        "TAXIMETER_LOG_ID": database,
        "TAXIMETER_METER_PORT": "0",
        "TAXIMETER_BUDGETS_PORT": "0",
        "TAXIMETER_STATE_DIR": str(stand.folder / database),
        "TAXIMETER_METER_LINGER_MS": "100",
    }
    _declare(stand.kafka.bootstrap_servers)
    children = [_child(name, environment, stand.folder / f"{database}-{name}.log") for name in ("meter", "budgets")]
    with connect(stand.face.url(database)) as client:
        migrate(client)
        try:
            for child in children:
                child.start()
            return _run(stand, children, lambda: _rolled_up(client), rate, seconds)
        finally:
            for child in children:
                child.stop()


def _run(
    stand: Stand, children: Sequence[ChildProcess], rolled_up: Callable[[], int], rate: int, seconds: float
) -> Latency:
    rollup, budget = Watched(), Watched()
    ended = threading.Event()
    watchers = [
        threading.Thread(target=_watch, args=(rollup, rolled_up, ended), daemon=True),
        threading.Thread(target=_follow_state, args=(stand, budget, ended), daemon=True),
    ]
    for watcher in watchers:
        watcher.start()
    for child in children:
        processes.hold_to(child.pid or 0, processes.cores())
    producer = Producer({"bootstrap.servers": stand.kafka.bootstrap_servers, "linger.ms": 2, "compression.type": "lz4"})
    made = _Made(producer)
    deadline = time.monotonic() + _READY_SECONDS_MAX
    made.one(rollup, budget)
    while not (rollup.seen and budget.seen):
        for child in children:
            if not child.running:
                raise RuntimeError(f"{child.name} ended:\n{child.log_tail(30)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing arrived: {children[0].log_tail(10)} {children[1].log_tail(10)}")
        time.sleep(0.1)
    note(f"both see events; {rate}/s for {seconds:.0f} s")
    began = time.monotonic()
    total = int(rate * (seconds + _WARM_SECONDS))
    for number in range(total):
        ahead = began + number / rate - time.monotonic()
        if ahead > 0.001:
            producer.poll(0)
            time.sleep(ahead)
        made.one(rollup, budget)
    producer.flush(30)
    limit = time.monotonic() + 30
    while time.monotonic() < limit and (rollup.seen[-1][1] <= total or budget.seen[-1][1] <= total):
        time.sleep(0.05)
    ended.set()
    for watcher in watchers:
        watcher.join(10)
    skip = int(rate * _WARM_SECONDS)
    return Latency(_quantiles(rollup.latencies(skip)), _quantiles(budget.latencies(skip)), total - skip)


class _Price:
    """What one event of the run costs: all are alike, so that spend tells how many were counted."""

    fresh, output = 100, 10
    pico = fresh * 2_500_000 + output * 10_000_000


class _Made:
    """Produces events that are alike, and notes when."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._number = 0

    def one(self, *watched: Watched) -> None:
        """The next event."""
        moment = datetime.now(UTC).isoformat(timespec="microseconds")[:26]
        event_id = f"latency-{self._number:020d}-{id(self):x}"
        payload = (
            f'{{"specversion":"1.0","id":"{event_id}","source":"bench","type":"taximeter.usage.v1","time":"{moment}Z","data":'
            f'{{"tenant":"{TENANT}","feature":"chat","model":"{traffic.MODELS[0]}","operation":"chat","tokens":'
            f'{{"uncached_input":{_Price.fresh},"output":{_Price.output}}}}}}}'
        )
        now = time.monotonic()
        for one in watched:
            one.produced.append(now)
        self._producer.produce(USAGE_EVENTS.name, payload, event_id)
        self._number += 1


def _child(name: str, environment: dict[str, str], log: Path) -> ChildProcess:
    return ChildProcess(name, tethered_command([sys.executable, "-m", f"taximeter_streams.{name}"]), environment, log)


def _declare(bootstrap_servers: str) -> None:
    now = datetime.now(UTC)
    budget = Budget(id="bench", tenant=TENANT, limit_pico=10**18, hard=False)
    body, declared_at = budget.model_dump(mode="json"), now - timedelta(hours=1)
    record = ControlRecord(kind=ControlKind.BUDGET, id=budget.id, body=body, recorded_at=declared_at)
    publish(bootstrap_servers, [*traffic.declarations(now), record])


def _watch(watched: Watched, counted: Callable[[], int], ended: threading.Event) -> None:
    while not ended.is_set():
        count = counted()
        if count and (not watched.seen or count > watched.seen[-1][1]):
            watched.seen.append((time.monotonic(), count))
        time.sleep(0.01)


def _follow_state(stand: Stand, watched: Watched, ended: threading.Event) -> None:
    servers = stand.kafka.bootstrap_servers
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": "unused", "enable.auto.commit": False, "fetch.wait.max.ms": 10}
    )
    consumer.assign([TopicPartition(BUDGET_STATE.name, partition, 0) for partition in range(stand.partitions)])
    while not ended.is_set():
        message = consumer.poll(0.2)
        if message is None or message.error() is not None or message.key() != TENANT.encode():
            continue
        state = BudgetState.model_validate_json(message.value() or b"")
        spent = max((one.spent_pico for one in state.positions), default=0)
        count = spent // _Price.pico
        if count and (not watched.seen or count > watched.seen[-1][1]):
            watched.seen.append((time.monotonic(), count))
    consumer.close()


def _rolled_up(client: Client) -> int:
    return int(client.query("SELECT sum(events) FROM usage_hourly").result_rows[0][0])


def _quantiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        raise RuntimeError("too few events were seen")
    return statistics.median(values), statistics.quantiles(values, n=100)[98]
