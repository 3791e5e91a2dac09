"""What a worker waits for before its loop begins, since ClickHouse and Kafka may be away then. /readyz names it."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaException

from taximeter_producers.control import ControlFollower
from taximeter_producers.errors import ControlError, TopicsError
from taximeter_producers.health import Ready
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.settings import LogSettings
from taximeter_sql import connect, migrate

CONTROL_SECONDS_MAX = 10.0
WAIT_SECONDS_MAX = 5.0
_AWAY = (ClickHouseError, OSError, KafkaException, TopicsError, ControlError)
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Starting:
    """Answers for a worker that is starting, and for the worker itself once `hand_over` has named it."""

    def __init__(self) -> None:
        self._state: dict[str, object] = {"step": "starting"}
        self._alive: Ready = lambda: (True, self._state)
        self._ready: Ready = lambda: (False, self._state)

    def alive(self) -> tuple[bool, dict[str, object]]:
        """For /healthz."""
        return self._alive()

    def ready(self) -> tuple[bool, dict[str, object]]:
        """For /readyz."""
        return self._ready()

    def hand_over(self, alive: Ready, ready: Ready) -> None:
        """From now on the worker answers for itself."""
        self._alive, self._ready = alive, ready

    def warehouse(self, url: str) -> Client:
        """A client of the migrated warehouse."""
        return self._until("waiting for ClickHouse", lambda: _migrated(url))

    def topics(self, settings: LogSettings) -> None:
        """Create the topics. Raises TopicsError when they have another shape than the settings say."""
        servers, partitions, replication = (
            settings.kafka_bootstrap_servers,
            settings.kafka_partitions,
            settings.kafka_replication,
        )
        self._until("waiting for Kafka", lambda: ensure_topics(servers, partitions, replication))

    def control(self, servers: str) -> ControlFollower:
        """A follower that has read the control records to their end."""
        return self._until("waiting for the control records", lambda: _following(servers))

    def _until(self, step: str, attempt: Callable[[], T]) -> T:
        wait = 0.2
        self._state = {"step": step}
        while True:
            try:
                return attempt()
            except _AWAY as error:
                if isinstance(error, TopicsError) and error.__cause__ is None:
                    raise
                self._state = {"step": step, "trouble": str(error)}
                _log.warning("%s, trying again in %.1f s: %s", step, wait, error)
            time.sleep(wait)
            wait = min(wait * 2, WAIT_SECONDS_MAX)


def _migrated(url: str) -> Client:
    client = connect(url)
    try:
        migrate(client)
    except BaseException:
        client.close()
        raise
    return client


def _following(servers: str) -> ControlFollower:
    control = ControlFollower(servers)
    control.start(CONTROL_SECONDS_MAX)
    return control
