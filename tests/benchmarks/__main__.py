"""`python -m tests.benchmarks`: measures the metering path and prints its table as Markdown.

`--write` puts the tables into docs/benchmarks.md and docs/scale.md as well. Progress goes to standard error. Needs java and mvn
(Apache Kafka).
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from taximeter_schemas import UsageEvent, wire
from tests.benchmarks import adding_up, emitting, latency, processes, report, throughput
from tests.benchmarks.preloaded import CACHE
from tests.benchmarks.progress import note
from tests.benchmarks.stand import Candidate, Stand
from tests.benchmarks.throughput import Sizes

_DOCS = Path(__file__).parents[2] / "docs"
CANDIDATES = "limit,ours,ours (no kernel),faust,quixstreams"
SECTIONS = ("throughput", "flat", "workers", "latency", "emit", "adding")
_PAGES = {"adding": "scale.md"}
"""Where a section's table stands; all others in benchmarks.md."""


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="measure only this; may be given several times"
    )
    parser.add_argument("--candidates", help=f"for throughput; all: {CANDIDATES}")
    parser.add_argument("--quick", action="store_true", help="tiny counts: shows that it runs, measures nothing")
    parser.add_argument("--full", action="store_true", help="up to 20 million stored events (the section `flat`)")
    parser.add_argument("--events", type=int, help="events in the log (1,000,000)")
    parser.add_argument("--identities", type=int, help="identities in the index beforehand (10,000,000)")
    parser.add_argument("--runs", type=int, help="runs of each candidate (5)")
    parser.add_argument(
        "--nice", type=int, default=0, help="raise the priority by that much: for a machine that others use too"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/")
    options = parser.parse_args()
    if options.nice:
        processes.PREFERENCE = options.nice
        processes.prefer(os.getpid(), options.nice)
    CACHE.mkdir(parents=True, exist_ok=True)
    found: dict[str, object] = {}
    for section in options.only or SECTIONS:
        note(f"{section} ...")
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="run-") as folder:
            found[section] = _RUN[section](Path(folder), options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    table = report.render(found, report.machine())
    print(table)
    if options.write:
        for name in found:
            page = _DOCS / _PAGES.get(name, "benchmarks.md")
            page.write_text(report.replaced(page.read_text(), [name], table))


def _sizes(options: argparse.Namespace) -> Sizes:
    usual = Sizes(5_000, 1_000, 1, 5.0) if options.quick else Sizes(1_000_000, 10_000_000, 5, 15.0)
    identities = usual.identities if options.identities is None else options.identities
    return Sizes(options.events or usual.events, identities, options.runs or usual.runs, usual.slow_seconds)


def _throughput(folder: Path, options: argparse.Namespace) -> object:
    sizes = _sizes(options)
    names = (options.candidates or ("ours" if options.quick else CANDIDATES)).split(",")
    with Stand(folder) as stand:
        size = stand.fill(sizes.events)
        runs = throughput.measure(stand, names, sizes)
    return {
        "event_bytes": size, "events": sizes.events, "identities": sizes.identities,
        "runs": {name: [asdict(one) for one in measured] for name, measured in runs.items()},
    }  # fmt: skip


def _flat(folder: Path, options: argparse.Namespace) -> object:
    """One meter from an empty warehouse on; what an event costs in each stretch."""
    total = options.events or (20_000_000 if options.full else 3_000_000)
    stretch = total // 10
    if options.quick:
        total, stretch = 4_000, 2_000
    with Stand(folder) as stand:
        candidate = Candidate("meter", [sys.executable, "-m", "taximeter_streams.meter"], seconds_max=1_200.0)
        return {"stretch": stretch, "stretches": [asdict(one) for one in stand.stretches(candidate, total, stretch)]}


def _workers(folder: Path, options: argparse.Namespace) -> object:
    """One, two and four workers on four partitions: throughput by the CPU time of an event."""
    found, log_bytes, row_bytes = _at_once(folder, _sizes(options).events, options.quick)
    return {"workers": found, "log_bytes": log_bytes, "row_bytes": row_bytes}


def _at_once(folder: Path, events: int, quick: bool) -> tuple[dict[str, object], float, float]:
    """What was measured of each number of workers, and the bytes of an event in the log and in ClickHouse."""
    folder.mkdir(exist_ok=True)
    found: dict[str, object] = {}
    with Stand(folder, partitions=4) as stand:
        stand.fill(events)
        for count in (1, 2) if quick else (1, 2, 4):
            candidate = Candidate("meter", [sys.executable, "-m", "taximeter_streams.meter"], workers=count)
            found[str(count)] = asdict(stand.measure(candidate))
            note(f"{count} workers: {found[str(count)]}")
        return found, stand.log_bytes(), stand.row_bytes


def _adding(folder: Path, options: argparse.Namespace) -> object:
    """One worker at a time among more and more members of its group; then many at once, simulated."""
    members, events, rushes = ((1, 2), 2_000, 1) if options.quick else ((1, 2, 4, 8), 100_000, 3)
    beside = adding_up.figures(folder, members, options.events or events, options.runs or rushes)
    return {"beside": beside, "at_once": _at_once(folder / "at-once", options.events or 4 * events, options.quick)[0]}


def _latency(folder: Path, options: argparse.Namespace) -> object:
    rate, seconds = (100, 2.0) if options.quick else (1_000, 30.0)
    with Stand(folder) as stand:
        return {"rate": rate, **asdict(latency.measure(stand, rate, seconds))}


def _emit(folder: Path, options: argparse.Namespace) -> object:
    count, runs = (2_000, 1) if options.quick else (100_000, options.runs or 5)
    models = emitting.models(count)
    ways: dict[str, tuple[Sequence[UsageEvent | wire.UsageEvent], bool]] = {
        "`emit`, a model": (models, False),
        "`emit_many`, models": (models, True),
        "`emit_many`, structs": ([wire.from_model(model) for model in models], True),
    }
    found: dict[str, list[object]] = {name: [] for name in ways}
    with Stand(folder, warehouse=False) as stand:
        for number in range(runs):
            for place, (name, (events, many)) in enumerate(ways.items()):
                mark = number * len(ways) + place
                measured = emitting.emit(stand.kafka.bootstrap_servers, folder / "spool", events, mark, many)
                found[name].append(asdict(measured))
                note(f"{name}, run {number + 1}: {found[name][-1]}")
    return found


_RUN: dict[str, Callable[[Path, argparse.Namespace], object]] = {
    "throughput": _throughput,
    "flat": _flat,
    "workers": _workers,
    "latency": _latency,
    "emit": _emit,
    "adding": _adding,
}

if __name__ == "__main__":
    main()
