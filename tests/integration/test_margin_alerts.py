"""A negative margin reaches the topic of alerts on a real broker, and a log that does not answer is an error by name."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter_billing import alerting
from taximeter_billing.alerting import alert_negative_margins
from taximeter_billing.book import open_book
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.domain.margin import Margin
from taximeter_billing.errors import AlertError
from taximeter_billing.service.margin_watch import MarginWatch
from taximeter_billing.settings import BillingSettings
from taximeter_producers.control import publish
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.budgets import AlertKind, BudgetAlert
from taximeter_schemas.topics import BUDGET_ALERTS
from taximeter_sql import connect, migrate
from tests.face_process import FaceProcess
from tests.gateway_stack import Service
from tests.integration.test_alert_delivery import SECRET, Receiver
from tests.integration.test_billing import content, insert, shared_prefix
from tests.topic_reader import read_topic
from tests.waiting import await_true

NOW = datetime(2026, 12, 1, tzinfo=UTC)
MARGINS = {
    ("acme", "chat", "m"): Margin("USD", revenue_pico=10, cost_pico=30, events=2),
    ("acme", "search", "m"): Margin("USD", revenue_pico=10, cost_pico=5, events=1),
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_the_operator_is_told_of_what_is_negative_alone(tmp_path: Path) -> None:
    # A broker of its own: on the shared one, the alerts of other tests would be told of this.
    with EmbeddedBroker(tmp_path, free_port()) as broker:
        ensure_topics(broker.bootstrap_servers, 1, 1)
        alert_negative_margins(broker.bootstrap_servers, "2026-11", MARGINS, NOW)
        [record] = read_topic(broker.bootstrap_servers, BUDGET_ALERTS.name)
    alert = BudgetAlert.model_validate_json(record.value() or b"")
    assert (alert.kind, alert.tenant, alert.feature) == (AlertKind.NEGATIVE_MARGIN, "acme", "chat")
    assert (alert.limit_pico, alert.spent_pico, alert.period) == (10, 30, "2026-11")


def test_the_job_looks_by_itself_and_the_operators_webhook_hears_of_it_once(
    book_url: str, tmp_path: Path, clickhouse: FaceProcess, unique_database: str, receiver: Receiver
) -> None:
    book = open_book(book_url)
    costs = {"id": "c", "version": 1, "effective_from": "2026-01-01T00:00:00Z",
             "prices": [{"model": "m", "uncached_input": "0.10", "output": "9"}]}  # fmt: skip
    endpoint = {"id": "operator", "url": receiver.url, "secret": SECRET}
    declared = read_mapping({**content(), "cost_cards": [costs], "alert_endpoints": [endpoint]})
    with EmbeddedBroker(tmp_path, free_port()) as broker:
        log = broker.bootstrap_servers
        ensure_topics(log, 1, 1)
        apply_declarations(book, declared, "tester", NOW, lambda records: publish(log, records))
        client = connect(clickhouse.url(unique_database))
        migrate(client)
        insert(client, *shared_prefix())
        client.close()
        environment = {"TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": log, "TAXIMETER_KAFKA_PARTITIONS": "1",
                       "TAXIMETER_STATE_DIR": str(tmp_path / "state")}  # fmt: skip
        alerts = Service("taximeter_streams.alerts", "TAXIMETER_ALERTS_PORT", environment, tmp_path)
        alerts.start()
        settings = BillingSettings(clickhouse_url=clickhouse.url(unique_database), kafka_bootstrap_servers=log)
        try:
            with MarginWatch(book, settings, lambda: datetime(2026, 11, 20, tzinfo=UTC)):
                await_true(lambda: len(receiver.taken) == 2, lambda: f"{receiver.taken}")
            # After a restart it tells again; the alerts service knows the ids.
            again = MarginWatch(book, settings, lambda: datetime(2026, 11, 21, tzinfo=UTC))
            assert [key[0] for key in again.look()] == ["acme", "globex"]
            assert again.look() == []
            alert_negative_margins(log, "2026-10", MARGINS, NOW)  # comes behind them
            await_true(lambda: len(receiver.taken) >= 3, lambda: f"{receiver.taken}")
        finally:
            alerts.child.stop()
    book.dispose()
    assert [str(body["type"]) for _, body in receiver.taken] == ["margin.negative"] * 3
    assert "2026-10" in str(receiver.taken[2][1]) and len(set(receiver.ids)) == 3


def test_a_log_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting, "SEND_SECONDS_MAX", 0.2)
    with pytest.raises(AlertError, match="could not be sent"):
        alert_negative_margins(f"127.0.0.1:{free_port()}", "2026-11", MARGINS, NOW)
