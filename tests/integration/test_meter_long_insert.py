"""A batch that took longer than a session allows: the worker gives it up, joins its group anew, and goes on with smaller ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.topics import USAGE_EVENTS
from tests.face_process import FaceProcess
from tests.faults.clickhouse_proxy import ClickHouseProxy, Place
from tests.faults.processes import SESSION_TIMEOUT_MS, make_worker
from tests.waiting import await_true

BATCH_EVENTS_MAX = 4_000


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[str]:
    """A log of one partition in which three full batches wait."""
    with EmbeddedBroker(tmp_path / "broker", free_port()) as broker:
        ensure_topics(broker.bootstrap_servers, 1, 1)
        producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
        for _number in range(3 * BATCH_EVENTS_MAX):
            producer.produce(USAGE_EVENTS.name, b"not json", key="k")
        assert producer.flush(60) == 0
        yield broker.bootstrap_servers


@pytest.fixture
def proxy(clickhouse: FaceProcess) -> Iterator[ClickHouseProxy]:
    proxy = ClickHouseProxy(clickhouse.port)
    proxy.start()
    yield proxy
    proxy.stop()


def test_one_long_insert_halves_the_batches_once_and_nobody_without_partitions_is_ready(
    servers: str, proxy: ClickHouseProxy, clickhouse: FaceProcess, unique_database: str, tmp_path: Path
) -> None:
    environment = {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": servers,
        "TAXIMETER_KAFKA_PARTITIONS": "1",
        "TAXIMETER_CLICKHOUSE_URL": proxy.url(unique_database),
        "TAXIMETER_METER_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
        "TAXIMETER_METER_BATCH_EVENTS_MAX": str(BATCH_EVENTS_MAX),
        "TAXIMETER_METER_LINGER_MS": "10000",  # each batch is full
    }
    meter = make_worker("meter", "taximeter_streams.meter", "TAXIMETER_METER_PORT", tmp_path, environment, 0)
    insert = proxy.trap(Place.BEFORE, goes_on=True)
    meter.start()
    try:
        insert.await_caught()
        # It has fetched the next batch as well, and has nothing left to ask Kafka for until the insert ends.
        silent_seconds_max = SESSION_TIMEOUT_MS * 0.8 / 1000
        await_true(
            lambda: meter.ask("/readyz")[1]["seconds_since_poll"] > silent_seconds_max, "it is silent for too long"
        )
        insert.release()
        without_partitions: list[int] = []

        def rejoined() -> bool:
            status, state = meter.ask("/readyz")
            if not state["partitions"]:
                without_partitions.append(status)
            return bool(state["partitions"] and without_partitions)

        await_true(rejoined, lambda: f"it joins anew\n{meter.child.log_tail(20)}")
        assert set(without_partitions) == {503}
        meter.await_ready()
        with clickhouse.client(unique_database) as client:

            def batches() -> list[tuple[int, int]]:
                found = client.query("SELECT DISTINCT batch_first, batch_last FROM usage_log ORDER BY batch_first")
                return [(int(first), int(last)) for first, last in found.result_rows]

            await_true(lambda: len(batches()) >= 2, lambda: f"it goes on\n{meter.child.log_tail(20)}")
            (first, last), (following, end) = batches()[:2]
    finally:
        meter.child.stop()
    assert (first, last, following) == (0, BATCH_EVENTS_MAX - 1, BATCH_EVENTS_MAX)
    assert BATCH_EVENTS_MAX // 2 <= end - following + 1 < BATCH_EVENTS_MAX
