"""The figures as Markdown tables, each between two marks, so that a part can be measured again without the others."""

import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks import adding_up
from tests.benchmarks.fixed_work import fixed_work_ms


def machine() -> str:
    """What it ran on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model}), {gigabytes:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}; load average {load:.1f}; "
        f"fixed work {fixed_work_ms():.0f} ms; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


def render(found: Mapping[str, Any], on: str) -> str:
    """All tables."""
    return "\n\n".join(_block(name, _TABLES[name](figures), on) for name, figures in found.items())


def replaced(page: str, names: Sequence[str], table: str) -> str:
    """The page with the tables of what was measured in the place of the old ones."""
    for name in names:
        page = page.replace(_found(name, page), _found(name, table))
    return page


def _found(name: str, text: str) -> str:
    block = re.search(f"<!-- {name} -->.*?<!-- /{name} -->", text, re.DOTALL)
    if block is None:
        raise ValueError(f"there is no place for {name!r}")
    return block.group()


def _block(name: str, lines: Sequence[str], on: str) -> str:
    return "\n".join([f"<!-- {name} -->", *lines, "", f"*{on}*", f"<!-- /{name} -->"])


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def _spread(values: Sequence[float]) -> str:
    middle = _middle(values)
    return f"±{(max(values) - min(values)) / 2 / middle:.0%}" if middle else "-"


def _throughput(figures: Any) -> list[str]:
    runs = figures["runs"]
    count = len(next(iter(runs.values())))
    lines = [
        f"{figures['events']:,} events of {figures['event_bytes']:.0f} bytes in one partition, lz4; "
        f"{figures['identities']:,} identities in our index beforehand; medians of {count} runs, taken in turn.",
        "",
        "| | events/s by the clock | noise | worker's CPU, µs an event | noise | ClickHouse's CPU, µs an event |"
        " events/s a core of the worker | share of the limit, by the clock | times faust, by CPU | peak MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    # The clock of CPU time ticks a hundred times a second: a tiny run may not be seen by it at all.
    tick = 0.005
    per_event = {
        name: [max(tick, one["worker_cpu"]) / one["events"] * 1e6 for one in measured]
        for name, measured in runs.items()
    }
    rate = {name: [one["events"] / one["seconds"] for one in measured] for name, measured in runs.items()}
    for name, measured in runs.items():
        warehouse = _middle([one["warehouse_cpu"] / one["events"] * 1e6 for one in measured])
        share = f"{_middle(rate[name]) / _middle(rate['limit']):.0%}" if "limit" in rate else "-"
        times = f"{_middle(per_event['faust']) / _middle(per_event[name]):.1f}" if "faust" in rate else "-"
        lines.append(
            f"| {name} | {_middle(rate[name]):,.0f} | {_spread(rate[name])} | {_middle(per_event[name]):.2f} | "
            f"{_spread(per_event[name])} | {warehouse:.2f} | {1e6 / _middle(per_event[name]):,.0f} | {share} | {times} | "
            f"{max(one['peak_megabytes'] for one in measured):.0f} |"
        )
    return lines


def _flat(figures: Any) -> list[str]:
    lines = [
        "| stored events | CPU of the worker, µs an event | CPU of ClickHouse, µs an event | fixed work meanwhile, ms"
        " | both in it, times the first | peak MB of the worker |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    units = [(one["worker_cpu"] + one["warehouse_cpu"]) / one["fixed_work_ms"] for one in figures["stretches"]]
    for number, (one, unit) in enumerate(zip(figures["stretches"], units, strict=True), 1):
        lines.append(
            f"| {number * figures['stretch']:,} | {one['worker_cpu'] / one['events'] * 1e6:.2f} | "
            f"{one['warehouse_cpu'] / one['events'] * 1e6:.2f} | {one['fixed_work_ms']:.0f} | {unit / units[0]:.2f} | "
            f"{one['peak_megabytes']:.0f} |"
        )
    return lines


def _workers(figures: Any) -> list[str]:
    lines = [
        "| workers on 4 partitions | events/s by the clock | CPU of the workers, µs an event | CPU of ClickHouse, µs an event |",
        "|--:|--:|--:|--:|",
    ]
    for count, one in figures["workers"].items():
        lines.append(
            f"| {count} | {one['events'] / one['seconds']:,.0f} | {one['worker_cpu'] / one['events'] * 1e6:.2f} | "
            f"{one['warehouse_cpu'] / one['events'] * 1e6:.2f} |"
        )
    log, row = figures["log_bytes"], figures["row_bytes"]
    size = f"An event takes {log:.0f} bytes in the log (lz4) and {row:.0f} on ClickHouse's disk."
    return [*lines, "", size]


def _latency(figures: Any) -> list[str]:
    return [
        f"{figures['rate']:,} events a second, {figures['events']:,} events, from `produce` to visible.",
        "",
        "| to | p50, ms | p99, ms |",
        "|---|--:|--:|",
        *(
            f"| {name} | {figures[key][0] * 1e3:,.0f} | {figures[key][1] * 1e3:,.0f} |"
            for name, key in (("the hourly rollup", "rollup"), ("the budget's state", "budget"))
        ),
    ]


def _emit(figures: Any) -> list[str]:
    def row(name: str, key: str, digits: int) -> str:
        cells = []
        for runs in figures.values():
            values = [one[key] for one in runs]
            cells += [f"{_middle(values):,.{digits}f}", _spread(values)]
        return f"| {name} | {' | '.join(cells)} |"

    return [
        f"Medians of {len(next(iter(figures.values())))} runs, taken in turn.",
        "",
        f"| | {' | noise | '.join(figures)} | noise |",
        "|---" + "|--:|--:" * len(figures) + "|",
        row("an event, µs of the caller by the clock", "emit_us", 2),
        row("CPU of the whole process an event, µs", "cpu_us", 2),
        row("events a second, each confirmed by the broker", "rate", 0),
    ]


def _adding(figures: Any) -> list[str]:
    return adding_up.lines(figures["beside"], figures["at_once"])


_TABLES = {
    "throughput": _throughput,
    "flat": _flat,
    "workers": _workers,
    "latency": _latency,
    "emit": _emit,
    "adding": _adding,
}
