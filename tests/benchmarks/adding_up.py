"""Does a worker cost the same beside others? And what do many reach together?

Workers of one group, each with a partition of its own; events come to one partition at a time, in one rush, so that one
worker works while the others wait for events as they do in production. Its CPU time, broker's and ClickHouse's are taken by their
own clocks, which does not need a core for each. What many workers reach at once is simulated from that (`scaling.py`).
"""

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from taximeter.embedded.processes import ChildProcess
from taximeter_producers.control import publish
from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_sql import connect, migrate
from tests.benchmarks import processes, traffic
from tests.benchmarks.progress import note
from tests.benchmarks.scaling import Costs, apart, predict, two_cores
from tests.benchmarks.stand import Candidate, Stand

_SECONDS_MAX = 180.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Beside:
    """What an event costs a worker that works while the other members of its group wait: CPU in microseconds an event."""

    members: int
    events: int
    worker_us: float
    waiting_us: float
    """All other workers together, in the same time."""
    warehouse_us: float
    broker_us: float


def measure(folder: Path, members: int, events: int, rushes: int) -> Beside:
    """The mean of some rushes, each into another partition."""
    with Stand(folder, partitions=members) as stand:
        servers, database = stand.kafka.bootstrap_servers, f"bench_{secrets.token_hex(4)}"
        publish(servers, traffic.declarations(traffic.utc_now()))
        with connect(stand.face.url(database)) as client:
            migrate(client)
            candidate = Candidate("meter", [sys.executable, "-m", "taximeter_streams.meter"])
            children = [stand.child(candidate, database, number) for number in range(members)]
            try:
                for child in children:
                    child.start()
                admin = AdminClient({"bootstrap.servers": servers})
                _await(lambda: _dealt(admin, f"meter-{database}", members), "each member has a partition")
                for child in children:
                    processes.hold_to(child.pid or 0, processes.cores()[:1])

                def stored() -> int:
                    return int(client.query("SELECT count() FROM usage_log").result_rows[0][0])

                warm = _rush(stand, children, stored, 0, events // 5, 0)
                found = [
                    _rush(stand, children, stored, number % members, events, warm.events + number * events)
                    for number in range(rushes)
                ]
            finally:
                for child in children:
                    child.stop()

    costs = [(one.worker_us, one.waiting_us, one.warehouse_us, one.broker_us) for one in found]
    return Beside(members, events * rushes, *(sum(each) / rushes for each in zip(*costs, strict=True)))


def _rush(
    stand: Stand, children: list[ChildProcess], stored: Callable[[], int], partition: int, events: int, before: int
) -> Beside:
    """Put events into one partition at once, and wait until they are stored."""
    made = list(islice(traffic.events(events, before + 1, traffic.utc_now()), events))
    producer = Producer(
        {
            "bootstrap.servers": stand.kafka.bootstrap_servers, "compression.type": "lz4", "linger.ms": 50,
            "batch.size": 1_000_000, "batch.num.messages": 10_000, "queue.buffering.max.messages": events + 1,
        }
    )  # fmt: skip
    servers = (stand.face.pid or 0, stand.kafka.pid)
    pids = [child.pid or 0 for child in children]
    early = [processes.cpu_seconds(pid) for pid in (*pids, *servers)]
    for event_id, payload in made:
        producer.produce(USAGE_EVENTS.name, payload, event_id.encode(), partition=partition)
    if producer.flush(120):
        raise RuntimeError("the broker did not take the events")
    _await(lambda: stored() >= before + events, "all is stored")
    late = [processes.cpu_seconds(pid) for pid in (*pids, *servers)]
    *workers, warehouse, broker = ((after - first) / events * 1e6 for first, after in zip(early, late, strict=True))
    return Beside(len(children), events, max(workers), sum(workers) - max(workers), warehouse, broker)


def _dealt(admin: AdminClient, group: str, members: int) -> bool:
    try:
        described = admin.describe_consumer_groups([group])[group].result(30)
    except KafkaException:  # the coordinator is not there yet
        return False
    owned = [len(member.assignment.topic_partitions) for member in described.members if member.assignment]
    return owned == [1] * members


def _await(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS_MAX
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {_SECONDS_MAX:.0f} s: {what}")
        time.sleep(_POLL_SECONDS)


def figures(folder: Path, members: tuple[int, ...], events: int, rushes: int) -> list[dict[str, float]]:
    """Measure one worker at a time, with each number of members."""
    found = []
    for count in members:
        (folder / str(count)).mkdir()
        found.append(measure(folder / str(count), count, events, rushes))
        note(f"{count} members: {found[-1]}")
    return [asdict(one) for one in found]


PLANNED = Costs(worker_us=12, warehouse_us=12, broker_us=6, merge_us=10)
"""What docs/scale.md plans with."""


def lines(found: list[dict[str, float]], at_once: dict[str, dict[str, float]]) -> list[str]:
    """The tables: one worker at a time, several at once against the simulation, many simulated."""
    return [*_one_at_a_time(found), "", *_checked(at_once), "", *_many(found)]


def _one_at_a_time(found: list[dict[str, float]]) -> list[str]:
    table = [
        "| members of the group | events, into one partition at a time | the one that works, µs of CPU an event |"
        " all that wait, µs | ClickHouse, µs | broker, taking and giving, µs |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    table += [
        f"| {one['members']} | {one['events']:,} | {one['worker_us']:.2f} | {one['waiting_us']:.2f} |"
        f" {one['warehouse_us']:.2f} | {one['broker_us']:.2f} |"
        for one in found
    ]
    return table


def _checked(at_once: dict[str, dict[str, float]]) -> list[str]:
    """Several workers on the two cores of the stand, with everything else: measured by the clock, and simulated."""
    table = [
        "Several at once, on two cores that they share with all else; and the simulation, from each run's own costs and from"
        " those of the run with one worker:",
        "",
        "| workers | worker, µs | ClickHouse, µs | broker, giving, µs | events/s by the clock | simulated |"
        " from one worker's costs |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    costs = {
        int(count): Costs(*(one[f"{who}_cpu"] / one["events"] * 1e6 for who in ("worker", "warehouse", "broker")))  # type: ignore[arg-type]
        for count, one in at_once.items()
    }
    for count, own in costs.items():
        rate = at_once[str(count)]["events"] / at_once[str(count)]["seconds"]
        simulated, first = (predict(one, two_cores(count)).rate for one in (own, costs[min(costs)]))
        table.append(
            f"| {count} | {own.worker_us:.2f} | {own.warehouse_us:.2f} | {own.broker_us:.2f} | {rate:,.0f} |"
            f" {simulated:,.0f} ({simulated / rate - 1:+.0%}) | {first:,.0f} ({first / rate - 1:+.0%}) |"
        )
    return table


def _many(found: list[dict[str, float]]) -> list[str]:
    """Workers with a core each, simulated."""
    worst = Costs(*(max(one[key] for one in found) for key in ("worker_us", "warehouse_us", "broker_us")))  # type: ignore[arg-type]
    table = [
        "With a core each, simulated: at the highest measured costs, and at those that are planned with below "
        f"(a worker {PLANNED.worker_us:.0f} µs, an insert {PLANNED.warehouse_us:.0f}, merges {PLANNED.merge_us:.0f}, "
        f"a broker {PLANNED.broker_us:.0f}).",
        "",
        "| workers | one ClickHouse of 16 cores: events/s | busiest | four of 16 cores, 64 of brokers, planned costs: events/s |"
        " busiest |",
        "|--:|--:|---|--:|---|",
    ]
    for count in (1, 2, 4, 8, 16, 22, 32, 64):
        small, large = predict(worst, apart(count, 16, 16)), predict(PLANNED, apart(count, 64, 64))
        table.append(
            f"| {count} | {small.rate:,.0f} | {small.bottleneck}, {small.busy[small.bottleneck]:.0%} | {large.rate:,.0f} | "
            f"{large.bottleneck}, {large.busy[large.bottleneck]:.0%} |"
        )
    return table
