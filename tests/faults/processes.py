"""Meter and budgets workers as real processes, and what can be done to them."""

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from tests.waiting import await_true

SECONDS_MAX = 120.0
SESSION_TIMEOUT_MS = 3_000
"""Short, because a killed worker's partitions are free only when its session has ended."""


@dataclass
class Worker:
    """One service process with a state folder of its own."""

    child: ChildProcess
    port: int
    state_dir: Path

    def start(self) -> None:
        self.child.start()

    def kill(self) -> None:
        """kill -9."""
        self.child.signal(SIGKILL)
        self.child.wait()

    def pause(self) -> None:
        """SIGSTOP."""
        self.child.signal(SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.child.signal(SIGCONT)

    def lose_index(self) -> None:
        """Delete what lies beside the worker. It must not be running."""
        shutil.rmtree(self.state_dir / "meter", ignore_errors=True)

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a page; status 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except (OSError, ValueError):
            return 0, {}

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def is_ready(self) -> bool:
        """Whether /readyz says 200."""
        assert self.child.running, self.child.log_tail(40)
        return self.ask("/readyz")[0] == 200

    def await_ready(self) -> None:
        """Wait for it."""
        await_true(self.is_ready, lambda: f"{self.child.name} is ready\n{self.child.log_tail(30)}")

    def rss_kibibytes(self) -> int:
        """Resident memory now."""
        return self._status("VmRSS")

    def rss_peak_kibibytes(self) -> int:
        """The most it ever was."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


def make_worker(
    name: str, module: str, port_variable: str, folder: Path, environment: Mapping[str, str], number: int
) -> Worker:
    """A worker that has not been started."""
    port = free_port()
    state_dir = folder / f"{name}-{number}"
    own = {port_variable: str(port), "TAXIMETER_STATE_DIR": str(state_dir)}
    command = [sys.executable, "-m", module]
    child = ChildProcess(name, command, {**environment, **own}, folder / f"{name}-{number}.log")
    return Worker(child, port, state_dir)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))
