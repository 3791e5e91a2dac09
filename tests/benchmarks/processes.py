"""Processes under measurement: each held to one core, and asked for its CPU time and its memory. Linux only, from /proc."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")

PREFERENCE = 0
"""By how much the priority of whatever is measured is raised (0 to 19)."""


def tree(pid: int) -> list[int]:
    """The process and all that descend from it. Raises ValueError for 0 and 1, from which everything descends."""
    if pid < 2:
        raise ValueError(f"process {pid} is nobody's to measure")
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(parents.get(one, []))
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of the process and its children so far, all threads, user and system; also of children that have ended."""
    return sum(sum(map(int, fields[11:15])) / _TICKS for one in tree(pid) if (fields := _fields(one)))


def peak_megabytes(pid: int) -> float:
    """The most memory that the process has held at once (VmHWM)."""
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def cores() -> list[int]:
    """The cores that may be used."""
    return sorted(os.sched_getaffinity(0))


def hold_to(pid: int, allowed: Sequence[int]) -> None:
    """Hold every thread of the process and of its children to those cores; threads to come inherit it."""
    for one in tree(pid):
        if PREFERENCE:
            prefer(one, PREFERENCE)
        tasks = Path("/proc") / str(one) / "task"
        with contextlib.suppress(OSError):  # it, or one of its threads, may end meanwhile
            for task in tasks.iterdir():
                os.sched_setaffinity(int(task.name), allowed)


def prefer(pid: int, nice: int) -> None:
    """Raise the priority of the process and of its session, where that is allowed: beside other work, times mean little."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, -nice)
        (Path("/proc") / str(pid) / "autogroup").write_text(str(-nice))


def _fields(pid: int) -> list[str]:
    """/proc/PID/stat behind the command's name: state, parent, ..., utime (11), stime (12), and those of children."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []
