"""The warehouse's schema, built from nothing; blocks that are repeated count once, in the table and in its rollups."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_sql import connect, migrate, query, query_names
from taximeter_sql.migrations import migration_files
from taximeter_streams.meter.batch import Arrivals, Place
from taximeter_streams.meter.column_batch import ColumnFolding
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.dedupe import MemoryIndex, log_mark
from taximeter_streams.meter.kernel import load_kernel
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.warehouse import TOKENS_REMEMBERED, StoredBatch, Warehouse
from tests.benchmarks import traffic
from tests.face_process import FaceProcess
from tests.metered_rows import DAY, METERED_PICO, folded, rated

TABLES = {
    "schema_migrations": "MergeTree",
    "usage_log": "MergeTree",
    "usage_hourly": "SummingMergeTree",
    "usage_daily": "SummingMergeTree",
    "usage_counts_hourly": "SummingMergeTree",
    "rollup_repairs": "MergeTree",
    "rejected_replays": "MergeTree",
    "usage_hourly_feed": "MaterializedView",
    "usage_daily_feed": "MaterializedView",
    "usage_counts_hourly_feed": "MaterializedView",
    "usage_events": "View",
    "usage_unrated": "View",
    "usage_duplicates": "View",
    "usage_rejected": "View",
}
NOW = datetime.now(UTC)


@pytest.fixture
def client(clickhouse: FaceProcess, unique_database: str) -> Iterator[Client]:
    with connect(clickhouse.url(unique_database)) as client:
        yield client


@pytest.fixture
def migrated(client: Client) -> Client:
    migrate(client)
    return client


def number(client: Client, statement: str) -> int:
    return int(client.query(statement).result_rows[0][0])


def listing(client: Client) -> list[tuple[object, ...]]:
    columns = "SELECT table, name, type FROM system.columns WHERE database = currentDatabase() ORDER BY table, position"
    return [tuple(row) for row in client.query(columns).result_rows]


def test_the_schema_is_built_from_nothing_and_a_second_run_changes_nothing(client: Client) -> None:
    assert migrate(client) == [name for name, _text in migration_files()]
    tables = client.query("SELECT name, engine FROM system.tables WHERE database = currentDatabase()").result_rows
    assert {str(name): str(engine) for name, engine in tables if not str(name).startswith(".inner")} == TABLES
    before = listing(client)
    assert migrate(client) == []
    assert listing(client) == before
    assert {name for table, name, _type in before if table == "usage_events"} < {
        name for table, name, _type in before if table == "usage_log"
    }


def test_a_run_that_was_cut_off_is_repeated(client: Client) -> None:
    migrate(client)
    client.command("TRUNCATE TABLE schema_migrations")
    client.command("DROP VIEW usage_daily_feed")
    assert migrate(client) == [name for name, _text in migration_files()]
    assert number(client, "SELECT count() FROM system.tables WHERE database = currentDatabase()") == len(TABLES)


def test_connecting_creates_the_database(clickhouse: FaceProcess, unique_database: str) -> None:
    with connect(clickhouse.url(f"{unique_database}_new")) as client:
        assert client.query("SELECT currentDatabase()").result_rows == [(f"{unique_database}_new",)]
        client.command(f"DROP DATABASE {unique_database}_new")


def test_every_query_says_what_it_answers() -> None:
    for name in query_names():
        assert query(name).startswith("-- "), name
    with pytest.raises(KeyError, match="no query is called 'nothing'"):
        query("nothing")


def test_a_repeated_block_counts_once_also_in_the_rollups(migrated: Client) -> None:
    warehouse = Warehouse(migrated, "log")
    columns = build_columns(folded([rated(offset) for offset in range(10)]), "log", 3)
    for _attempt in range(3):
        warehouse.insert(columns)
    assert number(migrated, "SELECT count() FROM usage_log") == 10
    for rollup in ("usage_hourly", "usage_daily"):
        assert number(migrated, f"SELECT sum(metered_pico) FROM {rollup}") == 10 * METERED_PICO
    assert number(migrated, "SELECT sum(events) FROM usage_counts_hourly") == 10


def test_a_rollup_that_a_crash_cut_off_is_repaired_by_the_stored_batch(migrated: Client) -> None:
    warehouse = Warehouse(migrated, "log")
    columns = build_columns(folded([rated(offset) for offset in range(10)]), "log", 3)
    migrated.command("DROP VIEW usage_hourly_feed")
    warehouse.insert(columns)  # what a crash between the table and a rollup leaves
    migrated.command("TRUNCATE TABLE schema_migrations")
    migrate(migrated)
    stored = warehouse.last_batch(3)
    assert stored is not None and (stored.first, stored.last) == (0, 9)
    warehouse.insert(warehouse.batch_columns(3, stored.first))
    assert number(migrated, "SELECT count() FROM usage_log") == 10
    for rollup in ("usage_hourly", "usage_daily"):
        assert number(migrated, f"SELECT sum(events) FROM {rollup}") == 10, rollup
    everything = {"tenant": "", "since": "1970-01-01 00:00:00", "until": "2100-01-01 00:00:00"}
    assert migrated.query(query("reconcile_hourly"), parameters=everything).result_rows == []


def test_a_stored_batch_reads_back_as_it_was_inserted(migrated: Client) -> None:
    warehouse = Warehouse(migrated, "log")
    columns = build_columns(
        folded([rated(offset, time=DAY + timedelta(minutes=offset)) for offset in range(3)]), "log", 3
    )
    warehouse.insert(columns)
    stored = dict(warehouse.batch_columns(3, 0))
    for name, values in columns:
        expected = list(values)
        if name == "arrived_at":
            expected = [datetime.fromtimestamp(ms / 1000, UTC) for ms in values]
        assert list(stored[name]) == expected, name


def test_the_identities_of_a_partition_rebuild_an_index(migrated: Client) -> None:
    for log in ("first", "second"):
        rows = [rated(offset, event_id=f"{log}{offset}", arrived_at=NOW) for offset in range(5)]
        Warehouse(migrated, log).insert(build_columns(folded(rows), log, 3))
    warehouse = Warehouse(migrated, "second")
    everything = [entry for chunk in warehouse.identities(3, None, NOW) for entry in chunk]
    assert sorted((counted.log, counted.offset) for _identity, counted in everything) == sorted(
        (log_mark(log, 3), offset) for log in ("first", "second") for offset in range(5)
    )
    newer = [entry for chunk in warehouse.identities(3, 2, NOW) for entry in chunk]
    assert [(counted.log, counted.offset) for _identity, counted in newer] == [
        (log_mark("second", 3), 3),
        (log_mark("second", 3), 4),
    ]
    assert list(warehouse.identities(4, None, NOW)) == []
    assert list(warehouse.identities(3, None, NOW + timedelta(days=40))) == []


def test_a_batch_is_repeated_only_while_its_token_is_surely_known(migrated: Client) -> None:
    warehouse = Warehouse(migrated, "log")
    warehouse.insert(build_columns(folded([rated(0, arrived_at=NOW)]), "log", 3))
    stored = warehouse.last_batch(3)
    assert stored is not None
    assert warehouse.remembers(stored, NOW)
    assert not warehouse.remembers(stored, NOW + timedelta(days=2))
    assert not warehouse.remembers(StoredBatch(stored.first, stored.last, 0), NOW), "inserted before times were kept"
    # Many batches of other partitions came after it.
    migrated.command(
        "INSERT INTO usage_log (log_id, partition, batch_first, arrived_at, inserted_at, disposition) "
        f"SELECT 'log', 4, number, now64(3), now64(3), 'rejected' FROM numbers({TOKENS_REMEMBERED // 2})"
    )
    assert not warehouse.remembers(stored, NOW)


def test_a_large_batch_sent_by_columns_and_again_by_rows_counts_once(migrated: Client, tmp_path: Path) -> None:
    """A recovery sends again, through the driver, what the kernel's block had stored; the driver likes to cut large ones."""
    count = 40_000
    snapshot = ControlSnapshot()
    for record in traffic.declarations(NOW):
        snapshot = snapshot.apply(record)
    payloads = [payload for _, payload in traffic.events(count, 1, NOW)]
    arrivals = Arrivals(range(count), [int(NOW.timestamp() * 1000)] * count, payloads)
    folding = ColumnFolding(load_kernel(tmp_path))
    warehouse = Warehouse(migrated, "log")
    folding.fold(arrivals, Place("log", 0), MemoryIndex(), Pricing(snapshot)).insert(warehouse)
    warehouse.insert(warehouse.batch_columns(0, 0))
    assert number(migrated, "SELECT count() FROM usage_log") == count
    assert number(migrated, "SELECT sum(events) FROM usage_hourly") == count
