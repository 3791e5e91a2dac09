"""What reconciliation finds parks a tenant's invoicing, with the reason, until it is gone or waived; others go on."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter.reconcile.job import look_and_park
from taximeter.reconcile.scope import Pace, Scope
from taximeter_billing.book import AuditRow, open_book
from taximeter_billing.closing import close_period, finalize_period, list_parked
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.errors import NotFoundError
from taximeter_billing.parking import EVERY_PERIOD, held, list_findings, record_findings, waive
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.control import ControlRecord
from taximeter_sql import connect, migrate
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.warehouse import Warehouse
from tests.face_process import FaceProcess
from tests.metered_rows import DAY, folded, rated
from tests.waiting import await_true

NOW = datetime(2026, 12, 5, tzinfo=UTC)
PERIOD = "2026-11"
BRISK = Pace(looks=2, pause_seconds=0.01, settle_seconds=0.05, behind_seconds_max=0.1)
SECONDS_MAX = 60.0
GAP = "nothing lost: producer vllm-7 misses 4411 to 4419"


def publish(records: Iterable[ControlRecord]) -> int:
    """A log that takes everything."""
    return len(list(records))


@pytest.fixture
def settings(clickhouse: FaceProcess, unique_database: str, book_url: str, servers: str) -> BillingSettings:
    return BillingSettings(
        kafka_bootstrap_servers=servers,
        log_id="log",
        clickhouse_url=clickhouse.url(unique_database),
        database_url=book_url,
    )


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A log of this module's own, empty: what the warehouse lacks of it would be a finding."""
    with EmbeddedBroker(tmp_path_factory.mktemp("parking-broker"), free_port()) as broker:
        ensure_topics(broker.bootstrap_servers, 1, 1)
        yield broker.bootstrap_servers


@pytest.fixture
def book(settings: BillingSettings) -> Iterator[Engine]:
    """Two tenants, acme and globex, with a price."""
    engine = open_book(settings.database_url)
    price = {"model": "m", "uncached_input": "0.50", "output": "1.50"}
    card = {"id": "default", "version": 1, "effective_from": "2026-01-01T00:00:00Z", "prices": [price]}
    content = {"rate_cards": [card], "tenants": [{"id": "acme"}, {"id": "globex"}]}
    apply_declarations(engine, read_mapping(content), "tester", NOW, publish)
    yield engine
    engine.dispose()


@pytest.fixture
def client(settings: BillingSettings) -> Iterator[Client]:
    """A warehouse in which both tenants have used something."""
    with connect(settings.clickhouse_url) as connected:
        migrate(connected)
        cost = 40 * 500_000 + 5 * 1_500_000
        names = ("acme", "globex")
        rows = [rated(at, tenant=names[at % 2], list_pico=cost, metered_pico=cost) for at in range(6)]
        Warehouse(connected, "log").insert(build_columns(folded(rows), "log", 0))
        yield connected


def spoil(client: Client) -> None:
    """Acme's daily rollup has one pico-unit too many."""
    client.command(
        "INSERT INTO usage_daily (tenant, day, currency, metered_pico) VALUES ('acme', '2026-11-24', 'USD', 1)"
    )


def test_a_parked_tenant_is_neither_closed_nor_finalized_and_is_told_why(book: Engine, client: Client) -> None:
    reader = UsageReader(client)
    closed = close_period(book, reader, PERIOD, NOW)
    assert closed.drafted == ["acme", "globex"], closed
    changes = record_findings(book, {"acme": [GAP]}, NOW)
    reason = f"reconciliation found: {GAP}"
    assert changes.parked == {"acme": reason} and held(book, "acme") == reason
    closed = close_period(book, reader, PERIOD, NOW)
    assert closed.parked == {"acme": reason} and closed.unchanged == ["globex"]
    assert [row.tenant for row in finalize_period(book, PERIOD, "INV", NOW)] == ["globex"]
    assert [(row.tenant, row.period) for row in list_parked(book, PERIOD)] == [("acme", EVERY_PERIOD)]
    assert record_findings(book, {}, NOW).freed == ["acme"]
    assert [row.tenant for row in finalize_period(book, PERIOD, "INV", NOW)] == ["acme"]
    assert list_parked(book) == []


def test_the_same_finding_again_changes_nothing_and_many_are_counted(book: Engine) -> None:
    found = {"acme": [f"raw = rollup: cell {number}" for number in range(5)]}
    record_findings(book, found, NOW)
    record_findings(book, found, NOW + timedelta(hours=1))
    (row,) = list_parked(book)
    assert row.parked_at == NOW
    assert row.reason.endswith("cell 2; and 2 more")
    assert [finding.found_at for finding in list_findings(book, "acme")] == [NOW] * 5
    with Session(book) as session:
        assert list(session.scalars(select(AuditRow.action).where(AuditRow.kind == "invoicing"))) == ["park"]


def test_what_was_not_looked_at_stands(book: Engine) -> None:
    record_findings(book, {"acme": [GAP], "globex": [GAP]}, NOW)
    assert record_findings(book, {}, NOW, looked_at=()).freed == []
    assert record_findings(book, {"acme": ["another"]}, NOW, looked_at=["globex"]).freed == ["globex"]
    assert {finding.finding for finding in list_findings(book)} == {GAP, "another"}


def test_what_was_waived_parks_no_more_and_what_is_new_does(book: Engine) -> None:
    record_findings(book, {"acme": [GAP]}, NOW)
    assert waive(book, "acme", "the disk is gone, the customer knows", "ada", NOW) == [GAP]
    assert held(book, "acme") is None
    record_findings(book, {"acme": [GAP]}, NOW)
    assert held(book, "acme") is None
    record_findings(book, {"acme": [GAP, "another"]}, NOW)
    assert held(book, "acme") == "reconciliation found: another"
    with pytest.raises(NotFoundError, match="nothing stands about a tenant called 'globex'"):
        waive(book, "globex", "no reason", "ada", NOW)
    (waived,) = [row for row in list_findings(book, "acme") if row.finding == GAP]
    assert (waived.waived_by, waived.waived_because) == ("ada", "the disk is gone, the customer knows")


def test_a_drift_parks_its_tenant_and_a_repair_frees_it(
    book: Engine, client: Client, settings: BillingSettings
) -> None:
    assert look_and_park(settings, Scope(), BRISK, repair=False).parking.parked == {}
    spoil(client)
    done = look_and_park(settings, Scope(), BRISK, repair=False)
    assert not done.report.clean
    assert list(done.parking.parked) == ["acme"]
    assert "acme, 2026-11-24 (USD): +0 events, -1 pico metered" in (held(book, "acme") or "")
    # A look at what is newer, or at another tenant, does not free it.
    for scope in (Scope(since=DAY + timedelta(days=5)), Scope(tenant="globex")):
        assert look_and_park(settings, scope, BRISK, repair=False).parking.freed == []
    assert held(book, "acme") is not None
    done = look_and_park(settings, Scope(), BRISK, repair=True)
    assert done.parking.freed == ["acme"] and done.report.repaired == ["daily: acme, 2026-11-24"]


def test_a_lost_message_may_be_anybodys(book: Engine, client: Client, settings: BillingSettings) -> None:
    Warehouse(client, "log").insert(build_columns(folded([rated(8)]), "log", 0))
    done = look_and_park(settings, Scope(), BRISK, repair=False)
    assert set(done.parking.parked) == {"acme", "globex"}
    assert "exactly once: log log, partition 0 misses offsets 6 to 7" in done.parking.parked["globex"]
    assert "nothing lost: producer w misses 6 to 7" in done.parking.parked["acme"]


def test_the_job_parks_frees_and_tells(book: Engine, client: Client, settings: BillingSettings, tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "TAXIMETER_LOG_ID": settings.log_id,
        "TAXIMETER_CLICKHOUSE_URL": settings.clickhouse_url,
        "TAXIMETER_DATABASE_URL": settings.database_url,
    }
    spoil(client)
    command = [sys.executable, "-m", "taximeter", "reconcile", "--every", "0.01", "--port", str(port)]
    with (tmp_path / "job.log").open("w") as log, subprocess.Popen(command, env=environment, stderr=log) as job:
        try:
            await_true(lambda: held(book, "acme") is not None, "acme is parked")
            client.command("ALTER TABLE usage_daily DELETE WHERE feature = '' SETTINGS mutations_sync = 2")
            await_true(lambda: held(book, "acme") is None, "acme is free")
            await_true(lambda: page(port, "readyz").startswith('{"ready": true'), "the job is ready")
            metrics = page(port, "metrics")
            assert "taximeter_reconcile_parked_tenants 0.0" in metrics
            assert 'taximeter_reconcile_findings{law="raw = rollup"} 0.0' in metrics
        finally:
            job.send_signal(signal.SIGTERM)
        assert job.wait(SECONDS_MAX) == 0
    lines = [json.loads(line) for line in (tmp_path / "job.log").read_text().splitlines()]
    assert any(line.get("parked") for line in lines) and any(line.get("freed") == ["acme"] for line in lines)


def page(port: int, name: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return ""
