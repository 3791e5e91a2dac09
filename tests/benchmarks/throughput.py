"""Throughput of the metering path: the limit, ours, and the baselines, in turn and several times over."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.preloaded import CACHE, preloaded_index
from tests.benchmarks.progress import note
from tests.benchmarks.stand import Candidate, Measured, Stand

_ROOT = Path(__file__).parents[2]
_PACKAGES = (".", "schemas", "producers", "streams", "sql")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: events in the log, identities in the index beforehand, runs of each, seconds for a slow one."""

    events: int
    identities: int
    runs: int
    slow_seconds: float


def candidates(sizes: Sizes) -> dict[str, Candidate]:
    """What can be measured, by name."""
    index = preloaded_index(sizes.identities) if sizes.identities else None
    module = [sys.executable, "-m"]
    return {
        "limit": Candidate("limit", [*module, "tests.benchmarks.limit"]),
        "ours": Candidate("meter", [*module, "taximeter_streams.meter"], index=index),
        "ours (no kernel)": Candidate(
            "meter-rows", [*module, "taximeter_streams.meter"], {"TAXIMETER_METER_KERNEL": "off"}, index=index
        ),
        "faust": Candidate(
            "faust", [*module, "tests.benchmarks.plain_faust", "worker", "-l", "warn"], seconds_max=sizes.slow_seconds
        ),
        "quixstreams": Candidate(
            "quix", [str(_quix_python()), "-m", "tests.benchmarks.plain_quix"],
            {"PYTHONPATH": os.pathsep.join(str(_ROOT / package) for package in _PACKAGES)}, sizes.slow_seconds,
        ),
    }  # fmt: skip


def measure(stand: Stand, names: Sequence[str], sizes: Sizes) -> dict[str, list[Measured]]:
    """Every candidate once a round, so that a change of the machine's mood meets them all."""
    known = candidates(sizes)
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(sizes.runs):
        for name in names:
            measured = stand.measure(known[name])
            found[name].append(measured)
            note(
                f"{name}, run {number + 1}: {measured.rate:,.0f} events/s, {measured.worker_us:.2f} us of CPU an event,"
                f" ClickHouse {measured.warehouse_us:.2f} us, {measured.peak_megabytes:.0f} MB"
            )
    return found


def _quix_python() -> Path:
    """The interpreter of the environment that Quix Streams has to itself."""
    folder = CACHE / "quix-venv"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        note(f"building an environment for quixstreams in {folder} (once)")
        uv = Path(sys.executable).parent / "uv"
        requirements = Path(__file__).with_name("requirements-quix.txt")
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", python, "-r", requirements], check=True)
        (folder / "complete").touch()
    return python
