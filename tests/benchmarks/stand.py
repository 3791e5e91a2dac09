"""The test stand: Apache Kafka with events in it, ClickHouse's engine, and candidates that are run between them."""

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer

from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.tether import tethered_command
from taximeter_producers.control import publish
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_sql import connect, migrate
from tests.benchmarks import processes, traffic
from tests.benchmarks.fixed_work import fixed_work_ms
from tests.benchmarks.preloaded import copy_index
from tests.benchmarks.progress import note
from tests.face_process import FaceProcess
from tests.kafka_broker import ApacheKafka

FIRST_ROWS_SECONDS_MAX = 180.0
_POLL_SECONDS = 0.05
WARM_EVENTS = 10_000
MADE_MAX = 200_000
"""In a long run so many events are made, and come again and again under ids of their own."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a candidate, from its first stored batch to its last."""

    events: int
    seconds: float
    worker_cpu: float
    warehouse_cpu: float
    broker_cpu: float
    peak_megabytes: float
    fixed_work_ms: float = 0.0
    """How fast the machine was meanwhile: see fixed_work."""

    @property
    def rate(self) -> float:
        """Events a second, by the clock."""
        return self.events / self.seconds

    @property
    def worker_us(self) -> float:
        """Microseconds of CPU for an event in the worker's process."""
        return self.worker_cpu / self.events * 1e6

    @property
    def warehouse_us(self) -> float:
        """Microseconds of CPU for an event in ClickHouse."""
        return self.warehouse_cpu / self.events * 1e6


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is measured: a command, its environment, and how long it may take at most (a slow one is cut off)."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds_max: float = 120.0
    workers: int = 1
    index: Path | None = None
    """A dedupe index that each worker begins with."""


class Stand:
    """Starts broker and warehouse; `fill` puts events into the log, `measure` runs a candidate on all of them."""

    def __init__(self, folder: Path, partitions: int = 1, warehouse: bool = True) -> None:
        self.folder = folder
        self.partitions = partitions
        self.kafka = ApacheKafka(folder / "kafka")
        self.face = FaceProcess(folder)
        self.filled = 0
        self.row_bytes = 0.0
        """Bytes on ClickHouse's disk for one row of what was measured last."""
        self._with_warehouse = warehouse

    def __enter__(self) -> Self:
        self.kafka.start()
        if self._with_warehouse:
            self.face.start()
        ensure_topics(self.kafka.bootstrap_servers, self.partitions, 1)
        self._hold_servers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kafka.stop()
        self.face.stop()

    def fill(self, count: int, seed: int = 1) -> float:
        """Put that many more events into the log, evenly over its partitions. Returns their mean size in bytes."""
        now = traffic.utc_now()
        publish(self.kafka.bootstrap_servers, traffic.declarations(now))
        return self._produce(traffic.events(count, seed, now), count)

    def _produce(self, events: Iterator[tuple[str, bytes]], count: int) -> float:
        producer = Producer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers, "compression.type": "lz4", "linger.ms": 50,
                "batch.num.messages": 10_000, "batch.size": 1_000_000, "queue.buffering.max.messages": 500_000,
            }
        )  # fmt: skip
        size = 0
        for number, (event_id, payload) in enumerate(islice(events, count)):
            size += len(payload)
            producer.produce(USAGE_EVENTS.name, payload, event_id.encode(), partition=number % self.partitions)
            if number % 5_000 == 0:
                while len(producer) > 200_000:
                    producer.poll(0.05)
                producer.poll(0)
        if producer.flush(120):
            raise RuntimeError("the broker did not take the events")
        self.filled += count
        return size / max(1, count)

    def log_bytes(self) -> float:
        """Bytes of the log on disk for one event."""
        logs = (self.folder / "kafka" / "log").glob(f"{USAGE_EVENTS.name}-*/*.log")
        return sum(file.stat().st_size for file in logs) / max(1, self.filled)

    def measure(self, candidate: Candidate, events_max: int | None = None) -> Measured:
        """Run the candidate on what the log holds, in a database of its own, until all is stored or its time is up."""
        wanted = events_max or self.filled
        database = f"bench_{secrets.token_hex(4)}"
        with connect(self.face.url(database)) as client:
            migrate(client)
            children = [self.child(candidate, database, number) for number in range(candidate.workers)]
            try:
                for child in children:
                    child.start()
                measured = self._watch(candidate, children, client, wanted)
                self.row_bytes = _row_bytes(client)
            finally:
                for child in children:
                    child.stop()
                client.command(f"DROP DATABASE {database}")
        return measured

    def stretches(self, candidate: Candidate, total: int, stretch: int) -> list[Measured]:
        """Let one run store `total` events, which are put into the log stretch by stretch, and measure each stretch.

        By CPU: it stores while the log is still being filled.
        """
        database, now = f"bench_{secrets.token_hex(4)}", traffic.utc_now()
        publish(self.kafka.bootstrap_servers, traffic.declarations(now))
        events = traffic.again(list(traffic.events(min(stretch, MADE_MAX), 1, now)), 2)
        found: list[Measured] = []
        with connect(self.face.url(database)) as client:
            migrate(client)
            child = self.child(candidate, database, 0)
            try:
                child.start()
                self._produce(events, WARM_EVENTS)  # its start is no event's
                self._watch(candidate, [child], client, self.filled)
                for _stretch in range(total // stretch):
                    fixed = fixed_work_ms()
                    began, before = time.monotonic(), self._cpu([child.pid or 0])
                    self._produce(events, stretch)
                    self._watch(candidate, [child], client, self.filled)
                    spent = [late - early for early, late in zip(before, self._cpu([child.pid or 0]), strict=True)]
                    peak = processes.peak_megabytes(processes.tree(child.pid or 0)[-1])
                    took = time.monotonic() - began
                    fixed = (fixed + fixed_work_ms()) / 2
                    found.append(Measured(stretch, took, spent[0], spent[1], spent[2], peak, fixed))
                    note(
                        f"{self.filled - WARM_EVENTS:,} of {total:,} stored: {found[-1].worker_us:.2f} us of CPU an event,"
                        f" ClickHouse {found[-1].warehouse_us:.2f} us, {peak:.0f} MB, {took:.0f} s;"
                        f" fixed work {fixed:.0f} ms"
                    )
            finally:
                child.stop()
                client.command(f"DROP DATABASE {database}")
        return found

    def child(self, candidate: Candidate, database: str, number: int) -> ChildProcess:
        """The candidate's process of that number, not started."""
        name = f"{candidate.name}-{database}-{number}"
        if candidate.index is not None:
            copy_index(candidate.index, self.folder / name / "meter" / "index")
        environment = {
            "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "TAXIMETER_KAFKA_PARTITIONS": str(self.partitions),
            "TAXIMETER_CLICKHOUSE_URL": self.face.url(database),
            "TAXIMETER_LOG_ID": database,
            "TAXIMETER_METER_GROUP": f"meter-{database}",
            "TAXIMETER_METER_PORT": "0",
            "TAXIMETER_STATE_DIR": str(self.folder / name),
            **{key: value.format(number=number) for key, value in candidate.environment.items()},
        }
        return ChildProcess(name, tethered_command(candidate.command), environment, self.folder / f"{name}.log")

    def _watch(self, candidate: Candidate, children: list[ChildProcess], client: Client, wanted: int) -> Measured:
        def stored() -> int:
            for child in children:
                if not child.running:
                    raise RuntimeError(f"{candidate.name} ended:\n{child.log_tail(30)}")
            return int(client.query("SELECT count() FROM usage_log").result_rows[0][0])

        pids = [child.pid or 0 for child in children]
        deadline = time.monotonic() + FIRST_ROWS_SECONDS_MAX
        while not (first := stored()):
            for number, pid in enumerate(pids):
                processes.hold_to(pid, [processes.cores()[number % len(processes.cores())]])
            if time.monotonic() > deadline:
                raise RuntimeError(f"{candidate.name} stored nothing:\n{children[0].log_tail(30)}")
            time.sleep(_POLL_SECONDS)
        began, before = time.monotonic(), self._cpu(pids)
        while (rows := stored()) < wanted and time.monotonic() - began < candidate.seconds_max:
            time.sleep(_POLL_SECONDS)
        seconds, after = time.monotonic() - began, self._cpu(pids)
        spent = [late - early for early, late in zip(before, after, strict=True)]
        peak = max(processes.peak_megabytes(processes.tree(pid)[-1]) for pid in pids)
        return Measured(max(1, rows - first), seconds, spent[0], spent[1], spent[2], peak)

    def _cpu(self, pids: list[int]) -> tuple[float, float, float]:
        workers = sum(processes.cpu_seconds(pid) for pid in pids)
        return workers, processes.cpu_seconds(self.face.pid or 0), processes.cpu_seconds(self.kafka.pid)

    def _hold_servers(self) -> None:
        """Broker and warehouse keep off the first core, which belongs to the candidate, where there are several."""
        rest = processes.cores()[1:]
        if rest:
            for pid in filter(None, (self.kafka.pid, self.face.pid)):
                with contextlib.suppress(PermissionError):
                    processes.hold_to(pid, rest)


def _row_bytes(client: Client) -> float:
    parts = "FROM system.parts WHERE database = currentDatabase() AND table = 'usage_log' AND active"
    return float(client.query(f"SELECT sum(bytes_on_disk) / sum(rows) {parts}").result_rows[0][0])
