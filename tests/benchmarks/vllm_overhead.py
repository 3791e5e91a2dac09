"""What the plugin costs a vLLM server: CPU time of its main thread, a request, with the plugin on and off in one process.

    make bench-vllm

vLLM's own application is called in process, so that no HTTP client shares the thread. Blocks of requests run with the plugin
(`on`), without it (`off`), and without it once more (`off2`), in random order within each round; signatures are made before the
clock starts. `off2 - off` is the control: what two equal things differ by here. Intervals are by bootstrap over rounds, 95%.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any
from uuid import uuid4

from taximeter_inference.forwarding import Forwarded, sign
from taximeter_inference.vllm import Middleware, WorkerMeter, WorkerSettings
from taximeter_schemas.events import Operation

SECRET = "a forwarding secret for the benchmark"
VARIANTS = ("on", "off", "off2")
BOOTSTRAPS = 2_000
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


@dataclass(frozen=True)
class Load:
    """One kind of request."""

    name: str
    path: str
    body: dict[str, Any]


LOADS = (
    Load("1 token", "/v1/completions", {"model": "tiny", "prompt": "How much was it?", "max_tokens": 1}),
    Load(
        "64 tokens, stream",
        "/v1/completions",
        {"model": "tiny", "prompt": "How much was it?", "max_tokens": 64, "ignore_eos": True, "stream": True},
    ),
)


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=40, help="a block")
    parser.add_argument("--model", type=Path, default=Path(".cache/vllm-models/generator"))
    options = parser.parse_args()
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1")
    os.environ.update(VLLM_NO_USAGE_STATS="1", OMP_NUM_THREADS="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(options, Path(folder)))


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
        kafka_bootstrap_servers="127.0.0.1:1",
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
        for load in LOADS:
            await measure_load(load, options, app, middleware, meter, engine)
        meter.close()


async def measure_load(
    load: Load, options: argparse.Namespace, app: App, middleware: Middleware, meter: WorkerMeter, engine: Any
) -> None:
    """All rounds of one load, and what came of them."""
    microseconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    chance = random.Random(1)
    meter.hooks.detach()
    for round_number in range(-2, options.rounds):
        for variant in chance.sample(VARIANTS, len(VARIANTS)):
            on = variant == "on"
            if on:
                meter.hooks.attach(engine.output_processor)
            scopes = [new_scope(load.path) for _ in range(options.requests)]
            body = json.dumps(load.body).encode()
            target: App = middleware if on else app
            cpu, wall = time.thread_time(), time.perf_counter()
            await asyncio.gather(*(ask(target, scope, body) for scope in scopes))
            cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
            if on:
                meter.hooks.detach()
            if round_number >= 0:
                microseconds[variant].append(cpu / options.requests * 1e6)
                seconds[variant].append(wall)
    report(load, options, microseconds, seconds)


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


def report(
    load: Load,
    options: argparse.Namespace,
    microseconds: dict[str, list[float]],
    seconds: dict[str, list[float]],
) -> None:
    """Print one load's figures."""
    print(f"\n{load.name}: {options.rounds} rounds of {options.requests} requests a variant")
    for variant in VARIANTS:
        rate = options.requests / median(seconds[variant])
        print(
            f"  {variant:5} {median(microseconds[variant]):8.1f} µs main-thread CPU a request, {rate:7.1f} requests/s"
        )
    for name, one, other in (("plugin", "on", "off"), ("control", "off2", "off")):
        cpu = [a - b for a, b in zip(microseconds[one], microseconds[other], strict=True)]
        wall = [b / a - 1 for a, b in zip(seconds[one], seconds[other], strict=True)]
        low, high = interval(cpu)
        print(
            f"  {name:8} {median(cpu):+6.1f} µs a request (mean {fmean(cpu):+.1f}, 95% of the median {low:+.1f} to {high:+.1f}),"
            f" throughput {median(wall):+.1%}"
        )


def interval(values: list[float]) -> tuple[float, float]:
    """The bootstrap interval of the median."""
    chance = random.Random(2)
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(BOOTSTRAPS))
    return medians[int(0.025 * BOOTSTRAPS)], medians[int(0.975 * BOOTSTRAPS)]


if __name__ == "__main__":
    main()
