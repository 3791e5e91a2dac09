"""What the plugin costs a vLLM server: CPU time of its main thread, a request, with the plugin on and off in one process.

    make bench-vllm

vLLM's own application is called in process, so that no HTTP client shares the thread. Blocks of requests run with the plugin
(`on`), without it (`off`), and without it once more (`off2`), in random order within each round; signatures are made before the
clock starts, events go to librdkafka's broker for tests, and objects of the start are out of the garbage collector's
sight, as in vLLM's server. `off2 - off` is the control: what two equal things differ by here. `quiet` is the plugin with its
sending thread asleep: what the event loop itself does; `on - quiet` is what that thread costs it. Intervals are by bootstrap
over rounds, 95%. The clock is the main thread's CPU time: that others use the machine makes it longer, but on and off alike.
Such differences are of tens of microseconds either way, so at the end the plugin's own code is timed in place as well, within
the server, vLLM's methods that it calls left out and the clock's own cost taken off.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any
from uuid import uuid4

from taximeter_inference.forwarding import Forwarded, sign
from taximeter_inference.vllm import Middleware, WorkerMeter, WorkerSettings
from taximeter_inference.vllm.exchange import Part
from taximeter_schemas.events import Operation

SECRET = "a forwarding secret for the benchmark"
VARIANTS = ("on", "quiet", "off", "off2")
COMPARED = (("plugin", "on", "off"), ("event loop", "quiet", "off"), ("control", "off2", "off"))
BOOTSTRAPS = 2_000
_MOCK_BROKER = """
from confluent_kafka.admin import AdminClient
client = AdminClient({"test.mock.num.brokers": "1", "log_level": 0})
(broker,) = client.list_topics(timeout=30).brokers.values()
print(f"{broker.host}:{broker.port}", flush=True)
input()
"""
WARMING_ROUNDS = 2
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


@dataclass(frozen=True)
class Load:
    """One kind of request, `parallel` at a time."""

    name: str
    path: str
    body: dict[str, Any]
    requests: int


class CollectorClock:
    """How long the main thread spent collecting garbage."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0
        gc.callbacks.append(self._told)

    def _told(self, phase: str, _info: dict[str, int]) -> None:
        now = time.thread_time()
        if phase == "start":
            self._began = now
        elif now > self._began:
            self.seconds += now - self._began


@dataclass
class Bench:
    """An engine, its application, and the plugin that can be put in between."""

    app: App
    middleware: Middleware
    meter: WorkerMeter
    engine: Any
    collecting: CollectorClock = field(default_factory=CollectorClock)

    async def block(self, load: Load, variant: str, parallel: int) -> "Cost":
        """Serve a block of requests."""
        is_on = variant in ("on", "quiet")
        if is_on:
            self.meter.hooks.attach(self.engine.output_processor)
        scopes = [new_scope(load.path) for _ in range(load.requests)]
        body, target = json.dumps(load.body).encode(), self.middleware if is_on else self.app
        parked: list[Part] = []
        leave = self.meter.hooks.leave
        if variant == "quiet":
            self.meter.hooks.leave = parked.append
        waiting = iter(scopes)

        async def ask_on() -> None:
            for scope in waiting:
                await ask(target, scope, body)

        collected = self.collecting.seconds
        cpu, wall = time.thread_time(), time.perf_counter()
        await asyncio.gather(*(ask_on() for _ in range(parallel)))
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        collected = self.collecting.seconds - collected
        if is_on:
            self.meter.hooks.detach()
            self.meter.hooks.leave = leave
            for part in parked:
                leave(part)
            await asyncio.to_thread(self.meter.sink.settle, 30.0)
        return Cost(cpu / load.requests * 1e6, collected / load.requests * 1e6, load.requests / wall)

    async def in_place(self, load: Load, options: argparse.Namespace) -> None:
        """Print what each piece of the plugin costs the main thread, where it runs."""
        timed = (*HOOKED, UNHOOKED)
        clocks = {name: PlaceClock() for name in ("before the answer", "after it", "clock", *timed)}
        processor, app = self.engine.output_processor, self.app
        inner = {name: PlaceClock() for name in timed}
        for name, clock in inner.items():
            setattr(processor, name, clock.timing(getattr(processor, name)))
        self.meter.hooks.attach(processor)
        for name in timed:
            setattr(processor, name, clocks[name].timing(getattr(processor, name)))

        async def served(scope: Message, receive: Any, send: Any) -> None:
            clocks["before the answer"].stop()
            await app(scope, receive, send)
            clocks["after it"].start()

        async def asked(scope: Message, receive: Any, send: Any) -> None:
            clocks["before the answer"].start()
            await middleware(scope, receive, send)
            clocks["after it"].stop()
            clocks["clock"].start()
            clocks["clock"].stop()

        middleware = Middleware(served)
        middleware.use(self.meter)
        count = load.requests * max(1, options.rounds // 4)
        scopes = iter([new_scope(load.path) for _ in range(count)])

        async def ask_on() -> None:
            for scope in scopes:
                await ask(asked, scope, json.dumps(load.body).encode())

        await asyncio.gather(*(ask_on() for _ in range(options.parallel)))
        for name in timed:
            delattr(processor, name)
        tick = clocks.pop("clock").mean
        # What two clocks around a method cost, with nothing between them.
        ticks = clocks.pop(UNHOOKED).mean - inner[UNHOOKED].mean
        found = {
            name: clock.mean - (ticks + inner[name].mean if name in inner else tick) for name, clock in clocks.items()
        }
        parts = ", ".join(f"{name} {cost:.1f}" for name, cost in found.items())
        print(f"\n{load.name}, timed in place, {count} requests: {sum(found.values()):.1f} µs a request ({parts})")


HOOKED, UNHOOKED = ("add_request", "_update_stats_from_finished"), "_finish_request"
"""What the plugin hooks that a request which finishes passes, and what it leaves alone there."""


class PlaceClock:
    """The main thread's CPU time between `start` and `stop`, where nothing is awaited."""

    def __init__(self) -> None:
        self._began = self._total = self._count = 0

    def start(self) -> None:
        self._began = time.thread_time_ns()

    def stop(self) -> None:
        self._total += time.thread_time_ns() - self._began
        self._count += 1

    @property
    def mean(self) -> float:
        """In microseconds."""
        return self._total / max(1, self._count) / 1e3

    def timing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, timed."""

        def timed(*arguments: Any) -> Any:
            self.start()
            result = method(*arguments)
            self.stop()
            return result

        return timed


@dataclass(frozen=True)
class Cost:
    """A block: CPU of the main thread and garbage collection in it, in microseconds a request; requests a second."""

    cpu: float
    collected: float
    rate: float


def loads(requests: int) -> tuple[Load, ...]:
    """What is asked."""
    question = {"model": "tiny", "prompt": "How much was it?"}
    stream = {**question, "max_tokens": 64, "ignore_eos": True, "stream": True}
    return (
        Load("1 token", "/v1/completions", {**question, "max_tokens": 1}, requests),
        Load("64 tokens, stream", "/v1/completions", stream, max(8, requests // 8)),
    )


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=240, help="a block; an eighth of that for streams")
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--model", type=Path, default=Path(".cache/vllm-models/generator"))
    options = parser.parse_args()
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1")
    os.environ.update(VLLM_NO_USAGE_STATS="1", OMP_NUM_THREADS="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as folder, mock_broker() as options.broker:
        asyncio.run(measure(options, Path(folder)))


@contextmanager
def mock_broker() -> Iterator[str]:
    """The address of librdkafka's broker for tests, in a process of its own."""
    command = (sys.executable, "-c", _MOCK_BROKER)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


async def measure(options: argparse.Namespace, folder: Path) -> None:
    """Start the engine, then measure each load."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(
        ["--model", str(options.model), "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager",
         "--max-model-len", "2048", "--disable-uvicorn-access-log"]
    )  # fmt: skip
    settings = WorkerSettings(
        kafka_bootstrap_servers=options.broker,
        worker_id="overhead",
        forwarding_secret=SECRET,
        salt_secret="a salt secret for the benchmark",
        state_dir=folder,
    )
    os.environ["TAXIMETER_FORWARDING_SECRET"] = SECRET
    async with build_async_engine_client(arguments) as engine:
        tasks = await engine.get_supported_tasks()
        app = build_app(arguments, tasks, engine.model_config)
        await init_app_state(engine, app.state, arguments, tasks)
        app.middleware_stack = app.build_middleware_stack()
        meter = WorkerMeter(engine, settings)
        middleware = Middleware(app)
        middleware.use(meter)
        gc.collect()
        gc.freeze()
        bench = Bench(app, middleware, meter, engine)
        meter.hooks.detach()
        for load in loads(options.requests):
            await measure_load(load, options, bench)
        await bench.in_place(loads(options.requests)[0], options)
        meter.close()


async def measure_load(load: Load, options: argparse.Namespace, bench: Bench) -> None:
    """All rounds of one load, and what came of them."""
    costs: dict[str, list[Cost]] = {variant: [] for variant in VARIANTS}
    chance = random.Random(1)
    for round_number in range(-WARMING_ROUNDS, options.rounds):
        for variant in chance.sample(VARIANTS, len(VARIANTS)):
            cost = await bench.block(load, variant, options.parallel)
            if round_number >= 0:
                costs[variant].append(cost)
    report(load, options, costs)


def new_scope(path: str) -> Message:
    """A signed request."""
    identity = f"gateway-1:bench:{uuid4().hex}"
    tags = Forwarded("acme", "chat", identity, identity, "tenant:acme", operation=Operation.COMPLETION)
    headers = [(b"content-type", b"application/json"), (b"host", b"bench")]
    headers += [(name.encode(), value.encode()) for name, value in sign(tags, SECRET.encode(), int(time.time()))]
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip


async def ask(app: App, scope: Message, body: bytes) -> None:
    """One request, as a server would bring it."""
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])
    status = 0

    async def receive() -> Message:
        message = next(parts, None)
        return message if message is not None else await asyncio.Future()

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    assert status == 200, status


def report(load: Load, options: argparse.Namespace, costs: dict[str, list[Cost]]) -> None:
    """Print one load's figures."""
    print(f"\n{load.name}: {options.rounds} rounds of {load.requests} requests a variant, {options.parallel} at a time")
    for variant in VARIANTS:
        found = costs[variant]
        print(
            f"  {variant:10} {median(c.cpu for c in found):8.1f} µs main-thread CPU a request"
            f" (garbage collection {fmean(c.collected for c in found):.1f}), {median(c.rate for c in found):7.1f} requests/s"
        )
    for name, one, other in COMPARED:
        pairs = list(zip(costs[one], costs[other], strict=True))
        cpu = [a.cpu - b.cpu for a, b in pairs]
        rate = [a.rate / b.rate - 1 for a, b in pairs]
        low, high = interval(cpu)
        calm = calmest([a.cpu for a, _ in pairs]) - calmest([b.cpu for _, b in pairs])
        slow, fast = interval(rate)
        print(
            f"  {name:10} {median(cpu):+6.1f} µs a request (95% {low:+.1f} to {high:+.1f}; calmest tenth of either {calm:+.1f}),"
            f" throughput {median(rate):+.1%} (95% {slow:+.1%} to {fast:+.1%})"
        )


def calmest(values: list[float]) -> float:
    """The tenth of the blocks with least CPU, their median: what others on the machine spoilt least."""
    return median(sorted(values)[: max(3, len(values) // 10)])


def interval(values: list[float]) -> tuple[float, float]:
    """The bootstrap interval of the median."""
    chance = random.Random(2)
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(BOOTSTRAPS))
    return medians[int(0.025 * BOOTSTRAPS)], medians[int(0.975 * BOOTSTRAPS)]


if __name__ == "__main__":
    main()
