"""Budgets and alerts as real processes: exact state and alerts once, though workers are killed and messages repeat."""

import http.server
import json
import secrets
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from standardwebhooks import Webhook

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter_producers.control import publish
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.budgets import Budget, BudgetAlert, BudgetState, LeaseClose, LeaseGrant, LeaseRequest
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.spend import SPEND_SLOT_SECONDS, SpendEntry, SpendRecord
from taximeter_schemas.tenants import AlertEndpoint, Tenant
from taximeter_schemas.topics import BUDGET_ALERTS, BUDGET_LEASES, BUDGET_STATE, USAGE_SPEND
from tests.waiting import await_true

SECONDS_MAX = 60.0
PARTITIONS = 4
SECRET = "whsec_" + "c2VjcmV0" * 6


@dataclass
class Receiver:
    """A webhook endpoint that refuses the first attempt of every alert, checks signatures, and keeps what it took."""

    server: http.server.ThreadingHTTPServer = field(init=False)
    attempts: list[str] = field(default_factory=list)
    taken: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                message_id = self.headers["webhook-id"]
                first = message_id not in receiver.attempts
                receiver.attempts.append(message_id)
                if not first:
                    receiver.taken.append({"id": message_id, **Webhook(SECRET).verify(body, dict(self.headers))})
                self.send_response(500 if first else 204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiving = Receiver()
    yield receiving
    receiving.server.shutdown()
    receiving.server.server_close()


@dataclass
class Service:
    """A Taximeter service as a child process on a port of its own."""

    child: ChildProcess
    port: int

    def start(self) -> None:
        self.child.start()

    def get(self, path: str) -> dict[str, object]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                page: dict[str, object] = json.load(response)
                return page
        except urllib.error.HTTPError as error:
            with error:
                told: dict[str, object] = json.load(error)
                return told
        except OSError:
            return {}

    def await_ready(self) -> None:
        def is_ready() -> bool:
            assert self.child.running, self.child.log_tail(40)
            return self.get("/readyz").get("ready") is True

        await_true(is_ready, f"{self.child.name} ready\n{self.child.log_tail(40)}")


@dataclass
class Log:
    """The test's own side of the broker."""

    bootstrap_servers: str
    tenant: str

    def __post_init__(self) -> None:
        self._producer = Producer(
            {"bootstrap.servers": self.bootstrap_servers, "partitioner": "murmur2_random", "linger.ms": 0}
        )

    def send(self, topic: str, payload: str | bytes) -> None:
        self._producer.produce(topic, payload, key=self.tenant)
        assert self._producer.flush(SECONDS_MAX) == 0

    def spend(self, first: int, behind: int, amount_pico: int, lease_id: str | None = None) -> None:
        """One spend record for each offset of the range."""
        slot = int(time.time()) // SPEND_SLOT_SECONDS * SPEND_SLOT_SECONDS
        for offset in range(first, behind):
            entry = SpendEntry(
                feature="chat", model="m", lease_id=lease_id, slot_start=slot, amount_pico=amount_pico, events=1
            )  # fmt: skip
            record = SpendRecord(
                tenant=self.tenant, currency="USD", log_id="log", partition=0, first_offset=offset, last_offset=offset,
                entries=(entry,), rated_at=datetime.now(UTC),
            )  # fmt: skip
            self._producer.produce(USAGE_SPEND.name, record.model_dump_json(), key=self.tenant)
        assert self._producer.flush(SECONDS_MAX) == 0

    @contextmanager
    def reading(self, topic: str) -> Iterator[Callable[[], list[bytes]]]:
        """A function that returns what has come for this tenant since it was called last."""
        consumer = Consumer(
            {"bootstrap.servers": self.bootstrap_servers, "group.id": "unused", "fetch.wait.max.ms": 20}
        )  # fmt: skip
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])

        def read() -> list[bytes]:
            messages = consumer.consume(1_000, 0.1)
            return [message.value() or b"" for message in messages if message.key() == self.tenant.encode()]

        yield read
        consumer.close()


@contextmanager
def watching(log: Log) -> Iterator[Callable[[], BudgetState | None]]:
    """The newest budget state of the tenant."""
    newest: list[BudgetState] = []
    with log.reading(BUDGET_STATE.name) as read:

        def state() -> BudgetState | None:
            newest.extend(BudgetState.model_validate_json(value) for value in read())
            return newest[-1] if newest else None

        yield state


@pytest.fixture
def log(bootstrap_servers: str) -> Log:
    ensure_topics(bootstrap_servers, PARTITIONS, 1)
    return Log(bootstrap_servers, f"acme-{secrets.token_hex(4)}")


@dataclass
class Services:
    """Starts services, on a log, and stops them all."""

    folder: Path
    started: list[Service] = field(default_factory=list)

    def start(self, name: str, log: Log) -> Service:
        """A worker of that name on that log."""
        port = free_port()
        environment = {
            "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": log.bootstrap_servers,
            "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
            "TAXIMETER_KAFKA_REBALANCE_TIMEOUT_SECONDS": "3",
            "TAXIMETER_STATE_DIR": str(self.folder / f"state-{len(self.started)}"),
            "TAXIMETER_BUDGETS_GROUP": f"budgets-{log.tenant}",
            f"TAXIMETER_{name.upper()}_PORT": str(port),
        }
        command = [sys.executable, "-m", f"taximeter_streams.{name}"]
        service = Service(ChildProcess(name, command, environment, self.folder / f"{name}-{port}.log"), port)
        self.started.append(service)
        service.start()
        return service


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    made = Services(tmp_path)
    yield made
    for service in made.started:
        service.child.stop()


@pytest.fixture
def start(log: Log, services: Services) -> Callable[[str], Service]:
    """Starts a worker of that name."""
    return lambda name: services.start(name, log)


def declare(log: Log, limit_pico: int, url: str | None = None) -> None:
    now = datetime.now(UTC)
    tenant = Tenant(id=log.tenant, time_zone="Europe/Berlin")
    budget = Budget(id=f"{log.tenant}-month", tenant=log.tenant, limit_pico=limit_pico)
    records = [
        ControlRecord(kind=ControlKind.TENANT, id=tenant.id, body=tenant.model_dump(mode="json"), recorded_at=now),
        ControlRecord(kind=ControlKind.BUDGET, id=budget.id, body=budget.model_dump(mode="json"), recorded_at=now),
    ]
    if url is not None:
        endpoint = AlertEndpoint(id=f"{log.tenant}-hook", url=url, secret=SECRET, tenant=log.tenant)
        body = endpoint.model_dump(mode="json")
        records.append(ControlRecord(kind=ControlKind.ALERT_ENDPOINT, id=endpoint.id, body=body, recorded_at=now))
    publish(log.bootstrap_servers, records)


def test_killed_workers_lose_nothing_and_alert_once(
    log: Log, receiver: Receiver, start: Callable[[str], Service]
) -> None:
    declare(log, 1_000, receiver.url)
    budgets, alerts = start("budgets"), start("alerts")
    budgets.await_ready()
    alerts.await_ready()
    with watching(log) as state:

        def spent() -> int:
            found = state()
            return found.positions[0].spent_pico if found else -1

        log.send(USAGE_SPEND.name, b"{poison")
        log.spend(0, 30, 20)
        await_true(lambda: spent() > 0, "the first spend is published")
        budgets.child.signal(SIGKILL)
        budgets.child.wait()
        log.spend(10, 45, 20)  # the meter starts again as well, and repeats itself
        budgets.start()
        alerts.child.signal(SIGKILL)
        alerts.child.wait()
        alerts.start()
        await_true(lambda: spent() == 900, "the state is exact after the restart")
        await_true(lambda: len(receiver.taken) == 1, "the soft alert is delivered")
        log.spend(40, 50, 20)
        await_true(lambda: len(receiver.taken) == 2, "the hard alert is delivered")
        assert spent() == 1_000
    with log.reading(BUDGET_ALERTS.name) as read:
        raised: set[str] = set()

        def both_raised() -> bool:
            raised.update(BudgetAlert.model_validate_json(value).id for value in read())
            return len(raised) >= 2

        await_true(both_raised, "both alerts are in the log")
    assert [taken["type"] for taken in receiver.taken] == ["budget.soft_threshold", "budget.hard_limit"]
    assert [taken["id"] for taken in receiver.taken] == list(dict.fromkeys(receiver.attempts))
    assert raised == set(receiver.attempts)
    soft = receiver.taken[0]["data"]
    assert isinstance(soft, dict) and "has spent 80% of its monthly budget" in soft["message"]
    page = alerts.get("/v1/deliveries?status=delivered")
    assert page["counts"] == {"delivered": 2}
    alerts.child.stop()
    budgets.child.stop()
    assert (budgets.child.exit_status, alerts.child.exit_status) == (0, 0)


@pytest.mark.kafka
def test_a_keeper_that_slept_while_another_took_over_ends_itself(log: Log, start: Callable[[str], Service]) -> None:
    declare(log, 1_000_000)
    sleeper = start("budgets")
    sleeper.await_ready()
    with watching(log) as state:

        def spent() -> int:
            found = state()
            return found.positions[0].spent_pico if found else -1

        log.spend(0, 100, 1)
        await_true(lambda: spent() > 0, "the first spend is published")
        log.spend(100, 600, 1)
        sleeper.child.signal(SIGSTOP)
        log.spend(600, 700, 1)
        other = start("budgets")
        other.await_ready()
        await_true(lambda: spent() == 700, "the other has taken over")
        log.spend(700, 710, 1)
        sleeper.child.signal(SIGCONT)
        log.spend(710, 750, 1)
        await_true(lambda: not sleeper.child.running, "the sleeper has ended itself")
        assert sleeper.child.exit_status == 1, sleeper.child.log_tail(40)
        assert "asleep for" in sleeper.child.log_tail(40)
        await_true(lambda: spent() == 750, "the state is exact with the sleeper awake")
        sleeper.start()
        sleeper.await_ready()
        other.child.signal(SIGKILL)
        other.child.wait()
        log.spend(740, 800, 1)
        await_true(lambda: spent() == 800, "and so it is when the sleeper owns it again")


def test_a_keeper_that_is_told_to_end_ends_though_its_broker_is_gone(tmp_path: Path, services: Services) -> None:
    with EmbeddedBroker(tmp_path, free_port()) as broker:
        ensure_topics(broker.bootstrap_servers, PARTITIONS, 1)
        log = Log(broker.bootstrap_servers, "acme")
        budgets = services.start("budgets", log)
        budgets.await_ready()
        declare(log, 1_000_000)
        log.spend(0, 100, 1)
        with watching(log) as state:
            await_true(lambda: state() is not None, "the state is published")
    time.sleep(6)  # the state is due every five seconds: now it has something that it cannot send
    budgets.child.signal(SIGTERM)
    await_true(lambda: not budgets.child.running, lambda: budgets.child.log_tail(20))
    assert "told to end" in budgets.child.log_tail(40)
    assert budgets.child.exit_status == 1


@pytest.mark.parametrize("name", ["budgets", "alerts"])
def test_a_service_that_starts_before_kafka_says_so_and_waits(name: str, tmp_path: Path, services: Services) -> None:
    port = free_port()
    service = services.start(name, Log(f"127.0.0.1:{port}", "acme"))
    await_true(lambda: service.get("/readyz").get("step") == "waiting for Kafka", lambda: service.child.log_tail(20))
    assert service.get("/healthz")["status"] == "alive"
    with EmbeddedBroker(tmp_path, port):
        service.await_ready()


def test_leases_are_granted_from_what_is_left(log: Log, start: Callable[[str], Service]) -> None:
    declare(log, 1_000)
    budgets = start("budgets")
    budgets.await_ready()
    budget_id = f"{log.tenant}-month"
    with log.reading(BUDGET_LEASES.name) as read, watching(log) as state:
        grants: list[LeaseGrant] = []

        def ask(lease_id: str, amount_pico: int) -> LeaseGrant:
            request = LeaseRequest(
                lease_id=lease_id, gateway="g", tenant=log.tenant, amounts_pico={budget_id: amount_pico},
                requested_at=datetime.now(UTC),
            )  # fmt: skip
            before = len(grants)
            log.send(BUDGET_LEASES.name, request.model_dump_json())

            def answered() -> bool:
                grants.extend(
                    LeaseGrant.model_validate_json(value) for value in read() if json.loads(value)["kind"] == "grant"
                )  # fmt: skip
                return len(grants) > before

            await_true(answered, f"a grant for {lease_id}")
            return grants[-1]

        assert ask("first", 700).amounts_pico == {budget_id: 700}
        assert ask("first", 700).amounts_pico == {budget_id: 700}
        assert ask("second", 700).amounts_pico == {budget_id: 300}
        assert ask("third", 1).amounts_pico == {budget_id: 0}
        log.spend(0, 1, 100, "first")
        closing = LeaseClose(
            lease_id="first", gateway="g", tenant=log.tenant, settled_pico={budget_id: 150}, closed_at=datetime.now(UTC)
        )  # fmt: skip
        log.send(BUDGET_LEASES.name, closing.model_dump_json())

        def standing() -> tuple[int, int] | None:
            found = state()
            return (found.positions[0].spent_pico, found.positions[0].leased_pico) if found else None

        await_true(lambda: standing() == (100, 350), "100 posted, 300 + 50 still leased")
        declare(log, 2_000)

        def limit() -> int:
            found = state()
            return found.positions[0].budget.limit_pico if found else 0

        await_true(lambda: limit() == 2_000, "a raised limit is published")
        assert ask("fourth", 5_000).amounts_pico == {budget_id: 1_550}
