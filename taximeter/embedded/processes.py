"""Child processes of the embedded stack: started with a log file each, ended with their parent, restarted when they crash."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STOP_SECONDS_MAX = 20.0
"""A child that has not ended this long after SIGTERM is killed."""


@dataclass
class ChildProcess:
    """One child: its command, what it reads from the environment, and where its output goes."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log_path: Path
    restarts: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it in a process group of its own, so that Ctrl-C in the terminal reaches the launcher alone."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        """The process id, or None before the start."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process is there (a stopped one counts as there)."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll() if self._process else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, SIGKILL and SIGSTOP included: the fault tests do."""
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def wait(self, timeout_seconds: float = STOP_SECONDS_MAX) -> None:
        """Wait until it has ended. Raises subprocess.TimeoutExpired."""
        if self._process is not None:
            self._process.wait(timeout_seconds)

    def stop(self) -> None:
        """End it: SIGTERM first, SIGKILL after STOP_SECONDS_MAX."""
        if self._process is None or not self.running:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log, for an error message."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
