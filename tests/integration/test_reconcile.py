"""Reconciliation finds what is wrong, by name: each law holds on good rows and fails on a planted fault."""

from collections.abc import Iterator

import pytest
from clickhouse_connect.driver.client import Client

from taximeter.reconcile.findings import Check, Report
from taximeter.reconcile.warehouse import (
    check_conservation,
    check_identities,
    check_offsets,
    check_rollups,
    check_sequences,
)
from taximeter_sql import connect, migrate
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.warehouse import Warehouse
from tests.face_process import FaceProcess
from tests.metered_rows import folded, rated, refused

LOG = "log"


@pytest.fixture
def client(clickhouse: FaceProcess, unique_database: str) -> Iterator[Client]:
    """A migrated warehouse with six good messages: four rated, a duplicate and a rejected one."""
    with connect(clickhouse.url(unique_database)) as connected:
        migrate(connected)
        rows = [
            *(rated(offset) for offset in range(4)),
            refused(4, "", disposition="duplicate"),
            refused(5, "conflict"),
        ]
        Warehouse(connected, LOG).insert(build_columns(folded(rows), LOG, 0))
        yield connected


def details(check: Check) -> list[str]:
    return [f"{found.subject}: {found.detail}" for found in check.findings]


def test_every_law_holds_on_good_rows_and_the_counts_add_up(client: Client) -> None:
    conservation, tenants = check_conservation(client)
    checks = [check_offsets(client, {0: 6}, LOG), check_identities(client), check_sequences(client), conservation]
    report = Report([*checks, *check_rollups(client)], tenants)
    assert report.clean, report.to_json()
    (acme,) = tenants
    assert (acme.produced, acme.rated, acme.duplicate, acme.rejected) == (6, 4, 1, 1)


def test_a_lost_message_and_a_log_that_is_ahead_are_named(client: Client) -> None:
    Warehouse(client, LOG).insert(build_columns(folded([rated(8)]), LOG, 0))
    assert details(check_offsets(client, {0: 11, 1: 2}, LOG)) == [
        "log log, partition 0: 2 offsets between 0 and 8 are missing",
        "partition 0: the log ends at 11, the warehouse at 9",
        "partition 1: the log ends at 2, the warehouse at 0",
    ]
    assert details(check_sequences(client)) == ["producer w: misses 6 to 7"]


def test_a_message_stored_twice_is_named_as_offset_and_as_identity(client: Client) -> None:
    Warehouse(client, LOG).insert(build_columns(folded([rated(3), rated(6)]), LOG, 0))
    assert details(check_offsets(client, {0: 7}, LOG)) == [
        "log log, partition 0: 1 offsets are stored more than once",
    ]
    assert details(check_identities(client)) == ["svc e3: counted 2 times"]


@pytest.mark.parametrize("rollup", ["hourly", "daily"])
def test_a_rollup_that_drifted_by_one_pico_is_named(client: Client, rollup: str) -> None:
    bucket, value = ("hour", "'2026-11-24 00:00:00'") if rollup == "hourly" else ("day", "'2026-11-24'")
    client.command(
        f"INSERT INTO usage_{rollup} (tenant, {bucket}, currency, metered_pico) VALUES ('acme', {value}, 'USD', 1)"
    )
    failed = [check for check in check_rollups(client) if not check.holds]
    assert len(failed) == 1
    assert rollup in failed[0].compared
    assert "+0 events, -1 pico metered, 0 tokens off" in details(failed[0])[0]


def test_a_count_that_the_rollup_lacks_breaks_conservation(client: Client) -> None:
    client.command("INSERT INTO usage_counts_hourly VALUES ('2026-11-24 00:00:00', 'acme', 'rated', '', 2)")
    conservation, _tenants = check_conservation(client)
    assert details(conservation) == ["acme, 2026-11-24 00:00: 6 rows, the rollup says 8"]
