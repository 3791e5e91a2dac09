"""The alerts service: what the topic says goes into the delivery log, and what is due there goes out, endpoint by endpoint."""

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import aiohttp

from taximeter_schemas.budgets import BudgetAlert
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.tenants import AlertEndpoint
from taximeter_streams.alerts import metrics
from taximeter_streams.alerts.delivery_log import Delivery, DeliveryLog, DeliveryStatus
from taximeter_streams.alerts.intake import AlertIntake
from taximeter_streams.alerts.payload import webhook_body
from taximeter_streams.alerts.retry import RetryStrategy
from taximeter_streams.alerts.settings import AlertsSettings
from taximeter_streams.alerts.webhook import attempt

IDLE_SECONDS = 0.1
ENDPOINTS_AT_ONCE_MAX = 32
COUNT_EVERY = timedelta(seconds=1)
PRUNE_EVERY = timedelta(hours=1)
_log = logging.getLogger(__name__)


def endpoints_for(alert: BudgetAlert, endpoints: list[AlertEndpoint]) -> list[AlertEndpoint]:
    """The tenant's own endpoints and the operator's, without those that are disabled."""
    return [endpoint for endpoint in endpoints if endpoint.tenant in (None, alert.tenant) and not endpoint.disabled]


class AlertsService:
    """Runs until `stop`. All use of the delivery log happens in the event loop's thread."""

    def __init__(
        self,
        settings: AlertsSettings,
        log: DeliveryLog,
        snapshot: Callable[[], ControlSnapshot],
        strategy: RetryStrategy = RetryStrategy(),  # noqa: B008 -- frozen
    ) -> None:
        self._settings = settings
        self._log = log
        self._snapshot = snapshot
        self._strategy = strategy
        self._stopping = asyncio.Event()
        self._busy: set[str] = set()
        self._running = False
        self._counted_at = datetime.min.replace(tzinfo=UTC)
        self._pruned_at = datetime.min.replace(tzinfo=UTC)

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether it reads and delivers, for /readyz."""
        return self._running, {"running": self._running}

    def stop(self) -> None:
        """End after the attempts that are under way."""
        self._stopping.set()

    async def run(self) -> None:
        """Read and deliver until `stop`."""
        positions = self._log.positions(self._settings.log_id)
        intake = AlertIntake(self._settings.kafka_bootstrap_servers, self._settings.kafka_partitions, positions)
        timeout = aiohttp.ClientTimeout(total=self._settings.alerts_timeout_seconds)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
                group.create_task(self._read(intake))
                group.create_task(self._deliver(session))
                self._running = True
        finally:
            self._running = False
            intake.close()

    async def _read(self, intake: AlertIntake) -> None:
        while not self._stopping.is_set():
            alerts, positions, invalid = await asyncio.to_thread(intake.read, IDLE_SECONDS)
            if not positions:
                continue
            endpoints = list(self._snapshot().alert_endpoints.values())
            deliveries = [
                (alert.id, endpoint.id, alert.tenant, json.dumps(webhook_body(alert)))
                for alert in alerts
                for endpoint in endpoints_for(alert, endpoints)
            ]
            entered = self._log.enter(deliveries, self._settings.log_id, positions, datetime.now(UTC))
            metrics.READ.labels("invalid").inc(invalid)
            metrics.READ.labels("alert").inc(len(alerts))
            if entered < len(deliveries):
                _log.info("%d deliveries were entered before", len(deliveries) - entered)

    async def _deliver(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.TaskGroup() as attempts:
            while not self._stopping.is_set():
                now = datetime.now(UTC)
                for delivery in self._log.heads():
                    at_once = len(self._busy) < ENDPOINTS_AT_ONCE_MAX
                    if at_once and delivery.endpoint_id not in self._busy and delivery.next_attempt_at <= now:
                        self._busy.add(delivery.endpoint_id)
                        attempts.create_task(self._attempt(session, delivery))
                self._tidy(now)
                await asyncio.sleep(IDLE_SECONDS)

    async def _attempt(self, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        try:
            endpoint = self._snapshot().alert_endpoints.get(delivery.endpoint_id)
            if endpoint is None or endpoint.disabled:
                self._log.failed(delivery, "the endpoint was removed or disabled", datetime.now(UTC))
                return
            answer = await attempt(session, endpoint, delivery.alert_id, delivery.body, datetime.now(UTC))
            now = datetime.now(UTC)
            metrics.ATTEMPTS.labels("delivered" if answer.ok else "failed").inc()
            if answer.ok:
                self._log.delivered(delivery, now)
                raised_at = datetime.fromisoformat(json.loads(delivery.body)["timestamp"])
                metrics.DELAY_SECONDS.observe(max(0.0, (now - raised_at).total_seconds()))
                return
            where = {"alert": delivery.alert_id, "endpoint": delivery.endpoint_id, "attempt": delivery.attempts + 1}
            _log.warning("webhook not delivered: %s", answer.error, extra=where)
            again = self._strategy.next_attempt(delivery.attempts + 1, delivery.first_attempt_at or now, now)
            if again is None or answer.gone:
                self._log.failed(delivery, answer.error, now)
            else:
                self._log.retry(delivery, answer.error, now, again)
        finally:
            self._busy.discard(delivery.endpoint_id)

    def _tidy(self, now: datetime) -> None:
        if now - self._counted_at < COUNT_EVERY:
            return
        self._counted_at = now
        counts = self._log.counts()
        metrics.PENDING.set(counts.get(DeliveryStatus.PENDING, 0))
        metrics.FAILED.set(counts.get(DeliveryStatus.FAILED, 0))
        if now - self._pruned_at > PRUNE_EVERY:
            self._pruned_at = now
            self._log.prune(now - timedelta(days=self._settings.alerts_kept_days))


def deliveries_page(log: DeliveryLog, path: str) -> dict[str, object] | None:
    """The page /v1/deliveries?status=failed (or delivered, pending, or none for all); None for another path."""
    address = urlsplit(path)
    if address.path != "/v1/deliveries":
        return None
    wanted = parse_qs(address.query).get("status", [""])[0]
    if wanted and wanted not in list(DeliveryStatus):
        return {"error": f"no such status: {wanted}", "statuses": list(DeliveryStatus)}
    deliveries = log.newest(DeliveryStatus(wanted) if wanted else None)
    return {"deliveries": [delivery.describe() for delivery in deliveries], "counts": log.counts()}
