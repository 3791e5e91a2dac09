"""Rating later and sending again, on a real meter, by the command line: each event counts once, whatever is done twice."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer
from typer.testing import CliRunner

from taximeter.cli.main import app
from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter.mending.sending import Sender
from taximeter.mending.unrated import unrated_events
from taximeter.reconcile.findings import Conservation
from taximeter.reconcile.rollups import check_rollups
from taximeter.reconcile.run import reconcile_warehouse
from taximeter.reconcile.scope import Pace, Scope
from taximeter.reconcile.warehouse import check_conservation, check_identities, check_offsets, check_sequences
from taximeter_producers import UsageProducer
from taximeter_producers.control import publish
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.late_ratings import encode
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.settings import LogSettings
from taximeter_schemas.spend import SpendRecord
from taximeter_schemas.tenants import Tenant
from taximeter_schemas.topics import USAGE_EVENTS, USAGE_SPEND
from tests.face_process import FaceProcess
from tests.faults.processes import Worker, make_worker
from tests.topic_reader import read_topic
from tests.usage_events import usage
from tests.waiting import await_true

PARTITIONS = 2
BRISK = Pace(looks=3, pause_seconds=0.05, settle_seconds=0.05)
PACE = Pace(pause_seconds=0.2, behind_seconds_max=240)
LOG = "log"


@dataclass
class Site:
    """A log, a warehouse, a meter, and the command line on them."""

    servers: str
    clickhouse_url: str
    client: Client
    folder: Path
    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    workers: list[Worker] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": self.servers,
            "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
            "TAXIMETER_LOG_ID": LOG,
            "TAXIMETER_CLICKHOUSE_URL": self.clickhouse_url,
            "TAXIMETER_DATABASE_URL": f"sqlite:///{self.folder / 'book.db'}",
            "TAXIMETER_METER_LINGER_MS": "20",
        }

    def meter(self, session_timeout_ms: int = 6_000) -> Worker:
        own = self.environment | {"TAXIMETER_METER_SESSION_TIMEOUT_MS": str(session_timeout_ms)}
        worker = make_worker(
            "meter", "taximeter_streams.meter", "TAXIMETER_METER_PORT", self.folder, own, len(self.workers)
        )
        self.workers.append(worker)
        worker.start()
        return worker

    def declare(self, *things: Tenant | RateCard) -> None:
        records = []
        for thing in things:
            kind, name = (
                (ControlKind.TENANT, thing.id) if isinstance(thing, Tenant) else (ControlKind.RATE_CARD, thing.name)
            )
            records.append(ControlRecord(kind=kind, id=name, body=thing.model_dump(mode="json"), recorded_at=self.now))
        publish(self.servers, records)

    def card(self, version: int, effective_from: datetime, model: str, price: int) -> RateCard:
        prices = (Price(model=model, uncached_input=price, output=price),)
        return RateCard(version=version, effective_from=effective_from, recorded_at=self.now, prices=prices)

    def send(self, *payloads: dict[str, Any] | bytes) -> None:
        """Into the log, and through the meter."""
        producer = Producer({"bootstrap.servers": self.servers, "partitioner": "murmur2_random"})
        for payload in payloads:
            key = payload["id"] if isinstance(payload, dict) else "?"
            value = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            producer.produce(USAGE_EVENTS.name, value, key=key)
        assert producer.flush(60) == 0
        before = self.sent
        self.sent = before + len(payloads)
        await_true(lambda: self.rows() >= self.sent, lambda: f"{self.sent} rows, there are {self.rows()}")

    sent: int = 0

    def rows(self) -> int:
        if not self.client.query("EXISTS usage_counts_hourly").result_rows[0][0]:
            return 0
        return int(self.client.query("SELECT count() FROM usage_log").result_rows[0][0])

    def event(
        self, event_id: str, model: str = "m", age: timedelta = timedelta(hours=3), **data: Any
    ) -> dict[str, Any]:
        return usage(event_id, model=model, **data) | {"time": (self.now - age).isoformat()}

    def taximeter(self, *arguments: str, status: int = 0) -> str:
        """Run the command and give what it printed. Fails when it does not exit with that status."""
        done = CliRunner().invoke(
            app, list(arguments), env=self.environment | {"COLUMNS": "200"}, catch_exceptions=False
        )
        assert done.exit_code == status, done.output
        return done.stdout

    def dispositions(self) -> dict[str, int]:
        rows = self.client.query("SELECT disposition, reason, count() FROM usage_log GROUP BY ALL").result_rows
        return {"/".join(filter(None, (disposition, reason))): count for disposition, reason, count in rows}

    def spend(self) -> int:
        """What budgets heard of acme, each range once."""
        records = {}
        for message in read_topic(self.servers, USAGE_SPEND.name):
            record = SpendRecord.model_validate_json(message.value() or b"")
            records[record.partition, record.first_offset, record.tenant] = record
        return sum(entry.amount_pico for record in records.values() for entry in record.entries)

    def check_laws(self) -> dict[str, Conservation]:
        """Everything that the warehouse can show by itself holds; the counts by tenant."""
        conservation, tenants = check_conservation(self.client, Scope())
        rollups, _drifts = check_rollups(self.client, Scope(), BRISK, lambda _line: None)
        offsets = check_offsets(self.client, Scope())
        gaps = check_sequences(self.client, Scope(), BRISK, lambda _line: None)
        for check in (conservation, offsets, gaps, check_identities(self.client, Scope()), *rollups):
            assert check.holds, check
        for row in tenants:
            assert row.produced == row.rated + row.unrated + row.duplicate + row.rejected
        return {row.tenant: row for row in tenants}


@pytest.fixture
def site(clickhouse: FaceProcess, unique_database: str, tmp_path: Path) -> Iterator[Site]:
    """With tenant acme, who has no price yet; a test starts the meter."""
    with EmbeddedBroker(tmp_path / "broker", free_port()) as broker, clickhouse.client(unique_database) as client:
        ensure_topics(broker.bootstrap_servers, PARTITIONS, 1)
        site = Site(broker.bootstrap_servers, clickhouse.url(unique_database), client, tmp_path)
        site.declare(Tenant(id="acme"))
        try:
            yield site
        finally:
            for worker in site.workers:
                worker.child.stop()


def test_what_had_no_price_is_rated_once_by_the_price_of_its_time(site: Site) -> None:
    site.declare(site.card(1, site.now - timedelta(hours=1), "m", 10))
    site.meter()
    site.send(*(site.event(f"old{number}") for number in range(6)), site.event("new", age=timedelta(minutes=5)))
    site.send(site.event("other", model="n"))
    assert site.dispositions() == {"unrated/no_rate_card": 7, "rated": 1}
    assert "everything has a price" not in site.taximeter("unrated", "list")
    assert "rated: 0 events" in site.taximeter("unrated", "rate")

    # A second version is in force from before the usage; a third, dearer, only from now on.
    site.declare(site.card(2, site.now - timedelta(days=1), "m", 7), site.card(3, site.now, "m", 1_000))
    listed = json.loads(site.taximeter("unrated", "list", "--json"))
    assert [(group["model"], group["events"], group.get("rate_card") or group["reason"]) for group in listed] == [
        ("m", 6, "default@2"),
        ("n", 1, "unknown_model"),
    ]
    assert "a price: default@2" in site.taximeter("unrated", "rate", "--dry-run")

    # A run that was killed has sent some of them; the meter is killed, and loses its index, while another run goes on.
    some = list(unrated_events(site.client, "acme", "m"))[:3]
    Sender(site.servers).send((event.id.encode(), encode(event)) for event in some)
    site.workers[0].kill()
    site.workers[0].lose_index()
    site.workers[0].start()
    told = site.taximeter("unrated", "rate")
    assert "without a price still: 1" in told
    assert "everything has a price" in site.taximeter("unrated", "list", "--model", "m")
    assert "rated: 0 events" in site.taximeter("unrated", "rate")

    counts = site.dispositions()
    counts.pop("duplicate/still_unrated", 0)  # asked before the meter had heard of the price
    assert counts["rated/rated_later"] == 6 and counts["rated"] == 1
    assert counts["unrated/no_rate_card"] + counts.get("unrated/unknown_model", 0) == 7, (
        "what was stored stays as it is"
    )
    cost = 6 * 5 * 7 + 5 * 10  # five tokens each
    (totals,) = site.client.query(
        "SELECT count(), sum(metered_pico), uniqExact(event_id) FROM usage_events"
    ).result_rows
    assert totals == (7, cost, 7)
    assert site.client.query("SELECT sum(events), sum(metered_pico) FROM usage_hourly").result_rows == [(7, cost)]
    assert site.client.query("SELECT event_id FROM usage_unrated").result_rows == [("other",)]
    cards = site.client.query(
        "SELECT rate_card, toUnixTimestamp(max(time)) FROM usage_events GROUP BY rate_card ORDER BY 1"
    )
    assert [row[0] for row in cards.result_rows] == ["default@1", "default@2"]
    assert site.check_laws()["acme"] == Conservation("acme", 8, 7, 1, 0, 0, rated_later=6)
    assert site.spend() == cost


def test_what_was_rejected_is_sent_again_once_its_cause_is_mended(site: Site) -> None:
    site.declare(site.card(1, site.now - timedelta(days=1), "m", 10))
    meter = site.meter()
    stranger = [site.event(f"s{number}", tenant="stranger") for number in range(4)]
    untagged = site.event("untagged")
    del untagged["data"]["feature"]
    good = site.event("good")
    conflict = site.event("good", tokens={"uncached_input": 9})
    site.send(*stranger, untagged, good, conflict, b"not json \xff")
    assert site.dispositions() == {
        "rejected/unknown_tenant": 4,
        "rejected/missing_tag": 1,
        "rejected/conflict": 1,
        "rejected/malformed_json": 1,
        "rated": 1,
    }
    listed = {one["reason"]: one for one in json.loads(site.taximeter("rejected", "list", "--json"))}
    assert set(listed) == {"unknown_tenant", "missing_tag", "conflict", "malformed_json"}
    shown = site.taximeter("rejected", "show", listed["missing_tag"]["place"])
    assert "missing required field `feature`" in shown and '"id": "untagged"' in shown
    # Nothing is mended yet: nothing is sent.
    assert "sent: 0" in site.taximeter("rejected", "replay", "--all", status=1)
    assert site.rows() == 8

    meter.child.stop()
    site.declare(Tenant(id="stranger"))
    meter.start()  # it knows all that is declared when it begins
    site.send(stranger[0])  # the producer sends one again by itself
    dry = site.taximeter("rejected", "replay", "--reason", "unknown_tenant", "--dry-run")
    assert "would be sent: 3" in dry
    told = site.taximeter("rejected", "replay", "--reason", "unknown_tenant")
    assert "sent: 3" in told and "replayed: rated: 3" in told
    assert "sent: 0" in site.taximeter("rejected", "replay", "--reason", "unknown_tenant")
    place = listed["missing_tag"]["place"]
    mended = ("rejected", "replay", place, "--set", "data.feature=chat", "--by", "ada")
    assert "replayed: rated: 1" in site.taximeter(*mended)
    assert "sent: 0" in site.taximeter(*mended)
    assert "by ada" in site.taximeter("rejected", "show", place)
    assert "conflict" in site.taximeter("rejected", "replay", listed["conflict"]["place"], status=1)
    assert "names no message" not in site.taximeter("rejected", "replay", "7/7", status=2)

    assert site.dispositions() == {
        "rejected/unknown_tenant": 4,
        "rejected/missing_tag": 1,
        "rejected/conflict": 1,
        "rejected/malformed_json": 1,
        "rated": 6,
    }
    states = {
        (one["reason"], one["state"]) for one in json.loads(site.taximeter("rejected", "list", "--all", "--json"))
    }
    assert states == {
        ("unknown_tenant", "since then: rated"),
        ("unknown_tenant", "replayed: rated"),
        ("missing_tag", "replayed: rated"),
        ("conflict", "open"),
        ("malformed_json", "open"),
    }
    counts = site.check_laws()
    assert counts["stranger"] == Conservation("stranger", 8, 4, 0, 0, 4, replayed=3)
    assert counts["acme"] == Conservation("acme", 3, 2, 0, 0, 1, replayed=1)


def test_replays_that_race_count_once(site: Site) -> None:
    site.declare(site.card(1, site.now - timedelta(days=1), "m", 10))
    meter = site.meter()
    events = [site.event(f"s{number}", tenant="stranger") for number in range(5)]
    site.send(*events)
    meter.child.stop()
    site.declare(Tenant(id="stranger"))
    meter.start()
    command = [sys.executable, "-m", "taximeter", "rejected", "replay", "--all"]
    environment = os.environ | site.environment
    racing = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _run in range(2)]
    for run in racing:
        told, _error = run.communicate(timeout=240)
        assert run.returncode == 0, told
    counts = site.dispositions()
    assert counts["rated"] == 5 and counts["rejected/unknown_tenant"] == 5
    assert set(counts) <= {"rated", "rejected/unknown_tenant", "duplicate"}
    assert "nothing is open" in site.taximeter("rejected", "list")
    site.check_laws()


def test_reconcile_amid_traffic_finds_nothing(site: Site) -> None:
    site.declare(site.card(1, site.now - timedelta(days=1), "m", 10))
    site.meter(session_timeout_ms=60_000)  # nobody is killed here, and the machine may be slow
    settings = LogSettings(kafka_bootstrap_servers=site.servers, log_id=LOG)
    stop = threading.Event()

    def traffic() -> int:
        producer = UsageProducer(
            bootstrap_servers=site.servers, producer_id="svc", spool_dir=site.folder / "spool", delivery_seconds_max=60
        )
        count = 0
        with producer:
            while not stop.wait(0.01):
                producer.emit(site.event(f"t{count}"))
                count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(traffic)
        try:
            await_true(lambda: site.rows() > 50, lambda: f"traffic flows; {site.rows()} rows")
            for _look in range(2):
                report = reconcile_warehouse(
                    site.client, settings, Scope(), PACE, repair=True, progress=lambda _line: None
                )
                assert report.clean, report.to_json()
                assert report.repaired == []
        finally:
            stop.set()
        count = running.result()
    await_true(lambda: site.rows() >= count, lambda: f"{count} rows, there are {site.rows()}")
    assert site.check_laws()["acme"].rated == count
