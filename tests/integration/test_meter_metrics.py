"""The meter's metrics, health and logs tell the truth: while it works, while it cannot, and after."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.topics import USAGE_EVENTS
from tests.face_process import FaceProcess
from tests.faults.processes import Worker, make_worker
from tests.usage_events import usage
from tests.waiting import await_true


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[str]:
    """An empty log."""
    with EmbeddedBroker(tmp_path / "broker", free_port()) as broker:
        ensure_topics(broker.bootstrap_servers, 1, 1)
        yield broker.bootstrap_servers


@pytest.fixture
def face(tmp_path: Path) -> Iterator[FaceProcess]:
    """A warehouse that may be killed."""
    face = FaceProcess(tmp_path)
    face.start()
    yield face
    face.stop()


@pytest.fixture
def meter(servers: str, face: FaceProcess, tmp_path: Path) -> Iterator[Worker]:
    environment = {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": servers,
        "TAXIMETER_KAFKA_PARTITIONS": "1",
        "TAXIMETER_CLICKHOUSE_URL": face.url("metrics"),
        "TAXIMETER_METER_LINGER_MS": "20",
    }
    worker = make_worker("meter", "taximeter_streams.meter", "TAXIMETER_METER_PORT", tmp_path, environment, 0)
    worker.start()
    yield worker
    worker.child.stop()


def send(servers: str, *payloads: bytes) -> None:
    producer = Producer({"bootstrap.servers": servers})
    for payload in payloads:
        producer.produce(USAGE_EVENTS.name, payload, key="k")
    assert producer.flush(60) == 0


def test_lag_health_and_logs_follow_what_happens(
    servers: str, face: FaceProcess, meter: Worker, tmp_path: Path
) -> None:
    stranger = [json.dumps(usage(f"e{number}")).encode() for number in range(4)]  # of a tenant that nobody declared
    meter.await_ready()
    send(servers, b"not json", *stranger)
    await_true(lambda: meter.metric("taximeter_meter_messages_total") == 5, lambda: meter.child.log_tail(20))
    meter.await_ready()
    assert meter.metric("taximeter_meter_lag_events") == meter.metric("taximeter_meter_lag_seconds") == 0
    assert meter.metric("taximeter_meter_position") == 5
    assert meter.metric("taximeter_meter_insert_seconds_count") >= 1
    assert meter.metric("taximeter_meter_batch_messages_sum") == 5
    assert meter.metric("taximeter_meter_index_bytes") > 0

    face.kill()
    send(servers, *stranger[:3])
    await_true(lambda: meter.metric("taximeter_meter_lag_events") >= 1, lambda: "the backlog shows")
    await_true(lambda: meter.metric("taximeter_meter_lag_seconds") > 0, lambda: "its age shows")
    await_true(lambda: meter.ask("/readyz")[0] == 503, lambda: "it is not ready")
    assert "insert" in str(meter.ask("/readyz")[1]["trouble"])
    assert meter.ask("/healthz")[0] == 200, "it lives, and waits"
    assert meter.metric("taximeter_meter_retries_total") >= 1

    face.start()
    await_true(lambda: meter.metric("taximeter_meter_messages_total") == 8, lambda: meter.child.log_tail(20))
    await_true(lambda: meter.metric("taximeter_meter_lag_events") == 0, lambda: "the backlog is gone")
    meter.await_ready()
    meter.child.stop()
    batches = [
        line
        for line in map(json.loads, (tmp_path / "meter-0.log").read_text().splitlines())
        if line["message"] == "batch"
    ]
    assert batches[0]["partition"] == batches[0]["first"] == 0 and batches[-1]["last"] == 7
    assert sum(line.get("rejected/unknown_tenant", 0) for line in batches) == 7
    assert sum(line.get("rejected/malformed_json", 0) for line in batches) == 1
