"""The meter as real processes, killed, paused, and robbed of their index: every message becomes one row, exactly rated."""

import base64
import json
import random
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaError, Message, Producer

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter_producers.control import publish
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.rejections import RejectedEvent, RejectionReason
from taximeter_schemas.spend import SpendRecord
from taximeter_schemas.topics import USAGE_EVENTS, USAGE_REJECTED, USAGE_SPEND
from taximeter_sql import query
from tests.face_process import FaceProcess
from tests.metered_traffic import Row, Sent, Traffic, declared, judge, utc_now
from tests.topic_reader import read_topic
from tests.waiting import await_true

SECONDS_MAX = 90.0
PARTITIONS = 4
SESSION_TIMEOUT_MS = 6_000  # the least that Kafka allows


@pytest.fixture(scope="module")
def log_servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker of this module's own, because topics have fixed names; on Apache Kafka the one that all share."""
    if request.config.getoption("--broker") == "apache":
        yield request.getfixturevalue("bootstrap_servers")
    else:
        with EmbeddedBroker(tmp_path_factory.mktemp("meter-broker"), free_port()) as broker:
            yield broker.bootstrap_servers


@dataclass
class Worker:
    """A meter worker as a child process."""

    child: ChildProcess
    port: int
    state_dir: Path

    def kill(self) -> None:
        self.child.signal(SIGKILL)
        self.child.wait()

    def lose_index(self) -> None:
        shutil.rmtree(self.state_dir / "meter" / "index")

    def is_ready(self) -> bool:
        assert self.child.running, self.child.log_tail(40)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as response:
                return bool(json.load(response)["ready"])
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False


@dataclass
class Bench:
    """A log with traffic, a warehouse of the test's own, and the workers between them."""

    servers: str
    clickhouse: FaceProcess
    database: str
    client: Client
    folder: Path
    traffic: Traffic
    log_id: str = field(default_factory=lambda: f"log-{secrets.token_hex(4)}")
    sent: list[Sent] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": self.servers, "enable.idempotence": True, "partitioner": "murmur2_random",
                "message.max.bytes": 1_048_000, "linger.ms": 1,
            }
        )  # fmt: skip

    def worker(self) -> Worker:
        """A new worker, started."""
        number, port = len(self.workers), free_port()
        state_dir = self.folder / f"state-{number}"
        environment = {
            "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": self.servers,
            "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
            "TAXIMETER_LOG_ID": self.log_id,
            "TAXIMETER_CLICKHOUSE_URL": self.clickhouse.url(self.database),
            "TAXIMETER_STATE_DIR": str(state_dir),
            "TAXIMETER_METER_GROUP": f"meter-{self.log_id}",
            "TAXIMETER_METER_PORT": str(port),
            "TAXIMETER_METER_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
            "TAXIMETER_METER_BATCH_EVENTS_MAX": "60",
            "TAXIMETER_METER_LINGER_MS": "20",
        }
        command = [sys.executable, "-m", "taximeter_streams.meter"]
        child = ChildProcess("meter", command, environment, self.folder / f"meter-{number}.log")
        worker = Worker(child, port, state_dir)
        self.workers.append(worker)
        child.start()
        return worker

    def produce(self, count: int) -> None:
        """Send the next messages; they are in the log when this returns."""
        messages = self.traffic.messages(count)
        for message in messages:
            self._producer.produce(
                USAGE_EVENTS.name, message.payload, key=message.event_id, on_delivery=_placed(message)
            )
            self._producer.poll(0)
        assert self._producer.flush(SECONDS_MAX) == 0
        assert all(message.offset >= 0 for message in messages)
        self.sent.extend(messages)

    def rows(self) -> int:
        """How many rows are stored; 0 before there is a table."""
        if not self.client.query("EXISTS usage_log").result_rows[0][0]:
            return 0
        return int(self.client.query("SELECT count() FROM usage_log").result_rows[0][0])

    def await_rows(self, count: int) -> None:
        await_true(lambda: self.rows() >= count, lambda: f"{count} rows, there are {self.rows()}\n{self._logs()}")

    def await_all(self) -> None:
        """Wait until every partition is stored to the last message sent."""
        lasts: dict[int, int] = {}
        for message in self.sent:
            lasts[message.partition] = max(lasts.get(message.partition, -1), message.offset)

        def all_stored() -> bool:
            stored = {
                partition: last for _log, partition, _rows, _offsets, _first, last in self.ask("reconcile_offsets")
            }
            return all(stored.get(partition, -1) >= last for partition, last in lasts.items())

        await_true(all_stored, lambda: f"all is stored\n{self._logs()}")

    def ask(self, name: str) -> list[tuple[int, ...]]:
        """The rows that a named query answers."""
        everything = {"tenant": "", "since": "1970-01-01 00:00:00", "until": "2100-01-01 00:00:00"}
        return [tuple(row) for row in self.client.query(query(name), parameters=everything).result_rows]

    def _logs(self) -> str:
        return "\n".join(worker.child.log_tail(15) for worker in self.workers)


def _placed(sent: Sent) -> Callable[[KafkaError | None, Message], None]:
    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is None:
            sent.partition, sent.offset = message.partition() or 0, message.offset() or 0

    return delivered


@pytest.fixture
def bench(log_servers: str, clickhouse: FaceProcess, unique_database: str, tmp_path: Path) -> Iterator[Bench]:
    with benching(log_servers, clickhouse, unique_database, tmp_path) as bench:
        yield bench


@pytest.fixture
def bench_alone(log_servers: str, tmp_path: Path) -> Iterator[Bench]:
    """With a warehouse of its own, which may be killed."""
    face = FaceProcess(tmp_path)
    face.start()
    try:
        with benching(log_servers, face, "default", tmp_path) as bench:
            yield bench
    finally:
        face.stop()


@contextmanager
def benching(log_servers: str, clickhouse: FaceProcess, database: str, folder: Path) -> Iterator[Bench]:
    ensure_topics(log_servers, PARTITIONS, 1)
    unique = secrets.token_hex(4)
    tenants = (f"acme-{unique}", f"globex-{unique}")
    traffic = Traffic(tenants, utc_now(), random.Random(20_261_124))
    publish(log_servers, declared(tenants, traffic.now))
    with clickhouse.client(database) as client:
        bench = Bench(log_servers, clickhouse, database, client, folder, traffic)
        try:
            yield bench
        finally:
            for worker in bench.workers:
                worker.child.stop()


def check_rows(bench: Bench, expected: dict[tuple[int, int], Row]) -> None:
    """Every message is one row, with the disposition, reason, tenant and amounts that the test works out itself."""
    stored = bench.client.query(
        "SELECT partition, offset, toString(disposition), reason, tenant, list_pico, metered_pico FROM usage_log"
    ).result_rows
    found: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for partition, offset, *rest in stored:
        if (partition, offset) in expected:
            found[partition, offset].append(Row(*rest))
    wrong = {place: (found[place], row) for place, row in expected.items() if found[place] != [row]}
    assert not wrong, f"{len(wrong)} of {len(expected)} differ, for instance {list(wrong.items())[:5]}"


def check_laws(bench: Bench) -> None:
    """The checks that run on live data find nothing."""
    assert bench.ask("reconcile_hourly") == []
    assert bench.ask("reconcile_daily") == []
    assert bench.ask("reconcile_identities") == []
    for _log, partition, rows, offsets, first, last in bench.ask("reconcile_offsets"):
        assert rows == offsets == last - first + 1, f"partition {partition}"
    for _tenant, _hour, produced, *parts, rolled in bench.ask("reconcile_conservation"):
        assert produced == sum(parts) == rolled


def check_spend(bench: Bench, expected: dict[tuple[int, int], Row]) -> None:
    """Spend records, each range once, add up to the rated events of each tenant."""
    records: dict[tuple[str, int, int, int, str], SpendRecord] = {}
    mine = {tenant.encode() for tenant in bench.traffic.tenants}
    for message in read_topic(bench.servers, USAGE_SPEND.name):
        if message.key() not in mine:
            continue  # another test's, who may well send garbage
        record = SpendRecord.model_validate_json(message.value() or b"")
        if record.log_id != bench.log_id:
            continue
        key = (record.log_id, record.partition, record.first_offset, record.last_offset, record.tenant)
        assert records.setdefault(key, record).entries == record.entries, f"{key} was told in two ways"
    told: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for record in records.values():
        told[record.tenant][0] += sum(entry.amount_pico for entry in record.entries)
        told[record.tenant][1] += sum(entry.events for entry in record.entries)
    owed: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in expected.values():
        if row.disposition == "rated":
            owed[row.tenant][0] += row.metered_pico
            owed[row.tenant][1] += 1
    assert told == owed


def check_rejected(bench: Bench, expected: dict[tuple[int, int], Row]) -> None:
    """Every rejected message is in usage.rejected.v1, whole or cut, with its reason, and no other is."""
    payloads = {message.place: message.payload for message in bench.sent}
    found: dict[tuple[int, int], str] = {}
    for message in read_topic(bench.servers, USAGE_REJECTED.name):
        record = RejectedEvent.model_validate_json(message.value() or b"")
        place = (record.partition, record.offset)
        if place not in payloads:
            continue
        text = record.payload
        kept = base64.b64decode(text) if record.payload_encoding == "base64" else text.encode()
        whole = payloads[place]
        assert kept == whole[: len(whole) - record.payload_bytes_cut]
        assert record.payload_bytes_cut == 0 or record.reason == RejectionReason.TOO_LARGE
        found[place] = str(record.reason)
    assert found == {place: row.reason for place, row in expected.items() if row.disposition == "rejected"}


def check_exact(bench: Bench) -> None:
    """End the workers in order, and compare everything that they wrote with what they should have."""
    for worker in bench.workers:
        worker.child.stop()
        assert worker.child.exit_status in (0, -SIGKILL), worker.child.log_tail(40)
    expected = judge(bench.sent)
    check_rows(bench, expected)
    check_laws(bench)
    check_spend(bench, expected)
    check_rejected(bench, expected)


def test_killed_workers_count_every_message_once(bench: Bench) -> None:
    moments = random.Random(8)
    worker = bench.worker()
    for life in range(4):
        before = len(bench.sent)
        bench.produce(750)
        # Somewhere in the middle of the work, as often as not between an insert and its spend.
        bench.await_rows(before + moments.randrange(1, 700))
        worker.kill()
        if life == 1:
            worker.lose_index()
        worker.child.start()
    bench.await_all()
    check_exact(bench)


def test_a_worker_paused_past_its_session_writes_nothing(bench: Bench) -> None:
    first = bench.worker()
    bench.produce(1_000)
    bench.await_rows(1)  # it works, and has fetched far more than it has written
    first.child.signal(SIGSTOP)
    second = bench.worker()
    bench.await_all()
    first.child.signal(SIGCONT)
    bench.produce(300)
    bench.await_all()
    await_true(lambda: first.is_ready() and second.is_ready(), lambda: "both work")
    second.child.signal(SIGSTOP)  # now while it waits for messages
    bench.produce(300)
    bench.await_all()
    second.child.signal(SIGCONT)
    bench.produce(300)
    bench.await_all()
    check_exact(bench)


def test_a_warehouse_that_dies_is_waited_for(bench_alone: Bench) -> None:
    bench, face = bench_alone, bench_alone.clickhouse
    worker = bench.worker()
    for _death in range(2):
        before = len(bench.sent)
        bench.produce(600)
        bench.await_rows(before + 1)
        face.kill()  # in the middle of the work, perhaps between a table and its rollups
        bench.produce(100)
        await_true(lambda: not worker.is_ready(), lambda: "the worker says that it cannot work")
        face.start()
        await_true(worker.is_ready, lambda: "the worker works again")
    bench.await_all()
    check_exact(bench)
