"""Starts a producing process, reads its journal, and makes the same events again to compare with."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taximeter.embedded.tether import tethered_command
from tests.faults.ledger import Usage
from tests.faults.load import Events
from tests.faults.yard import Yard
from tests.waiting import await_true


@dataclass
class Producing:
    """A load process, its journal so far, and the events that it makes."""

    process: subprocess.Popen[bytes]
    log_path: Path
    usages: list[Usage]
    journal: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, name="journal", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):  # a kill may cut off the last
                self.journal.append(json.loads(line))

    def numbers(self, event: str) -> set[int]:
        """The events' numbers of which the journal says so."""
        return {line["number"] for line in list(self.journal) if line["event"] == event}

    def await_line(self, event: str) -> None:
        """Wait until the journal says so."""
        await_true(
            lambda: any(line["event"] == event for line in list(self.journal)),
            lambda: f"{event!r} in {self.journal[-3:]}\n{self._log()}",
        )

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.close()

    def end(self) -> None:
        """Ask it to close its producer and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(120) == 0, self._log()
        self.close()

    def close(self) -> None:
        """Let go of it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _log(self) -> str:
        return self.log_path.read_text()[-2000:]

    def acknowledged(self) -> list[Usage]:
        """What the journal calls safe."""
        return [self.usages[number] for number in sorted(self.numbers("safe"))]


@contextmanager
def producing(yard: Yard, name: str, count: int, spool_bytes_max: int, seed: int = 7) -> Iterator[Producing]:
    """A producer in a process of its own, in the yard's folder of spools."""
    events = Events(yard.events.tenants, yard.events.now, random.Random(seed))
    usages = [events.event() for _ in range(count)]
    command = [
        sys.executable, "-m", "tests.faults.load_process", "--servers", yard.servers, "--spool", str(yard.folder / "spools"),
        "--spool-bytes-max", str(spool_bytes_max), "--name", name, "--tenants", ",".join(yard.events.tenants),
        "--now", yard.events.now.isoformat(), "--seed", str(seed), "--count", str(count),
    ]  # fmt: skip
    log_path = yard.folder / f"{name}-{seed}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            tethered_command(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=Path(__file__).parents[2],
        )
    process_of = Producing(process, log_path, usages)
    try:
        yield process_of
    finally:
        process_of.close()
