"""What the fault scenarios share: one Apache Kafka, one warehouse, and a yard for each scenario. The seed is fixed here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from taximeter_producers.topics import ensure_topics
from tests.face_process import FaceProcess
from tests.faults.yard import PARTITIONS, Yard, empty_log, opened
from tests.kafka_broker import ApacheKafka

SEED = 20_261_124


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is a fault scenario."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A broker that keeps its log, so that it can be killed and started again."""
    with ApacheKafka(tmp_path_factory.mktemp("faults-kafka")) as kafka:
        ensure_topics(kafka.bootstrap_servers, PARTITIONS, 1)
        yield kafka


@pytest.fixture(scope="session")
def face(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaceProcess]:
    """ClickHouse, which may be killed and started again."""
    face = FaceProcess(tmp_path_factory.mktemp("faults-clickhouse"))
    face.start()
    yield face
    face.stop()


@pytest.fixture
def yard(kafka: ApacheKafka, face: FaceProcess, tmp_path: Path) -> Iterator[Yard]:
    """A yard on Apache Kafka."""
    with opened(kafka.bootstrap_servers, face, tmp_path, SEED) as yard:
        yield yard
    empty_log(kafka.bootstrap_servers)
