"""A real vLLM server with the plugin in it, for tests: started, asked, killed; its own counters beside its events."""

import contextlib
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from taximeter.demo import vllm_worker
from taximeter.demo.vllm_worker import arguments, await_health
from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter_inference.forwarding import Forwarded, sign
from taximeter_producers.topics import ensure_topics
from taximeter_schemas import wire
from taximeter_schemas.events import Operation, input_tokens
from taximeter_schemas.topics import USAGE_EVENTS
from tests.gateway_stack import PARTITIONS
from tests.topic_reader import read_topic

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("TAXIMETER_VLLM_PYTHON", ROOT / vllm_worker.PYTHON))
MODELS = Path(os.environ.get("TAXIMETER_VLLM_MODELS", ROOT / vllm_worker.MODELS))
SECONDS_MAX = 120.0
SECRET = "a forwarding secret for the tests"
SALT_SECRET = "a salt secret for the tests"
_OPTIONS = ("--enable-prompt-tokens-details", "--max-num-seqs", "64", "--disable-uvicorn-access-log")


def engine_environment(bootstrap_servers: str) -> dict[str, str]:
    """What every process with an engine in it is started with."""
    return {
        **os.environ,
        **vllm_worker.ENVIRONMENT,
        "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "TAXIMETER_SALT_SECRET": SALT_SECRET,
    }


@dataclass
class VllmWorker:
    """One server. `settings` are TAXIMETER_... variables over those that every test worker has."""

    folder: Path
    bootstrap_servers: str
    model: str = "generator"
    arguments: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = vllm_worker.SERVER
    context_tokens: int = 4_096
    broker: EmbeddedBroker | None = None
    """Its own, at `bootstrap_servers`, which it brings with it; None where others use the broker too."""
    metered_elsewhere: "Counters" = field(default_factory=lambda: Counters(0, 0, 0))

    def __post_init__(self) -> None:
        self.port = free_port()
        self.worker_id = f"worker-{uuid4().hex[:8]}"
        self.state_dir = self.folder / "state"
        # Short: the path of a socket has 107 bytes.
        self.kv_events = f"ipc://{tempfile.mkdtemp(prefix='kv')}/kv"
        environment = {
            **engine_environment(self.bootstrap_servers),
            "TAXIMETER_WORKER_ID": self.worker_id,
            "TAXIMETER_STATE_DIR": str(self.state_dir),
            "TAXIMETER_FORWARDING_SECRET": SECRET,
            **self.settings,
        }
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.kv_events,
            "replay_endpoint": f"{self.kv_events}-replay",
        }
        served = arguments(MODELS / self.model, "tiny", self.port, self.context_tokens)
        options = (*_OPTIONS, "--kv-events-config", json.dumps(events), *self.arguments)
        command = (str(PYTHON), *self.program, *served, *options)
        self._child = ChildProcess("vllm", command, environment, self.folder / "vllm.log")

    def begin_start(self) -> None:
        """Start it without waiting."""
        if self.broker is not None:
            self.broker.start()
        ensure_topics(self.bootstrap_servers, PARTITIONS, 1)
        self._child.start()

    def await_start(self) -> None:
        """Wait until it serves. Raises StackError."""
        await_health(self._child, self.port)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it said."""
        return self._child.log_path.read_text(errors="replace")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal, wait for its end, and end what it leaves behind."""
        self._child.signal(number)
        with contextlib.suppress(Exception):
            self._child.wait(SECONDS_MAX)
        if self._child.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        if self.broker is not None:
            self.broker.stop()

    def signal_engine(self, number: signal.Signals) -> None:
        """Send the engine's own process a signal: stopped, it counts no further."""
        (engine,) = _children(
            self._child.pid or 0, "EngineCor"
        )  # The kernel keeps 15 characters of "VLLM::EngineCore".
        os.kill(engine, number)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._child.signal(number)

    def counters_at_rest(self) -> "Counters":
        """The engine's own totals, once they do not change any more."""
        found = self.counters()
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            time.sleep(0.3)
            before, found = found, self.counters()
            if found == before:
                return found
            assert time.monotonic() < deadline, f"still counting: {found}"

    def await_end(self) -> None:
        """Wait until it has ended by itself. Raises subprocess.TimeoutExpired."""
        self._child.wait(SECONDS_MAX)

    def headers(
        self,
        tenant: str = "acme",
        *,
        pool: str | None = None,
        request_id: str | None = None,
        operation: Operation = Operation.OTHER,
    ) -> dict[str, str]:
        """Tags as a gateway signs them."""
        identity = request_id or f"gateway-1:{uuid4().hex[:8]}:1"
        tags = Forwarded(tenant, "chat", identity, identity, pool or f"tenant:{tenant}", operation=operation)
        return dict(sign(tags, SECRET.encode(), int(time.time())))

    def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Ask it, as acme unless told otherwise."""
        return httpx.post(f"{self.url}{path}", json=body, headers=headers or self.headers(), timeout=SECONDS_MAX)

    @contextlib.contextmanager
    def stream(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """Ask it for a stream."""
        with (
            httpx.Client(timeout=SECONDS_MAX) as client,
            client.stream("POST", f"{self.url}{path}", json=dict(body), headers=headers or self.headers()) as answer,
        ):
            yield answer

    def total(self, name: str) -> int:
        """The sum of a metric of vLLM over its labels."""
        return self.own_total(f"vllm:{name}")

    def own_total(self, name: str) -> int:
        """The sum of a metric over its labels, by its full name, for a count."""
        return int(self.own_value(name))

    def own_value(self, name: str) -> float:
        """The same for a measure."""
        text = httpx.get(f"{self.url}/metrics", timeout=SECONDS_MAX).text
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def by_source(self) -> dict[str, int]:
        """Prompt tokens by where they came from, as the engine's own counters have them."""
        text = httpx.get(f"{self.url}/metrics", timeout=SECONDS_MAX).text
        found = re.findall(r'^vllm:prompt_tokens_by_source_total{.*source="(\w+)".*} ([0-9.e+]+)$', text, re.MULTILINE)
        return {source: int(float(count)) for source, count in found}

    def open_numbers(self) -> list[int]:
        """The numbers of requests that are in its engine, or whose events are not safe yet."""
        slots = (self.state_dir / "vllm" / f"{self.worker_id}.open").read_bytes()[256:]
        found = (int.from_bytes(slots[at : at + 8], "little") for at in range(0, len(slots), 8))
        return sorted(value - 1 for value in found if value)

    def reset_prefix_cache(self) -> None:
        """Empty its cache (needs VLLM_SERVER_DEV_MODE)."""
        assert httpx.post(f"{self.url}/reset_prefix_cache", timeout=SECONDS_MAX).status_code == 200

    def await_gauge(self, name: str, value: int) -> None:
        """Wait until a metric of vLLM has that value."""
        deadline = time.monotonic() + SECONDS_MAX
        while (found := self.total(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}, not {value}: {self._child.log_tail(20)}"
            time.sleep(0.05)

    def counters(self) -> "Counters":
        """The engine's own totals."""
        return Counters(
            self.total("prompt_tokens_total"),
            self.total("prompt_tokens_cached_total"),
            self.total("generation_tokens_total"),
        )

    def events(self) -> list[wire.UsageEvent]:
        """Its events on the log, in the order of its numbers."""
        messages = read_topic(self.bootstrap_servers, USAGE_EVENTS.name)
        decoded = [wire.decode(message.value() or b"") for message in messages]
        own = {(e.source, e.id): e for e in decoded if e.data.worker and e.data.worker.id.startswith(self.worker_id)}
        return sorted(own.values(), key=lambda event: event.data.worker.sequence if event.data.worker else 0)

    def await_events(self, count: int) -> list[wire.UsageEvent]:
        """Its events, once there are that many of them (and no more)."""
        deadline = time.monotonic() + SECONDS_MAX
        while len(events := self.events()) < count:
            assert time.monotonic() < deadline, f"{len(events)} of {count} events: {self._child.log_tail(30)}"
            time.sleep(0.1)
        assert len(events) == count, [json.dumps([e.id, str(e.data.outcome)]) for e in events]
        return events


def _children(parent: int, name: str) -> list[int]:
    """The processes directly under that one whose command names so."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            command, _, rest = status.read_text().rpartition(")")
            if int(rest.split()[1]) == parent and name in command:
                found.append(int(status.parent.name))
    return found


@dataclass(frozen=True)
class Counters:
    """Token totals: as the engine's Prometheus counters have them, or as events add up to."""

    prompt: int
    cached: int
    output: int

    def __add__(self, more: "Counters") -> "Counters":
        return Counters(self.prompt + more.prompt, self.cached + more.cached, self.output + more.output)

    def __sub__(self, before: "Counters") -> "Counters":
        return Counters(self.prompt - before.prompt, self.cached - before.cached, self.output - before.output)


def engine_sum(events: list[wire.UsageEvent]) -> Counters:
    """What the events say that the engine counted: with several answers to a prompt that is more than what they bill."""
    prompt = cached = output = 0
    for event in events:
        tokens, attributes = event.data.tokens, event.data.attributes
        prompt += int(attributes.get("engine.prompt_tokens", input_tokens(tokens)))
        read = tokens.cache_read
        cached += int(attributes.get("engine.cached_tokens", read.gpu + read.cpu + read.disk))
        output += tokens.output
    return Counters(prompt, cached, output)
