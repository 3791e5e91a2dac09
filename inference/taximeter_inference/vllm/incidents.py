"""Tells the operator of isolation incidents, by the topic that alerts come from: each two pools and tenants once a day.

An incident should never happen, so nothing is opened before the first one. What the broker does not take is tried until the
worker stops; the event that the incident belongs to is marked all the same.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from hashlib import sha256

from confluent_kafka import Producer

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.vllm.block_table import Label
from taximeter_schemas.budgets import AlertKind, BudgetAlert, IsolationIncident
from taximeter_schemas.topics import BUDGET_ALERTS

TOLD_MAX = 10_000
CLOSE_SECONDS_MAX = 5.0
_log = logging.getLogger(__name__)

Report = Callable[[Forwarded, Label, datetime], None]
"""Is told whose request hit what whom had warmed, and when."""


def alert_of(tags: Forwarded, warmed: Label, worker: str, now: datetime) -> BudgetAlert:
    """The alert. The same tenants and pools on the same day (UTC) have the same id."""
    day = now.astimezone(UTC).date()
    key = (day.isoformat(), tags.tenant, tags.pool, warmed.tenant, warmed.pool)
    return BudgetAlert(
        id="isolation-" + sha256("\n".join(key).encode()).hexdigest()[:32],
        kind=AlertKind.ISOLATION_INCIDENT,
        tenant=tags.tenant,
        feature=tags.feature,
        period=day.isoformat(),
        period_end=datetime.combine(day + timedelta(days=1), time(), UTC) - timedelta(microseconds=1),
        threshold_bps=10_000,
        limit_pico=0,
        spent_pico=0,
        currency="USD",
        raised_at=now,
        incident=IsolationIncident(
            request_id=tags.request_id,
            pool=tags.pool,
            warmed_by=warmed.tenant,
            warmed_in=warmed.pool,
            worker=worker,
        ),
    )


class IncidentAlerts:
    """Sends them. One thread uses it."""

    def __init__(self, bootstrap_servers: str, worker: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._worker = worker
        self._producer: Producer | None = None
        self._told: set[str] = set()

    def report(self, tags: Forwarded, warmed: Label, now: datetime) -> None:
        """Send an alert, unless that of the day was. Never waits for the broker."""
        alert = alert_of(tags, warmed, self._worker, now)
        if alert.id in self._told or len(self._told) >= TOLD_MAX:
            return
        self._told.add(alert.id)
        if self._producer is None:
            settings = {"enable.idempotence": True, "acks": "all", "partitioner": "murmur2_random"}
            limits = {"message.timeout.ms": 0, "linger.ms": 5}
            self._producer = Producer({"bootstrap.servers": self._bootstrap_servers, **settings, **limits}, logger=_log)
        self._producer.produce(BUDGET_ALERTS.name, alert.model_dump_json(), key=alert.tenant, on_delivery=_on_delivery)
        self._producer.poll(0)

    def close(self) -> None:
        """Wait a little for what is not sent yet."""
        if self._producer is not None and (left := self._producer.flush(CLOSE_SECONDS_MAX)):
            _log.critical("%d alerts of isolation incidents were not sent; this log names them all", left)


def _on_delivery(error: object, _message: object) -> None:
    if error is not None:
        _log.critical("an alert of an isolation incident was refused: %s", error)
