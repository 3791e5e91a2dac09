"""The log of deliveries: which alert goes to which endpoint, what became of it, and how far the topic has been read.

One SQLite file, written by the alerts service alone; the command line may read it meanwhile. An alert is entered for its
endpoints, and the topic's position moved, in one transaction, so a crash neither loses nor doubles a delivery.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_SCHEMA = (Path(__file__).parent / "delivery_log.sql").read_text()


Entry = tuple[str, str, str, str]
"""What is to be delivered: alert id, endpoint id, tenant and body."""


class DeliveryStatus(StrEnum):
    """Pending is waiting or being retried; failed is given up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alert for one endpoint. Times are UTC."""

    number: int
    alert_id: str
    endpoint_id: str
    tenant: str
    body: str
    status: DeliveryStatus
    attempts: int
    first_attempt_at: datetime | None
    next_attempt_at: datetime
    last_error: str | None
    finished_at: datetime | None

    def describe(self) -> dict[str, object]:
        """As JSON for the API: everything but the body."""
        return {
            "alert_id": self.alert_id,
            "endpoint_id": self.endpoint_id,
            "tenant": self.tenant,
            "status": self.status.value,
            "attempts": self.attempts,
            "first_attempt_at": _iso(self.first_attempt_at),
            "next_attempt_at": _iso(self.next_attempt_at) if self.status is DeliveryStatus.PENDING else None,
            "last_error": self.last_error,
            "finished_at": _iso(self.finished_at),
        }

    def show(self) -> dict[str, object]:
        """As JSON for the API, with the body that is sent."""
        return {**self.describe(), "body": json.loads(self.body)}


@dataclass(frozen=True, slots=True)
class DeadEndpoint:
    """An endpoint that was given up, at the address that it had then."""

    endpoint_id: str
    url: str
    reason: str
    disabled_at: datetime


class DeliveryLog:
    """Opens (and creates) the log at `path`. One thread at a time may use it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._connection.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def positions(self, log_id: str) -> dict[int, int]:
        """The next offset to read of each partition, in that life of the log."""
        rows = self._connection.execute("SELECT partition, next_offset FROM position WHERE log_id = ?", (log_id,))
        return dict(rows.fetchall())

    def enter(self, deliveries: Iterable[Entry], log_id: str, positions: Mapping[int, int], now: datetime) -> int:
        """Enter (alert id, endpoint id, tenant, body) as pending, unless entered before, and move the positions.

        Returns how many are new.
        """
        with _Transaction(self._connection):
            entered = self._enter(deliveries, now)
            for partition, next_offset in positions.items():
                self._connection.execute(
                    "INSERT INTO position (log_id, partition, next_offset) VALUES (?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset",
                    (log_id, partition, next_offset),
                )
        return entered

    def heads(self) -> list[Delivery]:
        """The oldest pending delivery of each living endpoint: the only one that may be tried, so that the order holds."""
        return self._select(
            "number IN (SELECT min(number) FROM delivery WHERE status = 'pending' GROUP BY endpoint_id)"
            " AND endpoint_id NOT IN (SELECT endpoint_id FROM dead_endpoint)"
        )

    def of_alert(self, alert_id: str) -> list[Delivery]:
        """An alert's deliveries, one for each endpoint."""
        return self._select("alert_id = ?", (alert_id,))

    def dead_endpoints(self) -> list[DeadEndpoint]:
        """The endpoints that were given up, the last one first."""
        rows = self._connection.execute(
            "SELECT endpoint_id, url, reason, disabled_at FROM dead_endpoint ORDER BY disabled_at DESC"
        )
        return [DeadEndpoint(name, url, reason, datetime.fromtimestamp(at, UTC)) for name, url, reason, at in rows]

    def give_up(self, delivery: Delivery, url: str, reason: str, notices: Iterable[Entry], now: datetime) -> None:
        """A delivery failed for good, and its endpoint with it: what else waits for it stays. All in one, with the notices of it.

        Notices of an endpoint that was given up before are not entered.
        """
        with _Transaction(self._connection):
            changed = self._connection.execute(
                "INSERT OR IGNORE INTO dead_endpoint (endpoint_id, url, reason, disabled_at) VALUES (?, ?, ?, ?)",
                (delivery.endpoint_id, url, reason, now.timestamp()),
            )
            self.failed(delivery, reason, now)
            if changed.rowcount == 1:
                self._enter(notices, now)

    def enable(self, endpoint_id: str, now: datetime) -> bool:
        """Take an endpoint back: what waits for it is due, with three days of its own. False when it was not given up."""
        with _Transaction(self._connection):
            changed = self._connection.execute("DELETE FROM dead_endpoint WHERE endpoint_id = ?", (endpoint_id,))
            if changed.rowcount == 1:
                self._connection.execute(
                    "UPDATE delivery SET attempts = 0, first_attempt_at = NULL, next_attempt_at = ?"
                    " WHERE endpoint_id = ? AND status = 'pending'",
                    (now.timestamp(), endpoint_id),
                )
        return changed.rowcount == 1

    def newest(
        self,
        status: DeliveryStatus | None = None,
        count_max: int = 1_000,
        tenant: str | None = None,
        endpoint_id: str | None = None,
    ) -> list[Delivery]:
        """The newest deliveries, of that status, tenant and endpoint where given."""
        wanted = {"status": status, "tenant": tenant, "endpoint_id": endpoint_id}
        given = {name: value for name, value in wanted.items() if value is not None}
        condition = " AND ".join(["true", *(f"{name} = ?" for name in given)])
        return self._select(condition, tuple(map(str, given.values())), count_max)

    def counts(self) -> dict[str, int]:
        """How many deliveries have each status."""
        return dict(self._connection.execute("SELECT status, count(*) FROM delivery GROUP BY status").fetchall())

    def delivered(self, delivery: Delivery, now: datetime) -> None:
        """The endpoint took it."""
        self._attempted(delivery, DeliveryStatus.DELIVERED, now, None, None)

    def retry(self, delivery: Delivery, error: str, now: datetime, next_attempt_at: datetime) -> None:
        """The attempt failed; there will be another."""
        self._attempted(delivery, DeliveryStatus.PENDING, now, error, next_attempt_at)

    def failed(self, delivery: Delivery, error: str, now: datetime) -> None:
        """Given up."""
        self._attempted(delivery, DeliveryStatus.FAILED, now, error, None)

    def replay(self, alert_id: str, endpoint_id: str, now: datetime) -> bool:
        """Send a delivery that ended once more, as if new and before what waits. False when no such one has ended."""
        return (
            self._replay("alert_id = ? AND endpoint_id = ? AND status != 'pending'", (alert_id, endpoint_id), now) == 1
        )

    def replay_failed(self, endpoint_id: str, now: datetime) -> int:
        """Send everything once more that failed at that endpoint; returns how many."""
        return self._replay("endpoint_id = ? AND status = 'failed'", (endpoint_id,), now)

    def _enter(self, deliveries: Iterable[Entry], now: datetime) -> int:
        before = self._connection.total_changes
        for alert_id, endpoint_id, tenant, body in deliveries:
            self._connection.execute(
                "INSERT OR IGNORE INTO delivery (alert_id, endpoint_id, tenant, body, status, attempts, next_attempt_at)"
                " VALUES (?, ?, ?, ?, 'pending', 0, ?)",
                (alert_id, endpoint_id, tenant, body, now.timestamp()),
            )
        return self._connection.total_changes - before

    def _replay(self, condition: str, values: tuple[object, ...], now: datetime) -> int:
        changed = self._connection.execute(
            "UPDATE delivery SET status = 'pending', attempts = 0, first_attempt_at = NULL, finished_at = NULL,"
            f" next_attempt_at = ? WHERE {condition}",
            (now.timestamp(), *values),
        )
        return changed.rowcount

    def prune(self, before: datetime) -> int:
        """Forget deliveries that ended, or were to be tried last, before that time; returns how many."""
        return self._connection.execute(
            "DELETE FROM delivery WHERE finished_at < ? OR (status = 'pending' AND next_attempt_at < ?)",
            (before.timestamp(), before.timestamp()),
        ).rowcount

    def _attempted(
        self, delivery: Delivery, status: DeliveryStatus, now: datetime, error: str | None, next_at: datetime | None
    ) -> None:
        at = now.timestamp()
        self._connection.execute(
            "UPDATE delivery SET status = ?, attempts = attempts + 1, first_attempt_at = coalesce(first_attempt_at, ?),"
            " next_attempt_at = ?, last_error = ?, finished_at = ? WHERE number = ?",
            (
                status.value,
                at,
                next_at.timestamp() if next_at else at,
                error,
                None if status is DeliveryStatus.PENDING else at,
                delivery.number,
            ),
        )

    def _select(self, condition: str, values: tuple[object, ...] = (), count_max: int = 1_000_000) -> list[Delivery]:
        rows = self._connection.execute(
            "SELECT number, alert_id, endpoint_id, tenant, body, status, attempts, first_attempt_at, next_attempt_at,"
            f" last_error, finished_at FROM delivery WHERE {condition} ORDER BY number DESC LIMIT ?",
            (*values, count_max),
        )
        return [_delivery(row) for row in rows]


def _delivery(row: tuple[Any, ...]) -> Delivery:
    number, alert_id, endpoint_id, tenant, body, status, attempts, first_at, next_at, last_error, finished_at = row
    return Delivery(
        number=number,
        alert_id=alert_id,
        endpoint_id=endpoint_id,
        tenant=tenant,
        body=body,
        status=DeliveryStatus(status),
        attempts=attempts,
        first_attempt_at=_utc(first_at),
        next_attempt_at=datetime.fromtimestamp(next_at, UTC),
        last_error=last_error,
        finished_at=_utc(finished_at),
    )


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK on an error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.execute("ROLLBACK" if kind else "COMMIT")


def _utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
