"""Repairing rollups: exactly what is missing, once, whatever else is going on."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from clickhouse_connect.driver.client import Client

from taximeter.reconcile.repair import Repairs, repair
from taximeter.reconcile.rollups import Drift, check_rollups
from taximeter.reconcile.scope import Pace, Scope
from taximeter_sql import connect, migrate
from taximeter_sql.migrations import migration_files
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.warehouse import Warehouse
from tests.face_process import FaceProcess
from tests.metered_rows import DAY, folded, rated

LOG = "log"
ALL = Scope()
BRISK = Pace(looks=2, pause_seconds=0.01, settle_seconds=0.05)
FEEDS = ("usage_hourly_feed", "usage_daily_feed", "usage_counts_hourly_feed")


def quiet(_line: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def url(clickhouse: FaceProcess, unique_database: str) -> str:
    return clickhouse.url(unique_database)


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with connect(url) as connected:
        migrate(connected)
        yield connected


def insert(client: Client, *offsets: int, tenant: str = "acme", partition: int = 0) -> None:
    rows = [rated(offset, tenant=tenant, time=DAY + timedelta(minutes=7 * offset)) for offset in offsets]
    Warehouse(client, LOG).insert(build_columns(folded(rows), LOG, partition))


def drifts(client: Client) -> list[Drift]:
    return check_rollups(client, ALL, BRISK, quiet)[1]


def mend(client: Client, pace: Pace = BRISK) -> Repairs:
    return repair(client, drifts(client), ALL, pace, quiet)


def restore_feeds(client: Client) -> None:
    client.command("TRUNCATE TABLE schema_migrations")
    migrate(client)


def empty(client: Client, table: str) -> None:
    """Lose every row. A TRUNCATE would forget the tokens too, and the meter's last batch alone would mend it."""
    client.command(f"ALTER TABLE {table} DELETE WHERE 1 SETTINGS mutations_sync = 2")


def spoil(client: Client) -> None:
    """Rows that went past the rollups, a rollup that has too much, one that lost a tenant, and usage in a wrong place."""
    insert(client, *range(20))
    insert(client, *range(20, 23), tenant="globex")
    for feed in FEEDS:
        client.command(f"DROP VIEW {feed}")
    insert(client, *range(23, 40))
    restore_feeds(client)
    insert(client, *range(40, 45))
    client.command("INSERT INTO usage_hourly (tenant, hour, feature, currency, events, metered_pico) VALUES "
                   "('acme', '2026-11-24 03:00:00', 'ghost', 'USD', 3, 12345)")  # fmt: skip
    client.command("ALTER TABLE usage_daily DELETE WHERE tenant = 'globex' SETTINGS mutations_sync = 2")
    client.command("INSERT INTO usage_counts_hourly VALUES ('2026-11-23 00:00:00', '', 'rejected', 'conflict', 4)")


def sums(client: Client, table: str) -> tuple[int, ...]:
    return tuple(client.query(f"SELECT sum(events), sum(metered_pico), sum(saving_pico) FROM {table}").result_rows[0])


def test_what_drifted_is_rebuilt_from_the_raw_rows_and_a_second_run_adds_nothing(client: Client) -> None:
    spoil(client)
    found = drifts(client)
    assert {drift.rollup.name for drift in found} == {"hourly", "daily", "counts"}
    done = repair(client, found, ALL, BRISK, quiet)
    assert len(done.repaired) == len(found) and not done.unsettled
    assert drifts(client) == []
    truth = client.query(
        "SELECT count(), sum(toInt128(metered_pico)), sum(toInt128(list_pico) - metered_pico) FROM usage_events"
    )
    assert sums(client, "usage_hourly") == sums(client, "usage_daily") == tuple(truth.result_rows[0])
    assert mend(client) == Repairs()
    assert repair(client, found, ALL, BRISK, quiet) == Repairs()  # with what an earlier look saw, too
    noted = client.query("SELECT count() FROM rollup_repairs").result_rows[0][0]
    assert noted == len(found)
    for table in ("usage_hourly", "usage_daily", "usage_counts_hourly"):
        client.command(f"OPTIMIZE TABLE {table} FINAL")
    assert drifts(client) == []


def test_the_same_drift_again_is_repaired_again(client: Client) -> None:
    insert(client, 0)
    for _time in range(2):
        empty(client, "usage_hourly")
        assert len(mend(client).repaired) == 1
        assert drifts(client) == []


def test_several_repairs_at_once_add_what_is_missing_once(client: Client, url: str) -> None:
    spoil(client)
    found = drifts(client)
    together = threading.Barrier(3)

    def one(_number: int) -> None:
        with connect(url) as own:
            together.wait()
            repair(own, found, ALL, BRISK, quiet)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(one, range(3)))
    assert drifts(client) == []


def test_a_batch_that_the_meter_will_repeat_is_not_counted_twice(client: Client) -> None:
    insert(client, *range(5))
    client.command("DROP VIEW usage_hourly_feed")
    insert(client, *range(5, 10))  # the meter dies between the table and a rollup
    restore_feeds(client)
    mend(client)
    assert drifts(client) == []
    # It comes back, and inserts its last batch again under its token.
    warehouse = Warehouse(client, LOG)
    stored = warehouse.last_batch(0)
    assert stored is not None
    warehouse.insert(warehouse.batch_columns(0, stored.first))
    assert drifts(client) == []


def test_a_cell_that_is_being_written_is_left_for_later(client: Client) -> None:
    insert(client, 0)
    empty(client, "usage_hourly")
    found = drifts(client)
    told: list[str] = []

    def write_meanwhile(line: str) -> None:
        if line.startswith("waiting"):
            insert(client, 1)
        told.append(line)

    done = repair(client, found, ALL, BRISK, write_meanwhile)
    assert [drift.label for drift in done.unsettled] == ["acme, 2026-11-24 00:00"]
    assert done.repaired == ()
    assert len(mend(client).repaired) == 1
    assert drifts(client) == []
    assert any("waiting" in line for line in told)


def test_repairs_amid_live_traffic_leave_exact_rollups(client: Client, url: str) -> None:
    spoil(client)
    stop = threading.Event()

    def traffic() -> int:
        first = 1_000
        with connect(url) as own:
            while not stop.is_set():
                insert(own, *range(first, first + 20))  # hours of their own, and all in days that drifted or not
                first += 20
        return first

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(traffic)
        try:
            for _attempt in range(5):
                mend(client)
        finally:
            stop.set()
        assert running.result() > 1_000
    mend(client)
    assert drifts(client) == []


def test_a_repair_survives_a_migration_that_is_repeated(client: Client) -> None:
    insert(client, 0)
    empty(client, "usage_daily")
    mend(client)
    client.command("TRUNCATE TABLE schema_migrations")
    assert migrate(client) == [name for name, _text in migration_files()]
    assert drifts(client) == []
