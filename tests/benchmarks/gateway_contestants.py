"""The two gateways of a comparison as processes, each before the same upstream: LiteLLM's proxy, and ours with what it needs."""

import hashlib
import os
import re
import secrets
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydantic

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.tether import tethered_command
from taximeter_producers.control import publish
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.budgets import Budget
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.tenants import ApiKey, Tenant

READY_SECONDS_MAX = 180.0
INPUT_PICO, OUTPUT_PICO = 1_000_000, 4_000_000
"""Prices a token on both sides: 1 USD a million in, 4 USD a million out."""
MODEL = "fake"
PARTITIONS = 4

_LITELLM_CONFIG = """
model_list:
  - model_name: fake
    litellm_params: {{model: openai/fake, api_base: "{upstream}/v1", api_key: sk-none}}
    model_info: {{input_cost_per_token: 0.000001, output_cost_per_token: 0.000004, max_output_tokens: 16384}}
general_settings:
  custom_auth: gateway_litellm_auth.user_api_key_auth
  custom_auth_run_common_checks: true
litellm_settings:
  telemetry: false
  callbacks: ["gateway_litellm_auth.settle"]
"""


@dataclass(frozen=True)
class Key:
    """What a client sends, and the account that its spend is booked to."""

    secret: str
    account: str


@dataclass
class Contestant:
    """A gateway under test, or several of one kind. `new_key` makes a key with a budget in pico-USD (None: no budget)."""

    name: str
    urls: list[str]
    children: list[ChildProcess]
    new_key: Callable[[int | None], Key]
    booked_pico: Callable[[Key], int]
    headers: Mapping[str, str]

    def cpu_seconds(self) -> float:
        """CPU time of its processes so far, user and system, all threads."""
        return sum(_cpu_seconds(child.pid or 0) for child in self.children)


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Processes started meanwhile stay on that core, with all their threads."""
    everywhere = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


@contextmanager
def running(children: Sequence[ChildProcess]) -> Iterator[None]:
    """Start them, and stop them at the end."""
    try:
        for child in children:
            child.start()
        yield
    finally:
        for child in reversed(children):
            child.stop()


@contextmanager
def fake_upstream(folder: Path, cpu: int | None = None) -> Iterator[str]:
    """The model server; yields its address."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.gateway_upstream", "--port", str(port)]
    child = ChildProcess("upstream", tethered_command(command), {}, folder / "upstream.log")
    with pinned(cpu), running([child]):
        await_answer(f"http://127.0.0.1:{port}/health", child)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def litellm(folder: Path, python: Path, upstream: str, count: int = 1, cpu: int | None = None) -> Iterator[Contestant]:
    """LiteLLM's proxy: `count` instances of one worker each, without a database or Redis."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(_LITELLM_CONFIG.format(upstream=upstream))
    shutil.copy(Path(__file__).parent / "gateway_litellm_auth.py", folder)
    environment = {
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(24)}",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "CRITICAL",
        "PYTHONPATH": str(folder),
    }
    ports = [free_port() for _ in range(count)]
    command = [
        str(python),
        str(python.parent / "litellm"),
        "--config",
        str(folder / "config.yaml"),
        "--num_workers",
        "1",
    ]
    children = [
        ChildProcess(
            f"litellm-{number}",
            tethered_command([*command, "--port", str(port)]),
            environment,
            folder / f"{number}.log",
        )
        for number, port in enumerate(ports)
    ]
    urls = [f"http://127.0.0.1:{port}" for port in ports]

    def new_key(budget_pico: int | None) -> Key:
        account = f"{secrets.token_hex(6)}-{(budget_pico or 0) // 1_000}"
        return Key(f"sk-bench-{account}", account)

    def booked_pico(key: Key) -> int:
        return sum(_litellm_booked_pico(url, key) for url in urls)

    with pinned(cpu), running(children):
        for url, child in zip(urls, children, strict=True):
            await_answer(f"{url}/health/liveliness", child)
        yield Contestant("LiteLLM", urls, children, new_key, booked_pico, {})


def _litellm_booked_pico(url: str, key: Key) -> int:
    body = b'{"model":"fake","messages":[{"role":"user","content":"how much"}]}'
    headers = {"authorization": f"Bearer sk-spent-{key.account}", "content-type": "application/json"}
    try:
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body, headers), timeout=30)
    except urllib.error.HTTPError as refusal:
        with refusal:
            told = re.search(r"spent=(\d+)\.(\d{12})", refusal.read().decode())
        if told is not None:
            return int(told[1] + told[2])
    raise RuntimeError("LiteLLM does not say what it has booked")


@contextmanager
def taximeter_without_meter(
    folder: Path, upstream: str, cpu: int | None, other_cpu: int | None
) -> Iterator[Contestant]:
    """Our gateway on a core, and broker and keeper of budgets on the other; nobody reads the usage events."""
    with pinned(other_cpu):
        broker = EmbeddedBroker(folder / "broker", free_port())
        broker.start()
    try:
        ensure_topics(broker.bootstrap_servers, PARTITIONS, 1)
        environment = {
            "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
            "TAXIMETER_KAFKA_REBALANCE_TIMEOUT_SECONDS": "3",
            "TAXIMETER_STATE_DIR": str(folder / "state"),
            "TAXIMETER_SALT_SECRET": secrets.token_hex(32),
            "TAXIMETER_UPSTREAM_URL": upstream,
            "TAXIMETER_GATEWAY_LEASE_WAIT_MS": "10000",
        }
        budgets = service("budgets", "taximeter_streams.budgets", "TAXIMETER_BUDGETS_PORT", environment, folder)
        gateway = service("gateway", "taximeter_inference.gateway", "TAXIMETER_GATEWAY_PORT", environment, folder)
        with pinned(other_cpu), running([budgets[1]]), pinned(cpu), running([gateway[1]]):
            await_answer(f"{budgets[0]}/readyz", budgets[1])
            await_answer(f"{gateway[0]}/readyz", gateway[1])
            yield ours([gateway[0]], [gateway[1]], broker.bootstrap_servers, _nothing_booked)
    finally:
        broker.stop()


def ours(
    urls: list[str], children: list[ChildProcess], bootstrap_servers: str, booked_pico: Callable[[Key], int]
) -> Contestant:
    """Our gateways as a contestant; a new key is a new tenant with a budget of its own, known to every gateway."""

    def new_key(budget_pico: int | None) -> Key:
        tenant, secret = f"bench-{secrets.token_hex(6)}", f"sk-{secrets.token_hex(16)}"
        publish(bootstrap_servers, _declarations(tenant, secret, budget_pico))
        for url in urls:
            _await_key(url, secret)
        return Key(secret, tenant)

    return Contestant("Taximeter", urls, children, new_key, booked_pico, {"x-taximeter-feature": "chat"})


def service(
    name: str, module: str, port_variable: str, environment: Mapping[str, str], folder: Path
) -> tuple[str, ChildProcess]:
    """A service of ours on a free port, not started yet: its address and its process."""
    port = free_port()
    command = tethered_command([sys.executable, "-m", module])
    child = ChildProcess(name, command, {**environment, port_variable: str(port)}, folder / f"{name}.log")
    return f"http://127.0.0.1:{port}", child


def await_answer(url: str, child: ChildProcess) -> None:
    """Wait until the address answers 200. Raises RuntimeError with the log's tail."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline or not child.running:
                raise RuntimeError(f"{child.name} is not ready:\n{child.log_tail(30)}") from None
            time.sleep(0.2)


def _declarations(tenant: str, secret: str, budget_pico: int | None) -> list[ControlRecord]:
    now = datetime.now(UTC)
    card = RateCard(
        id=f"card-{tenant}",
        version=1,
        effective_from=now - timedelta(days=1),
        recorded_at=now,
        prices=(Price(model=MODEL, uncached_input=INPUT_PICO, output=OUTPUT_PICO),),
    )
    digest = hashlib.sha256(secret.encode()).hexdigest()
    things: list[tuple[ControlKind, str, pydantic.BaseModel]] = [
        (ControlKind.TENANT, tenant, Tenant(id=tenant, rate_card=card.id)),
        (ControlKind.RATE_CARD, card.name, card),
        (ControlKind.API_KEY, digest, ApiKey(id=digest[:8], tenant=tenant, key_sha256=digest)),
    ]
    if budget_pico is not None:
        budget = Budget(id=f"{tenant}-month", tenant=tenant, limit_pico=budget_pico, soft_thresholds_bps=())
        things.insert(0, (ControlKind.BUDGET, budget.id, budget))
    return [
        ControlRecord(kind=kind, id=name, body=body.model_dump(mode="json"), recorded_at=now)
        for kind, name, body in things
    ]


def _await_key(url: str, secret: str) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {secret}"})
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=10):
                # The records lie in several partitions: a moment for the others.
                time.sleep(0.5)
                return
        except urllib.error.HTTPError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} does not know a new key")


def _nothing_booked(_key: Key) -> int:
    raise NotImplementedError("nobody rates usage here")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
