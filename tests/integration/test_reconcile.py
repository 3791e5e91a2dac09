"""Reconciliation finds what is wrong, by name: each law holds on good rows and fails on a planted fault."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from clickhouse_connect.driver.client import Client
from msgspec.structs import force_setattr

from taximeter.reconcile.findings import Check, Report
from taximeter.reconcile.rollups import check_rollups
from taximeter.reconcile.scope import Pace, Scope
from taximeter.reconcile.warehouse import (
    await_meter,
    check_conservation,
    check_identities,
    check_offsets,
    check_sequences,
)
from taximeter_sql import connect, migrate
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.warehouse import Warehouse
from tests.face_process import FaceProcess
from tests.metered_rows import DAY, folded, rated, refused

LOG = "log"
ALL = Scope()
BRISK = Pace(looks=2, pause_seconds=0.01, settle_seconds=0.01, behind_seconds_max=0.1)


def quiet(_line: str) -> None:
    """Progress that nobody looks at."""


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
    return [str(found) for found in check.findings]


def rollup_findings(client: Client, scope: Scope = ALL) -> list[str]:
    checks, _drifts = check_rollups(client, scope, BRISK, quiet)
    return [text for check in checks for text in details(check)]


def test_every_law_holds_on_good_rows_and_the_counts_add_up(client: Client) -> None:
    conservation, tenants = check_conservation(client, ALL)
    offsets, gaps = check_offsets(client, ALL, {0: 6}, LOG), check_sequences(client, ALL, BRISK, quiet)
    rollups, drifts = check_rollups(client, ALL, BRISK, quiet)
    report = Report([offsets, gaps, check_identities(client, ALL), conservation, *rollups], tenants)
    assert report.clean, report.to_json()
    assert drifts == []
    (acme,) = tenants
    assert (acme.produced, acme.rated, acme.duplicate, acme.rejected) == (6, 4, 1, 1)


def test_a_lost_message_and_a_log_that_is_ahead_are_named(client: Client) -> None:
    Warehouse(client, LOG).insert(build_columns(folded([rated(8)]), LOG, 0))
    await_meter(client, {0: 11}, LOG, BRISK, quiet)  # it gives up after a while
    assert details(check_offsets(client, ALL, {0: 11, 1: 2}, LOG)) == [
        "log log, partition 0 misses offsets 6 to 7",
        "partition 0: the log ends at 11, the warehouse at 9",
        "partition 1: the log ends at 2, the warehouse at 0",
    ]
    check = check_sequences(client, ALL, BRISK, quiet)
    assert details(check) == ["producer w misses 6 to 7"]
    assert [found.touches for found in check.findings] == [("acme",)]


def test_a_number_that_came_before_the_moment_looked_at_is_no_gap(client: Client) -> None:
    late = DAY + timedelta(days=2)
    Warehouse(client, LOG).insert(build_columns(folded([rated(6)]), LOG, 0))
    rows = [rated(offset, arrived_at=late) for offset in (9, 10)]
    for row, number in zip(rows, (5, 7), strict=True):  # between them lies 6, which overtook them
        assert row.event is not None and row.event.data.worker is not None
        force_setattr(row.event.data.worker, "sequence", number)
    Warehouse(client, LOG).insert(build_columns(folded(rows), LOG, 0))
    since = Scope(since=late - timedelta(hours=1))
    assert details(check_sequences(client, since, BRISK, quiet)) == []
    Warehouse(client, LOG).insert(build_columns(folded([rated(12, arrived_at=late)]), LOG, 0))
    assert details(check_sequences(client, since, BRISK, quiet)) == ["producer w misses 8 to 11"]


def test_a_message_stored_twice_is_named_as_offset_and_as_identity(client: Client) -> None:
    Warehouse(client, LOG).insert(build_columns(folded([rated(3), rated(6)]), LOG, 0))
    assert details(check_offsets(client, ALL, {0: 7}, LOG)) == [
        "log log, partition 0: 1 offsets are stored more than once",
    ]
    assert details(check_identities(client, ALL)) == ["svc e3: counted 2 times"]
    assert details(check_identities(client, Scope(tenant="globex"))) == []
    assert details(check_identities(client, Scope(since=datetime.now(UTC) + timedelta(days=400)))) == []


@pytest.mark.parametrize("rollup", ["hourly", "daily"])
def test_a_rollup_that_drifted_by_one_pico_is_named(client: Client, rollup: str) -> None:
    bucket, value = ("hour", "'2026-11-24 00:00:00'") if rollup == "hourly" else ("day", "'2026-11-24'")
    client.command(
        f"INSERT INTO usage_{rollup} (tenant, {bucket}, currency, metered_pico) VALUES ('acme', {value}, 'USD', 1)"
    )
    label = "2026-11-24 00:00" if rollup == "hourly" else "2026-11-24"
    assert rollup_findings(client) == [
        f"acme, {label} (USD): +0 events, -1 pico metered, 0 tokens off (raw less rollup)"
    ]
    assert rollup_findings(client, Scope(tenant="globex")) == []
    assert rollup_findings(client, Scope(since=DAY + timedelta(days=1))) == []
    assert len(rollup_findings(client, Scope(tenant="acme", since=DAY + timedelta(minutes=30)))) == 1


def test_usage_that_moved_to_another_feature_is_named_though_the_sums_agree(client: Client) -> None:
    moved = "INSERT INTO usage_hourly (tenant, hour, feature, currency, events) VALUES "
    client.command(
        moved + "('acme', '2026-11-24 00:00:00', 'a', 'USD', 1), ('acme', '2026-11-24 00:00:00', 'b', 'USD', -1)"
    )
    assert rollup_findings(client) == [
        "acme, 2026-11-24 00:00 (USD): +0 events, +0 pico metered, 0 tokens off in 2 keys (raw less rollup)"
    ]


def test_a_count_that_the_rollup_lacks_is_named(client: Client) -> None:
    client.command("INSERT INTO usage_counts_hourly VALUES ('2026-11-24 00:00:00', 'acme', 'rated', '', 2)")
    assert rollup_findings(client) == ["acme, 2026-11-24 00:00 (rated): -2 messages (raw less rollup)"]
