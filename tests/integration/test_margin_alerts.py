"""A negative margin reaches the topic of alerts on a real broker, and a log that does not answer is an error by name."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter_billing import alerting
from taximeter_billing.alerting import alert_negative_margins
from taximeter_billing.domain.margin import Margin
from taximeter_billing.errors import AlertError
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.budgets import AlertKind, BudgetAlert
from taximeter_schemas.topics import BUDGET_ALERTS
from tests.topic_reader import read_topic

NOW = datetime(2026, 12, 1, tzinfo=UTC)
MARGINS = {
    ("acme", "chat", "m"): Margin("USD", revenue_pico=10, cost_pico=30, events=2),
    ("acme", "search", "m"): Margin("USD", revenue_pico=10, cost_pico=5, events=1),
}


def test_the_operator_is_told_of_what_is_negative_alone(tmp_path: Path) -> None:
    # A broker of its own: on the shared one, the alerts of other tests would be told of this.
    with EmbeddedBroker(tmp_path, free_port()) as broker:
        ensure_topics(broker.bootstrap_servers, 1, 1)
        alert_negative_margins(broker.bootstrap_servers, "2026-11", MARGINS, NOW)
        [record] = read_topic(broker.bootstrap_servers, BUDGET_ALERTS.name)
    alert = BudgetAlert.model_validate_json(record.value() or b"")
    assert (alert.kind, alert.tenant, alert.feature) == (AlertKind.NEGATIVE_MARGIN, "acme", "chat")
    assert (alert.limit_pico, alert.spent_pico, alert.period) == (10, 30, "2026-11")


def test_a_log_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting, "SEND_SECONDS_MAX", 0.2)
    with pytest.raises(AlertError, match="could not be sent"):
        alert_negative_margins(f"127.0.0.1:{free_port()}", "2026-11", MARGINS, NOW)
