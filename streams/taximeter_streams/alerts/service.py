"""The alerts service: what the topic says goes into the delivery log, and what is due there goes out, endpoint by endpoint."""

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import aiohttp

from taximeter_schemas.budgets import BudgetAlert
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.tenants import AlertEndpoint
from taximeter_streams.alerts import metrics
from taximeter_streams.alerts.delivery_log import Delivery, DeliveryLog, DeliveryStatus
from taximeter_streams.alerts.intake import AlertIntake
from taximeter_streams.alerts.payload import OPERATORS_ALONE, body_for, notice_body
from taximeter_streams.alerts.retry import RetryStrategy
from taximeter_streams.alerts.settings import AlertsSettings
from taximeter_streams.alerts.webhook import attempt

IDLE_SECONDS = 0.1
ENDPOINTS_AT_ONCE_MAX = 32
COUNT_EVERY = timedelta(seconds=1)
PRUNE_EVERY = timedelta(hours=1)
_log = logging.getLogger(__name__)


def endpoints_for(alert: BudgetAlert, endpoints: list[AlertEndpoint]) -> list[AlertEndpoint]:
    """The tenant's own endpoints and the operator's, without those that are disabled. Some kinds are the operator's alone."""
    audience = (None,) if alert.kind in OPERATORS_ALONE else (None, alert.tenant)
    return [endpoint for endpoint in endpoints if endpoint.tenant in audience and not endpoint.disabled]


def told_of(dead: AlertEndpoint, endpoints: list[AlertEndpoint]) -> list[AlertEndpoint]:
    """Who is told that an endpoint was given up: the operator's other endpoints, and its tenant's other ones."""
    audience = (None, dead.tenant)
    return [known for known in endpoints if known.tenant in audience and known.id != dead.id and not known.disabled]


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
        self._due = asyncio.Event()
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
        self._due.set()

    def look(self) -> None:
        """Something may be due: do not wait for the next look."""
        self._due.set()

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
                (alert.id, endpoint.id, alert.tenant, json.dumps(body_for(endpoint, alert)))
                for alert in alerts
                for endpoint in endpoints_for(alert, endpoints)
            ]
            entered = self._log.enter(deliveries, self._settings.log_id, positions, datetime.now(UTC))
            self.look()
            metrics.READ.labels("invalid").inc(invalid)
            metrics.READ.labels("alert").inc(len(alerts))
            if entered < len(deliveries):
                _log.info("%d deliveries were entered before", len(deliveries) - entered)

    async def _deliver(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.TaskGroup() as attempts:
            while not self._stopping.is_set():
                self._due.clear()
                now = datetime.now(UTC)
                self._take_back(now)
                for delivery in self._log.heads():
                    at_once = len(self._busy) < ENDPOINTS_AT_ONCE_MAX
                    if at_once and delivery.endpoint_id not in self._busy and delivery.next_attempt_at <= now:
                        self._busy.add(delivery.endpoint_id)
                        attempts.create_task(self._attempt(session, delivery))
                self._tidy(now)
                await _wait(self._due, IDLE_SECONDS)

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
                raised_at = json.loads(delivery.body).get("timestamp")  # Slack's format has none
                if raised_at is not None:
                    delay = now - datetime.fromisoformat(raised_at)
                    metrics.DELAY_SECONDS.observe(max(0.0, delay.total_seconds()))
                return
            where = {"alert": delivery.alert_id, "endpoint": delivery.endpoint_id, "attempt": delivery.attempts + 1}
            _log.warning("webhook not delivered: %s", answer.error, extra=where)
            again = self._strategy.next_attempt(delivery.attempts + 1, delivery.first_attempt_at or now, now)
            if again is None or answer.gone:
                self._give_up(delivery, endpoint, answer.error, now)
            else:
                self._log.retry(delivery, answer.error, now, again)
        finally:
            self._busy.discard(delivery.endpoint_id)
            self.look()

    def _give_up(self, delivery: Delivery, endpoint: AlertEndpoint, error: str, now: datetime) -> None:
        """The delivery failed and the endpoint is dead: what else waits for it stays, and others are told."""
        _log.error("the endpoint is disabled: %s", error, extra={"endpoint": endpoint.id})
        notices = [
            (
                f"endpoint_{endpoint.id}_{int(now.timestamp())}",
                told.id,
                endpoint.tenant or "",
                json.dumps(notice_body(told, endpoint, error, now)),
            )
            for told in told_of(endpoint, list(self._snapshot().alert_endpoints.values()))
        ]
        self._log.give_up(delivery, endpoint.url, error, notices, now)

    def _take_back(self, now: datetime) -> None:
        """An endpoint that is declared with another address than it died at is tried again."""
        endpoints = self._snapshot().alert_endpoints
        for dead in self._log.dead_endpoints():
            declared = endpoints.get(dead.endpoint_id)
            if declared is not None and declared.url != dead.url:
                _log.info("the endpoint has another address and is enabled", extra={"endpoint": dead.endpoint_id})
                self._log.enable(dead.endpoint_id, now)

    def _tidy(self, now: datetime) -> None:
        if now - self._counted_at < COUNT_EVERY:
            return
        self._counted_at = now
        counts = self._log.counts()
        metrics.PENDING.set(counts.get(DeliveryStatus.PENDING, 0))
        metrics.FAILED.set(counts.get(DeliveryStatus.FAILED, 0))
        metrics.DEAD_ENDPOINTS.set(len(self._log.dead_endpoints()))
        if now - self._pruned_at > PRUNE_EVERY:
            self._pruned_at = now
            self._log.prune(now - timedelta(days=self._settings.alerts_kept_days))


async def _wait(event: asyncio.Event, seconds_max: float) -> None:
    try:
        async with asyncio.timeout(seconds_max):
            await event.wait()
    except TimeoutError:
        return
