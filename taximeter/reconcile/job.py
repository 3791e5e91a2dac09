"""Reconciliation as a job: looks every so often, and parks the invoicing of tenants about whom something is found.

What the log and the warehouse show counts: a rollup that drifted, an event counted twice, a producer's missing numbers, messages
that are not stored. A tenant is free again once a look over all time finds nothing about it. When a look fails because something
cannot be reached, nothing is parked and nobody is freed by it.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaException
from prometheus_client import Counter, Gauge
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from taximeter.reconcile.findings import Report
from taximeter.reconcile.run import declared_tenants, reconcile_warehouse
from taximeter.reconcile.scope import Pace, Progress, Scope
from taximeter_billing import operations
from taximeter_billing.closing import list_parked
from taximeter_billing.parking import EVERY_PERIOD, Parking, record_findings
from taximeter_billing.settings import BillingSettings
from taximeter_sql import connect

RUNS = Counter("taximeter_reconcile_runs", "Looks by how they ended: clean, findings or failed", ["outcome"])
FINDINGS = Gauge("taximeter_reconcile_findings", "What the last look found, by law", ["law"])
PARKED = Gauge("taximeter_reconcile_parked_tenants", "Tenants that the last look left parked")
UNRATED = Gauge("taximeter_reconcile_unrated_events", "Events without a price, in what the last look covered")
REPAIRED = Counter("taximeter_reconcile_repaired_cells", "Cells of rollups that were repaired")
LAST_LOOK = Gauge(
    "taximeter_reconcile_last_look_timestamp_seconds", "When the last look ended that did not fail (Unix time)"
)

_FAILURES = (ClickHouseError, OSError, KafkaException, SQLAlchemyError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Round:
    """One look, and what it did to the parking."""

    report: Report
    parking: Parking


def findings_by_tenant(report: Report, tenants: Collection[str]) -> dict[str, list[str]]:
    """What stands about each tenant. What belongs to nobody in particular, such as a lost message, may be anybody's."""
    found: dict[str, list[str]] = defaultdict(list)
    for check in report.checks:
        for finding in check.findings:
            concerned = finding.touches or ((finding.tenant,) if finding.tenant else tenants)
            for tenant in concerned:
                found[tenant].append(f"{check.law}: {finding}")
    return dict(found)


def look_and_park(
    settings: BillingSettings, scope: Scope, pace: Pace, *, repair: bool, progress: Progress = lambda _line: None
) -> Round:
    """One look, and the parking that follows from it."""
    with operations.opened(settings) as book:
        report = _look(settings, scope, pace, repair=repair, progress=progress)
        found = findings_by_tenant(report, declared_tenants(book))
        if scope.since is not None and _would_free(book, scope, found):
            # What happened before `since` may still stand: over all time, once, before anybody is freed.
            progress("nothing new about a parked tenant: comparing everything before it is free")
            report = _look(settings, Scope(scope.tenant), pace, repair=repair, progress=progress)
            found = findings_by_tenant(report, declared_tenants(book))
        # A look at one tenant leaves out the log as a whole, so it frees nobody.
        looked_at = () if scope.tenant is not None else None
        return Round(report, record_findings(book, found, datetime.now(UTC), looked_at=looked_at))


class Job:
    """Looks, parks, waits. `scope` says what a look that begins now covers; `ready` is read by the health server's thread."""

    def __init__(
        self, settings: BillingSettings, scope: Callable[[], Scope], pace: Pace, every_seconds: float, *, repair: bool
    ) -> None:
        self._settings, self._scope, self._pace = settings, scope, pace
        self._every_seconds = every_seconds
        self._repair = repair
        self._trouble: str | None = "it has not looked yet"

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether the last look succeeded, and what kept it if not."""
        return self._trouble is None, {"trouble": self._trouble} if self._trouble else {}

    def run(self, stop: threading.Event) -> None:
        """Go on until `stop` is set."""
        while not stop.is_set():
            started = time.monotonic()
            try:
                done = look_and_park(self._settings, self._scope(), self._pace, repair=self._repair)
                self._trouble = None
                _account(done, time.monotonic() - started)
            except _FAILURES as error:
                self._trouble = str(error)
                RUNS.labels("failed").inc()
                _log.error("could not look; parking is left as it is: %s", error)
            stop.wait(max(0.0, self._every_seconds - (time.monotonic() - started)))


def _look(settings: BillingSettings, scope: Scope, pace: Pace, *, repair: bool, progress: Progress) -> Report:
    client = connect(settings.clickhouse_url)
    try:
        return reconcile_warehouse(client, settings, scope, pace, repair=repair, progress=progress)
    finally:
        client.close()


def _would_free(book: Engine, scope: Scope, found: dict[str, list[str]]) -> bool:
    parked = {row.tenant for row in list_parked(book, EVERY_PERIOD)}
    return scope.tenant is None and bool(parked - found.keys())


def _account(done: Round, seconds: float) -> None:
    report = done.report
    counts: dict[str, int] = defaultdict(int)
    for check in report.checks:
        counts[check.law] += len(check.findings)
    for law, count in counts.items():
        FINDINGS.labels(law).set(count)
    RUNS.labels("clean" if report.clean else "findings").inc()
    PARKED.set(len(done.parking.parked))
    UNRATED.set(sum(row.unrated for row in report.tenants))
    REPAIRED.inc(len(report.repaired))
    LAST_LOOK.set(time.time())
    findings = [f"{check.law}: {found}" for check in report.checks for found in check.findings]
    _log.log(
        logging.INFO if report.clean else logging.WARNING,
        "reconciled",
        extra={
            "clean": report.clean, "seconds": round(seconds, 3), "findings": findings[:20], "findings_count": len(findings),
            "repaired": report.repaired[:20], "parked": done.parking.parked, "freed": done.parking.freed,
        },
    )  # fmt: skip
