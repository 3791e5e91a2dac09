"""What every test may ask for: a broker, a warehouse, and names of its own on both.

`--broker=apache` (or TAXIMETER_TEST_BROKER=apache) runs the same tests on Apache Kafka, and those marked `kafka` too;
`--book=postgres` those that use the book of record, on PostgreSQL.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from tests.face_process import FaceProcess
from tests.kafka_broker import ApacheKafka
from tests.postgres_server import Postgres

# No assertion depends on time, Hypothesis's own included: a slow machine is no finding. The same examples are tried each time, so
# that a change is judged by what it changed; TAXIMETER_HYPOTHESIS=random looks for new ones, =thorough for 1,000 of them.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("thorough", settings.get_profile("random"), max_examples=1000)
settings.register_profile("same", settings.get_profile("random"), derandomize=True)
settings.load_profile(os.environ.get("TAXIMETER_HYPOTHESIS", "same"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --broker and --book."""
    parser.addoption(
        "--broker",
        choices=("embedded", "apache"),
        default=os.environ.get("TAXIMETER_TEST_BROKER", "embedded"),
        help="the broker to test on (default: TAXIMETER_TEST_BROKER, or embedded)",
    )
    parser.addoption(
        "--book", choices=("sqlite", "postgres"), default="sqlite", help="the database of the book of record"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `kafka` on the embedded broker, and on Apache Kafka those that use no broker; on PostgreSQL
    those that use no book.

    They are listed as deselected.
    """
    if config.getoption("--book") == "postgres":
        left_out = [item for item in items if "book_url" not in getattr(item, "fixturenames", ())]
    elif config.getoption("--broker") == "apache":
        left_out = [item for item in items if not _uses_a_broker(item)]
    else:
        left_out = [item for item in items if item.get_closest_marker("kafka")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _uses_a_broker(item: pytest.Item) -> bool:
    if any(item.get_closest_marker(name) for name in ("kafka", "stack", "faults")):
        return True
    return "bootstrap_servers" in getattr(item, "fixturenames", ()) or "log_servers" in getattr(
        item, "fixturenames", ()
    )


@pytest.fixture(scope="session")
def bootstrap_servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The broker that the whole run shares. Give topics and groups names of their own with `topic_suffix`."""
    data_dir = tmp_path_factory.mktemp("broker")
    if request.config.getoption("--broker") == "apache":
        with ApacheKafka(data_dir) as kafka:
            yield kafka.bootstrap_servers
    else:
        with EmbeddedBroker(data_dir, free_port()) as broker:
            yield broker.bootstrap_servers


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaceProcess]:
    """ClickHouse behind its HTTP interface, shared by the whole run. Work in `unique_database`."""
    face = FaceProcess(tmp_path_factory.mktemp("clickhouse"))
    face.start()
    yield face
    face.stop()


@pytest.fixture
def unique_database(clickhouse: FaceProcess) -> Iterator[str]:
    """The name of an empty database that only this test uses; dropped after it."""
    name = f"test_{secrets.token_hex(4)}"
    with clickhouse.client() as client:
        client.command(f"CREATE DATABASE {name}")
        yield name
        client.command(f"DROP DATABASE {name}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL, shared by the whole run."""
    with Postgres() as server:
        yield server


@pytest.fixture
def book_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a book of record may be opened that only this test uses: SQLite, or PostgreSQL by --book."""
    if request.config.getoption("--book") == "sqlite":
        return f"sqlite:///{tmp_path / 'book.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def topic_suffix() -> str:
    """Something to put behind the names of topics and consumer groups, so that tests do not meet."""
    return f"-{secrets.token_hex(4)}"
