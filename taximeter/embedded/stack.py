"""The embedded stack: broker, ClickHouse in process, Stripe double, simulated model server and every Taximeter service.

One object starts them in order, waits until each says it is ready, restarts a service that crashes, and stops them in
reverse. All data lies in one folder. The broker keeps its log in memory, so the stack drains before it stops, gives
each life of the log a name of its own, and refuses to go on when the broker itself dies.
"""

import json
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port, is_taken
from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.services import SERVICES, Service
from taximeter.embedded.tether import tethered_command

READY_SECONDS_MAX = 120.0
RESTARTS_MAX = 20
PARTITIONS = 4
PORTS = {"Kafka": 9092, "ClickHouse": 8123, "Stripe double": 8091, **{one.name: one.port for one in SERVICES}}
PORT_OFFSET_MAX = 65_535 - max(PORTS.values())

Report = Callable[[str], None]


class StackError(RuntimeError):
    """A part of the embedded stack did not start, or ended and could not be restarted."""


class PortsTakenError(StackError):
    """Something listens already where a part of the stack should."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the parts of a running stack listen."""

    kafka: str
    clickhouse_url: str
    stripe_url: str
    urls: dict[str, str]


@dataclass
class Stack:
    """The embedded stack in `data_dir`. `random_ports` lets several stacks run beside each other, as tests do."""

    data_dir: Path
    random_ports: bool = False
    port_offset: int = 0
    """Added to each of PORTS."""
    kafka: str | None = None
    """Bootstrap servers of a Kafka that runs already; None starts the embedded broker."""
    environment: dict[str, str] = field(default_factory=dict)
    report: Report = lambda _text: None
    children: dict[str, ChildProcess] = field(default_factory=dict)
    _broker: EmbeddedBroker | None = None
    log_id: str = "kafka"
    service_environment: dict[str, str] = field(default_factory=dict)
    _addresses: Addresses | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def addresses(self) -> Addresses:
        """Where the parts listen. Raises StackError before the start."""
        if self._addresses is None:
            raise StackError("the stack is not running")
        return self._addresses

    @property
    def secrets(self) -> dict[str, str]:
        """The stack's own secrets, made once and kept in data_dir/secrets.json (readable by its owner only)."""
        path = self.data_dir / "secrets.json"
        kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        made = {
            "TAXIMETER_SALT_SECRET": secrets.token_hex(32),
            "TAXIMETER_ADMIN_TOKEN": secrets.token_urlsafe(24),
            "TAXIMETER_INGEST_TOKEN": secrets.token_urlsafe(24),
            "TAXIMETER_STRIPE_API_KEY": "sk_test_" + secrets.token_hex(16),
            "TAXIMETER_STRIPE_WEBHOOK_SECRET": "whsec_" + secrets.token_hex(16),
        }
        if made.keys() - kept.keys():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(json.dumps(made | kept, indent=2))
        return made | kept

    def start(self) -> None:
        """Start everything and wait until it is ready. Raises StackError with the log's tail when a part does not come up."""
        self.data_dir = self.data_dir.resolve()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        ports = self._ports()
        kafka = self.kafka or self._start_broker(ports["Kafka"])
        warehouse, stripe = ports["ClickHouse"], ports["Stripe double"]
        self._addresses = Addresses(
            kafka,
            f"http://default:@127.0.0.1:{warehouse}/taximeter",
            f"http://127.0.0.1:{stripe}",
            {service.name: f"http://127.0.0.1:{ports[service.name]}" for service in SERVICES},
        )
        common = self.service_environment = self._environment(ports)
        face = [
            "taximeter.embedded.clickhouse_face",
            "--path",
            str(self.data_dir / "clickhouse"),
            "--port",
            str(warehouse),
        ]
        self._spawn("clickhouse", face, common)
        double = [
            "taximeter_billing.payments.double",
            "--data",
            str(self.data_dir / "stripe.db"),
            "--port",
            str(stripe),
            "--webhook-url",
            f"http://127.0.0.1:{ports['billing']}/v1/stripe/webhooks",
        ]
        self._spawn("stripe", double, common)
        self._await("clickhouse", f"http://127.0.0.1:{warehouse}/ping")
        self._prepare()
        for service in SERVICES:
            self._spawn(service.name, [service.module], common)
        for service in SERVICES:
            self._await(service.name, self.addresses.urls[service.name] + service.ready_path)

    def stop(self) -> None:
        """Stop everything: those that emit first, then those that read, the warehouse and the broker last."""
        order = ["gateway", "ingest", "upstream", "meter", "budgets", "alerts", "billing", "stripe", "clickhouse"]
        for name in order:
            if name in self.children:
                self.children[name].stop()
        if self._broker is not None:
            self._broker.stop()
            self._broker = None
        self._addresses = None

    def supervise(self) -> None:
        """Restart services that have crashed; call it now and then. Raises StackError when one keeps crashing."""
        if self._broker is not None and not self._broker.running:
            raise StackError(
                "the embedded broker has ended; it keeps its log in memory, so the stack must be started anew"
            )
        for child in self.children.values():
            if child.running:
                continue
            if child.restarts >= RESTARTS_MAX:
                raise StackError(f"{child.name} keeps ending (exit status {child.exit_status}):\n{child.log_tail()}")
            child.restarts += 1
            self.report(f"{child.name} ended with status {child.exit_status}; started again")
            child.start()

    def wait_ready(self, service: Service) -> None:
        """Wait until a (restarted) service says that it is ready."""
        self._await(service.name, self.addresses.urls[service.name] + service.ready_path)

    def _ports(self) -> dict[str, int]:
        """Where each part is to listen. Raises PortsTakenError, which names all that are taken."""
        if self.random_ports:
            return {name: free_port() for name in PORTS}
        ports = {name: port + self.port_offset for name, port in PORTS.items()}
        needed = {name: port for name, port in ports.items() if name != "Kafka" or self.kafka is None}
        if taken := [f"{port} ({name})" for name, port in needed.items() if is_taken(port)]:
            raise PortsTakenError(f"something listens already on port {', '.join(taken)}")
        return ports

    def _start_broker(self, port: int) -> str:
        self._broker = EmbeddedBroker(self.data_dir / "broker", port)
        self._broker.start()
        # The broker's memory begins empty, so its offsets mean nothing to the rows of an earlier life.
        self.log_id = f"embedded-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.report("broker is ready")
        return self._broker.bootstrap_servers

    def _environment(self, ports: dict[str, int]) -> dict[str, str]:
        addresses = self.addresses
        return {
            "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": addresses.kafka,
            "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
            "TAXIMETER_LOG_ID": self.log_id,
            "TAXIMETER_KAFKA_REBALANCE_TIMEOUT_SECONDS": "3" if self._broker else "10",
            "TAXIMETER_CLICKHOUSE_URL": addresses.clickhouse_url,
            "TAXIMETER_DATABASE_URL": f"sqlite:///{self.data_dir / 'billing.db'}",
            "TAXIMETER_STATE_DIR": str(self.data_dir / "state"),
            "TAXIMETER_STRIPE_URL": addresses.stripe_url,
            "TAXIMETER_UPSTREAM_URL": addresses.urls["upstream"],
            "TAXIMETER_GATEWAY_ID": "gateway-1",
            **self.secrets,
            **{service.port_variable: str(ports[service.name]) for service in SERVICES},
            **self.environment,
        }

    def _spawn(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        command = tethered_command([sys.executable, "-m", *arguments])
        child = ChildProcess(name, command, environment, self.data_dir / "logs" / f"{name}.log")
        self.children[name] = child
        child.start()

    def _prepare(self) -> None:
        """Topics and tables, before anything reads or writes them."""
        from taximeter_producers.topics import ensure_topics
        from taximeter_sql import connect, migrate

        ensure_topics(self.addresses.kafka, PARTITIONS, 1)
        client = connect(self.addresses.clickhouse_url)
        try:
            migrate(client)
        finally:
            client.close()

    def _await(self, name: str, url: str) -> None:
        child = self.children[name]
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not answers(url):
            if not child.running:
                raise StackError(f"{name} ended at start (exit status {child.exit_status}):\n{child.log_tail()}")
            if time.monotonic() > deadline:
                raise StackError(f"{name} is not ready after {READY_SECONDS_MAX:.0f} s ({url}):\n{child.log_tail()}")
            time.sleep(0.1)
        self.report(f"{name} is ready")


def answers(url: str) -> bool:
    """Whether a GET of the URL is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
