"""A ClickHouse face as a process of its own, for tests: started, stopped, killed and started again on the same data."""

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.stack import answers
from taximeter.embedded.tether import tethered_command
from tests.waiting import freeze

_READY_SECONDS_MAX = 60.0


class FaceProcess:
    """ClickHouse on a directory, reachable by HTTP on 127.0.0.1."""

    host = "127.0.0.1"

    def __init__(self, data_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        module = [sys.executable, "-m", "taximeter.embedded.clickhouse_face"]
        command = [*module, "--path", str(data_dir / "clickhouse"), "--host", self.host, "--port", str(self.port)]
        self._child = ChildProcess("clickhouse", tethered_command(command), environment or {}, data_dir / "face.log")

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with the log's tail when it does not."""
        self._child.start()
        deadline = time.monotonic() + _READY_SECONDS_MAX
        while not answers(f"http://{self.host}:{self.port}/ping"):
            if not self._child.running or time.monotonic() > deadline:
                raise RuntimeError(f"the ClickHouse face did not start:\n{self._child.log_tail()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it in order."""
        self._child.stop()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._child.signal(signal.SIGKILL)
        self._child.wait()

    def freeze(self) -> None:
        """Connections stay open, and nothing answers."""
        assert self._child.pid is not None
        freeze(self._child.pid)

    def thaw(self) -> None:
        """SIGCONT."""
        self._child.signal(signal.SIGCONT)

    @property
    def pid(self) -> int | None:
        """Its process id, or None before the start."""
        return self._child.pid

    def log(self) -> str:
        """The end of what it wrote to its log."""
        return self._child.log_tail(100)

    def url(self, database: str = "default") -> str:
        """The address, as `taximeter_sql.connect` takes it."""
        return f"http://default:@{self.host}:{self.port}/{database}"

    def client(self, database: str = "default") -> Client:
        """A new client; the caller closes it."""
        return clickhouse_connect.get_client(
            host=self.host, port=self.port, database=database, autogenerate_session_id=False
        )
