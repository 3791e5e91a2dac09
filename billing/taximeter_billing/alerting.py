"""Tells the operator about margins that turned negative, by the topic that alerts come from. One alert once for each month."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from confluent_kafka import Producer

from taximeter_billing.domain.margin import Key, Margin
from taximeter_billing.errors import AlertError
from taximeter_schemas.budgets import AlertKind, BudgetAlert
from taximeter_schemas.periods import billing_month
from taximeter_schemas.topics import BUDGET_ALERTS

SEND_SECONDS_MAX = 30.0
_log = logging.getLogger(__name__)


def negative_margin_alerts(period: str, margins: Mapping[Key, Margin], now: datetime) -> list[BudgetAlert]:
    """An alert for each tenant, feature and model that cost more than it earned. The same again has the same id."""
    month = billing_month(period, "UTC")
    return [
        BudgetAlert(
            id="margin-" + sha256("\n".join((period, *key)).encode()).hexdigest()[:32],
            kind=AlertKind.NEGATIVE_MARGIN,
            tenant=key[0],
            feature=key[1] or None,
            model=key[2] or None,
            period=period,
            period_end=(month.end - timedelta(microseconds=1)).astimezone(UTC),
            threshold_bps=10_000,
            limit_pico=max(0, margin.revenue_pico),
            spent_pico=margin.cost_pico,
            currency=margin.currency,
            raised_at=now,
        )
        for key, margin in sorted(margins.items())
        if margin.negative
    ]


def alert_negative_margins(
    bootstrap_servers: str, period: str, margins: Mapping[Key, Margin], now: datetime
) -> list[BudgetAlert]:
    """Send them, and wait until the log has them. Raises AlertError when it does not answer in time."""
    alerts = negative_margin_alerts(period, margins, now)
    failed: list[str] = []
    settings = {"enable.idempotence": True, "acks": "all", "partitioner": "murmur2_random"}
    producer = Producer({"bootstrap.servers": bootstrap_servers, **settings}, logger=_log)
    for alert in alerts:
        producer.produce(
            BUDGET_ALERTS.name,
            key=alert.tenant,
            value=alert.model_dump_json(),
            on_delivery=lambda error, _message: failed.append(str(error)) if error else None,
        )
    if producer.flush(SEND_SECONDS_MAX) or failed:
        raise AlertError(f"alerts could not be sent: {failed[0] if failed else 'the log does not answer'}")
    return alerts
