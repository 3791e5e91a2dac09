"""A vLLM server for CPUs, with the plugin in it, on a tiny model: how one is started on what `make vllm` has made."""

import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.stack import StackError

PYTHON, MODELS = Path(".cache/vllm-venv/bin/python"), Path(".cache/vllm-models")
SERVER = ("-m", "vllm.entrypoints.launchers.api_server.entry")
"""The package for CPUs has no distribution named vllm, which the command `vllm serve` looks for."""
BLOCK_SIZE = 32
START_SECONDS_MAX = 900.0
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # The engine computes in its own process, as it does with one GPU: a process less to start.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # vLLM imports thousands of files: without compiled bytecode a start takes three times as long.
    "PYTHONDONTWRITEBYTECODE": "",
}
"""Of every process with an engine in it."""


def arguments(model: Path, name: str, port: int, context_tokens: int) -> tuple[str, ...]:
    """Of a server that serves a model under that name."""
    return (
        "--host", "127.0.0.1", "--port", str(port), "--model", str(model), "--served-model-name", name,
        "--dtype", "float32", "--enforce-eager", "--block-size", str(BLOCK_SIZE), "--max-model-len", str(context_tokens),
        "--middleware", "taximeter_inference.vllm.Middleware",
    )  # fmt: skip


def await_health(worker: ChildProcess, port: int, seconds_max: float = START_SECONDS_MAX) -> None:
    """Wait until a worker serves. Raises StackError, with what it said last."""
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline and worker.running:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise StackError(f"{worker.name} does not serve:\n{worker.log_tail(30)}")


def engine_totals(port: int, names: Sequence[str]) -> list[int]:
    """The engine's own counters of these names (without `vllm:` and `_total`), each summed over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    marks = [f"vllm:{name}_total" for name in names]
    found = [[line.rpartition(" ")[2] for line in lines if line.partition("{")[0] == mark] for mark in marks]
    return [int(sum(map(float, values))) for values in found]
