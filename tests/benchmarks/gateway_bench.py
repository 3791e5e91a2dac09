"""`make bench-gateway`: our gateway and LiteLLM's proxy before the same upstream, one core each, in turn, over several rounds.

The gateway has a core of its own. The upstream, the client and, for ours, the broker and the keeper of budgets share the
other. Both authenticate a key and hold its spend under a budget that is never reached.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.gateway_contestants import (
    MODEL,
    Contestant,
    Key,
    fake_upstream,
    litellm,
    taximeter_without_meter,
)
from tests.benchmarks.gateway_load import request_bytes
from tests.benchmarks.gateway_report import keep, percentile, spread, table

GATEWAY_CPU, OTHER_CPU = 0, 1
CONNECTIONS = 64
LARGE_PICO = 10**18
PROMPT = "token " * 50
OUTPUT_TOKENS = 16


@dataclass
class Measured:
    """One contestant's figures, a value for each round. Times in microseconds."""

    requests_per_second: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    busy_p50_us: list[float] = field(default_factory=list)
    busy_p99_us: list[float] = field(default_factory=list)
    alone_p50_us: list[float] = field(default_factory=list)
    alone_p99_us: list[float] = field(default_factory=list)
    streams_per_second: list[float] = field(default_factory=list)
    stream_cpu_us: list[float] = field(default_factory=list)
    refused: int = 0


class Bench:
    """Runs the load as a process on the other core."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds

    def measure(self, contestant: Contestant, key: Key, into: Measured) -> None:
        """One round."""
        chat = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": OUTPUT_TOKENS}
        url = contestant.urls[0]
        whole = request_bytes(url, key.secret, chat, contestant.headers)
        stream = request_bytes(url, key.secret, {**chat, "stream": True}, contestant.headers)
        self._load(url, whole, CONNECTIONS, 1.0)
        served, cpu_us, latencies = self._counted(contestant, url, whole, CONNECTIONS, into)
        into.requests_per_second.append(served)
        into.cpu_us.append(cpu_us)
        into.busy_p50_us.append(percentile(latencies, 0.5))
        into.busy_p99_us.append(percentile(latencies, 0.99))
        _, _, latencies = self._counted(contestant, url, whole, 1, into)
        into.alone_p50_us.append(percentile(latencies, 0.5))
        into.alone_p99_us.append(percentile(latencies, 0.99))
        served, cpu_us, _ = self._counted(contestant, url, stream, CONNECTIONS, into)
        into.streams_per_second.append(served)
        into.stream_cpu_us.append(cpu_us)

    def _counted(
        self, contestant: Contestant, url: str, request: bytes, connections: int, into: Measured
    ) -> tuple[float, float, list[int]]:
        cpu_before = contestant.cpu_seconds()
        outcome = self._load(url, request, connections, self._seconds)
        cpu_seconds = contestant.cpu_seconds() - cpu_before
        latencies: list[int] = outcome["latencies_us"]
        into.refused += sum(outcome["statuses"].values()) - len(latencies)
        return len(latencies) / outcome["seconds"], cpu_seconds / max(1, len(latencies)) * 1e6, latencies

    def _load(self, url: str, request: bytes, connections: int, seconds: float) -> dict:  # type: ignore[type-arg]
        file = self._folder / "request.bin"
        file.write_bytes(request)
        arguments = ["--url", url, "--request-file", str(file), "--connections", str(connections)]
        command = [sys.executable, "-m", "tests.benchmarks.gateway_load", *arguments]
        command += ["--seconds", str(seconds), "--cpu", str(OTHER_CPU)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=seconds + 120)
        loaded: dict = json.loads(done.stdout)  # type: ignore[type-arg]
        return loaded


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--litellm-python", type=Path, required=True, help="Python of the environment with LiteLLM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        bench = Bench(folder, arguments.seconds)
        upstream = stack.enter_context(fake_upstream(folder, OTHER_CPU))
        direct = Contestant("no gateway", [upstream], [], lambda _budget: Key("sk-x", "x"), lambda _key: 0, {})
        taximeter = taximeter_without_meter(folder / "ours", upstream, GATEWAY_CPU, OTHER_CPU)
        contestants = [
            direct,
            stack.enter_context(taximeter),
            stack.enter_context(litellm(folder / "litellm", arguments.litellm_python, upstream, 1, GATEWAY_CPU)),
        ]
        keys = {
            "no gateway": (direct, direct.new_key(None)),
            "Taximeter, budget": (contestants[1], contestants[1].new_key(LARGE_PICO)),
            "Taximeter, no budget": (contestants[1], contestants[1].new_key(None)),
            "LiteLLM, budget": (contestants[2], contestants[2].new_key(LARGE_PICO)),
            "LiteLLM, no budget": (contestants[2], contestants[2].new_key(None)),
        }
        results = {title: Measured() for title in keys}
        for number in range(arguments.rounds):
            for title, (contestant, key) in keys.items():
                print(f"round {number + 1}: {title}", file=sys.stderr, flush=True)
                bench.measure(contestant, key, results[title])
    keep("gateway", report(results, arguments.rounds, arguments.seconds))


def report(results: Mapping[str, Measured], rounds: int, seconds: float) -> str:
    """The table, with a line on how it came about. Added latency is that of one connection over going without a gateway."""
    direct = results["no gateway"]
    floor_p50, floor_p99 = (statistics.median(values) for values in (direct.alone_p50_us, direct.alone_p99_us))

    def added(values: Sequence[float], floor_us: float) -> str:
        return spread([(value - floor_us) / 1_000 for value in values], 2)

    lines: list[tuple[str, Callable[[Measured], str]]] = [
        ("requests a second, 64 connections", lambda measured: spread(measured.requests_per_second)),
        ("CPU a request, µs", lambda measured: spread(measured.cpu_us)),
        ("requests a second of CPU", lambda measured: spread([1e6 / value for value in measured.cpu_us if value])),
        ("added latency p50, ms", lambda measured: added(measured.alone_p50_us, floor_p50)),
        ("added latency p99, ms", lambda measured: added(measured.alone_p99_us, floor_p99)),
        ("latency at 64 connections p50, ms", lambda m: spread([value / 1_000 for value in m.busy_p50_us], 1)),
        ("latency at 64 connections p99, ms", lambda m: spread([value / 1_000 for value in m.busy_p99_us], 1)),
        ("streams a second, 64 connections", lambda measured: spread(measured.streams_per_second)),
        ("CPU a stream, µs", lambda measured: spread(measured.stream_cpu_us)),
        ("streams a second of CPU", lambda m: spread([1e6 / value for value in m.stream_cpu_us if value])),
        ("answers other than 200", lambda measured: f"{measured.refused:,}"),
    ]
    rows = [[title, *(shown(measured) for measured in results.values())] for title, shown in lines]
    intro = (
        f"Median of {rounds} rounds of {seconds:g} s each, least and greatest in brackets; prompts of 50 tokens, answers of"
        f" {OUTPUT_TOKENS} (a stream: {OUTPUT_TOKENS} chunks). Where other work shared the machine (see its load), the rates of"
        " CPU time are what to compare: what one core would do that the gateway has for itself."
    )
    return f"{intro}\n\n{table(['', *results], rows)}"


if __name__ == "__main__":
    main()
