"""Alerts as webhooks: what they say, how they are signed, when they are tried again, and the log of deliveries."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook

from taximeter_schemas.budgets import AlertKind, BudgetAlert, IsolationIncident
from taximeter_schemas.tenants import AlertEndpoint
from taximeter_streams.alerts import Delivery, DeliveryLog, DeliveryStatus
from taximeter_streams.alerts.payload import body_for, notice_body, sentence, webhook_body
from taximeter_streams.alerts.retry import RetryStrategy
from taximeter_streams.alerts.service import endpoints_for, told_of
from taximeter_streams.alerts.webhook import headers_for

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
SECRET = "whsec_" + "c2VjcmV0" * 6
ALERT = BudgetAlert(
    id="alert_1",
    kind=AlertKind.SOFT_THRESHOLD,
    tenant="acme",
    budget_id="acme-month",
    period="2026-11",
    period_end=datetime(2026, 12, 1, tzinfo=UTC),
    threshold_bps=8_000,
    limit_pico=50 * 10**12,
    spent_pico=40_104 * 10**9,
    currency="USD",
    raised_at=NOW,
)


def endpoint(endpoint_id: str, tenant: str | None = None, *, disabled: bool = False) -> AlertEndpoint:
    return AlertEndpoint(
        id=endpoint_id, url="http://127.0.0.1:1/secret-path", secret=SECRET, tenant=tenant, disabled=disabled
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "acme has spent 80% of its monthly budget of 50.00 USD (40.10 USD spent, 2026-11)"),
        (
            {"threshold_bps": 9_950},
            "acme has spent 99.5% of its monthly budget of 50.00 USD (40.10 USD spent, 2026-11)",
        ),
        (
            {"period": "2026-11-24", "feature": "chat", "model": "m"},
            "acme has spent 80% of its daily budget for feature chat for model m of 50.00 USD (40.10 USD spent, 2026-11-24)",
        ),
        (
            {"period": "2026-11-24T08+0000", "limit_pico": 7_000, "spent_pico": 6_000},  # below a cent: written out
            "acme has spent 80% of its hourly budget of 0.000000007 USD (0.000000006 USD spent, 2026-11-24T08+0000)",
        ),
        (
            {"kind": AlertKind.HARD_LIMIT, "threshold_bps": 10_000, "spent_pico": 50 * 10**12},
            "acme has reached the limit of its monthly budget of 50.00 USD (50.00 USD spent, 2026-11); requests are refused"
            " until 2026-12-01 00:00 UTC, or until the limit is raised",
        ),
        (
            {"kind": AlertKind.HARD_LIMIT, "threshold_bps": 10_000, "spent_pico": 50 * 10**12, "period": "lifetime"},
            "acme has reached the limit of its prepaid budget of 50.00 USD (50.00 USD spent); requests are refused"
            " until it is topped up",
        ),
        (
            {"currency": "JPY"},  # no minor unit
            "acme has spent 80% of its monthly budget of 50 JPY (40 JPY spent, 2026-11)",
        ),
    ],
)
def test_the_sentence(changes: dict[str, object], text: str) -> None:
    assert sentence(ALERT.model_copy(update=changes)) == text


def test_the_body_carries_type_time_and_the_whole_alert() -> None:
    body = webhook_body(ALERT)
    assert (body["type"], body["timestamp"]) == ("budget.soft_threshold", "2026-11-24T08:00:00Z")
    assert BudgetAlert.model_validate(body["data"]) == ALERT
    assert webhook_body(ALERT.model_copy(update={"kind": AlertKind.HARD_LIMIT}))["type"] == "budget.hard_limit"


def test_the_signature_is_one_that_a_receiver_accepts() -> None:
    headers = headers_for(endpoint("ops"), "alert_1", '{"a": 1}', datetime.now(UTC))
    assert headers["webhook-id"] == "alert_1"
    assert Webhook(SECRET).verify('{"a": 1}', headers) == {"a": 1}


@pytest.mark.parametrize(
    ("attempts", "wait"),
    [
        (1, timedelta(seconds=1)),  # the first retry comes soon
        (2, timedelta(seconds=3)),
        (5, timedelta(seconds=81)),
        (9, timedelta(seconds=6_561)),
        (10, timedelta(hours=2)),  # no longer than this
        (1_000, timedelta(hours=2)),
    ],
)
def test_waits_grow_up_to_a_limit(attempts: int, wait: timedelta) -> None:
    assert RetryStrategy().next_attempt(attempts, NOW, NOW) == NOW + wait


def test_three_days_after_the_first_attempt_it_is_given_up() -> None:
    strategy, deadline = RetryStrategy(), NOW + timedelta(days=3)
    assert strategy.next_attempt(50, NOW, deadline - timedelta(seconds=1)) == deadline
    assert strategy.next_attempt(51, NOW, deadline) is None


def test_an_alert_goes_to_its_tenant_and_to_the_operator() -> None:
    endpoints = [
        endpoint("ops"),
        endpoint("acme", "acme"),
        endpoint("globex", "globex"),
        endpoint("off", "acme", disabled=True),
    ]
    assert [found.id for found in endpoints_for(ALERT, endpoints)] == ["ops", "acme"]


def test_a_negative_margin_is_told_to_the_operator_alone() -> None:
    margin = ALERT.model_copy(update={"kind": AlertKind.NEGATIVE_MARGIN, "budget_id": None})
    assert [found.id for found in endpoints_for(margin, [endpoint("ops"), endpoint("acme", "acme")])] == ["ops"]
    said = sentence(margin)
    assert "costs more than it earns" in said
    assert f"`taximeter margin --period {margin.period} --tenant {margin.tenant} --by model`" in said
    assert webhook_body(margin)["type"] == "margin.negative"


def test_an_isolation_incident_names_both_to_the_operator_alone() -> None:
    incident = IsolationIncident(
        request_id="gateway-1:ab:7", pool="tenant:mallory", warmed_by="acme", warmed_in="duo", worker="vllm-1:cd"
    )
    alert = ALERT.model_copy(
        update={"kind": AlertKind.ISOLATION_INCIDENT, "tenant": "mallory", "budget_id": None, "incident": incident}
    )
    told = endpoints_for(alert, [endpoint("ops"), endpoint("acme", "acme"), endpoint("m", "mallory")])
    assert [found.id for found in told] == ["ops"]
    assert sentence(alert) == (
        "cache isolation incident: mallory (pool tenant:mallory) hit blocks that acme warmed in pool duo"
        " (request gateway-1:ab:7, worker vllm-1:cd); next: take that worker out of service, then follow"
        ' "When an incident is told" in docs/isolation.md'
    )
    assert webhook_body(alert)["type"] == "isolation.incident"


def entry(alert_id: str, endpoint_id: str = "ops") -> tuple[str, str, str, str]:
    return (alert_id, endpoint_id, "acme", "{}")


def head(log: DeliveryLog, endpoint_id: str = "ops") -> Delivery:
    (found,) = [delivery for delivery in log.heads() if delivery.endpoint_id == endpoint_id]
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alerts" / "deliveries.db"


def test_an_alert_is_entered_once_for_an_endpoint(path: Path) -> None:
    with DeliveryLog(path) as log:
        assert log.enter([entry("a"), entry("a", "acme")], "log", {0: 5}, NOW) == 2
        assert log.enter([entry("a"), entry("b")], "log", {0: 6, 1: 1}, NOW) == 1
        assert log.positions("log") == {0: 6, 1: 1}
        assert log.positions("another life") == {}


def test_an_endpoint_gets_its_alerts_in_order_and_waits_for_a_failing_one(path: Path) -> None:
    with DeliveryLog(path) as log:
        log.enter([entry("a"), entry("b"), entry("c", "acme")], "log", {0: 3}, NOW)
        first = head(log)
        assert first.alert_id == "a"
        later = NOW + timedelta(seconds=1)
        log.retry(first, "HTTP 500", NOW, later)
        again = head(log)
        assert (again.alert_id, again.attempts, again.next_attempt_at) == ("a", 1, later)
        assert (again.last_error, again.first_attempt_at) == ("HTTP 500", NOW)
        assert head(log, "acme").alert_id == "c"
        log.delivered(again, later)
        assert head(log).alert_id == "b"


def test_the_log_survives_a_restart(path: Path) -> None:
    with DeliveryLog(path) as log:
        log.enter([entry("a"), entry("b")], "log", {0: 2}, NOW)
        log.delivered(head(log), NOW)
    with DeliveryLog(path) as log:
        assert log.counts() == {"delivered": 1, "pending": 1}
        assert log.enter([entry("a"), entry("b")], "log", {0: 2}, NOW) == 0
        assert head(log).alert_id == "b"


def test_what_has_ended_is_listed_and_may_be_sent_again(path: Path) -> None:
    with DeliveryLog(path) as log:
        log.enter([entry("a"), entry("b"), entry("c", "acme")], "log", {0: 2}, NOW)
        log.failed(head(log), "HTTP 410: gone", NOW)
        (failed,) = log.newest(DeliveryStatus.FAILED)
        assert failed.describe() == {
            "alert_id": "a",
            "endpoint_id": "ops",
            "tenant": "acme",
            "status": "failed",
            "attempts": 1,
            "first_attempt_at": NOW.isoformat(),
            "next_attempt_at": None,
            "last_error": "HTTP 410: gone",
            "finished_at": NOW.isoformat(),
        }
        assert failed.show()["body"] == {}
        assert [found.alert_id for found in log.newest(endpoint_id="acme")] == ["c"]
        assert log.newest(tenant="globex") == []
        assert log.replay("a", "ops", NOW)
        assert not log.replay("a", "ops", NOW)  # it is on its way already
        assert log.newest(DeliveryStatus.FAILED) == []
        assert head(log).alert_id == "a"
        log.delivered(head(log), NOW)
        assert log.replay("a", "ops", NOW)  # also what was delivered


def test_everything_that_failed_at_an_endpoint_may_be_sent_again(path: Path) -> None:
    with DeliveryLog(path) as log:
        log.enter([entry("a"), entry("b"), entry("c"), entry("d", "acme")], "log", {0: 2}, NOW)
        for _ in range(2):
            log.failed(head(log), "HTTP 500", NOW)
        log.delivered(head(log), NOW)
        log.failed(head(log, "acme"), "HTTP 500", NOW)
        assert log.replay_failed("ops", NOW) == 2
        assert log.counts() == {"pending": 2, "delivered": 1, "failed": 1}


def test_a_dead_endpoint_gets_nothing_until_it_is_enabled(path: Path) -> None:
    later = NOW + timedelta(days=3)
    with DeliveryLog(path) as log:
        log.enter([entry("a"), entry("b"), entry("c", "acme")], "log", {0: 3}, NOW)
        (first,) = log.of_alert("a")
        log.give_up(first, "http://ops", "HTTP 410", [entry("notice", "acme")], NOW)
        log.give_up(first, "http://ops", "HTTP 500", [entry("another", "acme")], later)
        assert log.of_alert("notice") and not log.of_alert("another")
    with DeliveryLog(path) as log:
        assert [found.endpoint_id for found in log.heads()] == ["acme"]
        (dead,) = log.dead_endpoints()
        assert (dead.endpoint_id, dead.url, dead.reason, dead.disabled_at) == ("ops", "http://ops", "HTTP 410", NOW)
        log.enter([entry("e")], "log", {0: 4}, NOW)  # what comes meanwhile waits too
        assert log.enable("ops", later)
        assert not log.enable("ops", later)
        assert (head(log).alert_id, head(log).next_attempt_at, head(log).first_attempt_at) == ("b", later, None)


def test_others_are_told_of_a_dead_endpoint() -> None:
    dead = endpoint("acme", "acme")
    known = [
        dead,
        endpoint("ops"),
        endpoint("acme-2", "acme"),
        endpoint("globex", "globex"),
        endpoint("off", disabled=True),
    ]
    assert [found.id for found in told_of(dead, known)] == ["ops", "acme-2"]
    assert [found.id for found in told_of(endpoint("ops"), known)] == []
    body = notice_body(endpoint("ops"), dead, "HTTP 410", NOW)
    assert (body["type"], body["timestamp"]) == ("endpoint.disabled", NOW.isoformat())
    assert "secret-path" not in str(notice_body(endpoint("ops"), dead, "HTTP 410", NOW))


def test_slack_gets_its_own_format_and_no_signature() -> None:
    slack = AlertEndpoint.model_validate(
        {"id": "s", "url": "https://hooks.slack.com/services/T/B/x", "format": "slack"}
    )
    assert body_for(slack, ALERT.model_copy(update={"tenant": "a&b"})) == {
        "text": "a&amp;b has spent 80% of its monthly budget of 50.00 USD (40.10 USD spent, 2026-11)"
    }
    assert body_for(endpoint("ops"), ALERT) == webhook_body(ALERT)
    assert "webhook-signature" not in headers_for(slack, "a", "{}", NOW)
    with pytest.raises(ValidationError, match="needs a secret"):
        AlertEndpoint.model_validate({"id": "s", "url": "https://example.com"})


def test_old_deliveries_are_forgotten(path: Path) -> None:
    later = NOW + timedelta(days=1)
    with DeliveryLog(path) as log:
        log.enter([entry("a")], "log", {0: 2}, NOW)
        log.delivered(head(log), NOW)
        log.enter([entry("b")], "log", {0: 2}, later)
        assert log.prune(NOW) == 0
        assert log.prune(later) == 1
        assert log.counts() == {"pending": 1}
        assert log.prune(later + timedelta(days=90)) == 1  # it waited at a dead endpoint all the time
