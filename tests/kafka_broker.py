"""A real Apache Kafka for the slower suite: one node in KRaft mode, from jars that Maven fetches from Maven Central.

It keeps its log in a directory, so it can be killed and started again on the same port with everything it held.
"""

import hashlib
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from taximeter.embedded.broker import BrokerError, await_broker
from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.tether import tethered_command
from tests.one_at_a_time import one_at_a_time
from tests.waiting import freeze

_ROOT = Path(__file__).parents[1]
_POM = _ROOT / ".ci" / "kafka" / "pom.xml"
_JARS = _ROOT / ".cache" / "kafka"
_FETCH_SECONDS_MAX = 300
_FORMAT_SECONDS_MAX = 120
_READY_SECONDS_MAX = 120.0
_CLUSTER_ID = "dGF4aW1ldGVyLXRlc3RzMA"
# A small heap and cheap compilation: the broker shares two cores with what it serves.
_JAVA = ("java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN")

_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dir}
# One node holds every replica.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
# A group's first member need not wait for others.
group.initial.rebalance.delay.ms=0
# A member that was killed need not be missed for long.
group.min.session.timeout.ms=1000
# After a kill the node may register again soon.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=16777216
"""


class ApacheKafka:
    """One Kafka node whose log lies in `data_dir`. Start it from a thread that outlives it."""

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        self._data_dir = data_dir.resolve()
        self._port = port or free_port()
        self._child: ChildProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect, as host:port; the same over all restarts."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Its process id; 0 before the start."""
        return (self._child.pid or 0) if self._child else 0

    def start(self) -> None:
        """Start it, on what it held before if anything, and wait until it answers. Raises BrokerError."""
        classpath = str(fetch_jars() / "*")
        self._data_dir.mkdir(parents=True, exist_ok=True)
        log_dir = self._data_dir / "log"
        properties = self._data_dir / "server.properties"
        if not properties.exists():
            text = _PROPERTIES.format(port=self._port, controller_port=free_port(), log_dir=log_dir)
            properties.write_text(text)
        tool = [*_JAVA, "-cp", classpath, "kafka.tools.StorageTool"]
        format_log = [*tool, "format", "-t", _CLUSTER_ID, "-c", str(properties), "--ignore-formatted"]
        _run(format_log, _FORMAT_SECONDS_MAX)
        server = [*_JAVA, "-cp", classpath, "kafka.Kafka", str(properties)]
        self._child = ChildProcess("Apache Kafka", tethered_command(server), {}, self._data_dir / "server.log")
        self._child.start()
        try:
            await_broker(self.bootstrap_servers, self._child, _READY_SECONDS_MAX)
        except BrokerError:
            self._child.stop()
            raise

    def stop(self) -> None:
        """Stop it in order. Stopping twice does nothing."""
        if self._child is not None:
            self._child.stop()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)
            self._child.wait()

    def freeze(self) -> None:
        """Connections stay open, and nothing answers."""
        if self._child is not None and self._child.pid is not None:
            freeze(self._child.pid)

    def thaw(self) -> None:
        """SIGCONT."""
        if self._child is not None:
            self._child.signal(signal.SIGCONT)


def fetch_jars() -> Path:
    """The folder with Kafka's jars, fetched when they are not there. Raises BrokerError when Maven cannot."""
    version = hashlib.sha256(_POM.read_bytes()).hexdigest()[:16]
    folder = _JARS / version
    complete = folder / "complete"
    with one_at_a_time(_JARS):
        if not complete.exists():
            if shutil.which("mvn") is None or shutil.which("java") is None:
                raise BrokerError("Apache Kafka needs java and mvn on the PATH")
            goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
            _run(["mvn", "-q", "-B", "-f", str(_POM), *goal], _FETCH_SECONDS_MAX)
            complete.touch()
    return folder


def _run(command: list[str], seconds_max: int) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds_max, check=False)
    if done.returncode != 0:
        raise BrokerError(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
