"""The alerts service as a process: endpoints that die, are told of, are taken back and replayed; Slack's format; the API."""

import http.server
import json
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka import Producer
from standardwebhooks import Webhook
from typer.testing import CliRunner

from taximeter.cli.main import app
from taximeter_producers.control import publish
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.budgets import AlertKind, BudgetAlert
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.tenants import AlertEndpoint
from taximeter_schemas.topics import BUDGET_ALERTS
from tests.gateway_stack import PARTITIONS, SECONDS_MAX, Service
from tests.waiting import await_true

SECRET = "whsec_" + "c2VjcmV0" * 6
TOKEN = "an-admin-token"


@dataclass
class Receiver:
    """Takes what comes, and answers with the status that is set."""

    status: int = 204
    taken: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    signed: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if receiver.status < 300:
                    signed = self.headers["webhook-signature"] is not None
                    if signed:
                        Webhook(SECRET).verify(body, dict(self.headers))
                    receiver.signed.append(signed)
                    receiver.taken.append((self.headers["webhook-id"], json.loads(body)))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/secret-path"

    @property
    def ids(self) -> list[str]:
        return [message_id for message_id, _ in self.taken]


@pytest.fixture
def receivers() -> Iterator[list[Receiver]]:
    made = [Receiver() for _ in range(3)]
    yield made
    for receiver in made:
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.fixture
def service(bootstrap_servers: str, tmp_path: Path) -> Iterator[Service]:
    ensure_topics(bootstrap_servers, PARTITIONS, 1)
    environment = {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
        "TAXIMETER_STATE_DIR": str(tmp_path / "state"),
        "TAXIMETER_ADMIN_TOKEN": TOKEN,
    }
    made = Service("taximeter_streams.alerts", "TAXIMETER_ALERTS_PORT", environment, tmp_path)
    yield made
    made.child.stop()


class Tenant:
    """A tenant of its own with endpoints, and alerts raised for it."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.id = f"acme-{secrets.token_hex(4)}"
        self._bootstrap_servers = bootstrap_servers
        self._endpoints: set[str] = set()

    def endpoint(self, name: str, url: str, **fields: str) -> str:
        made = AlertEndpoint.model_validate(
            {"id": f"{self.id}-{name}", "url": url, "tenant": self.id, "secret": SECRET, **fields}
        )
        self._endpoints.add(made.id)
        self._declare(made.id, made.model_dump(mode="json"))
        return made.id

    def leave(self) -> None:
        """Take the endpoints away: other tests read the same topics."""
        for name in self._endpoints:
            self._declare(name, None)

    def _declare(self, name: str, body: dict[str, object] | None) -> None:
        record = ControlRecord(kind=ControlKind.ALERT_ENDPOINT, id=name, body=body, recorded_at=datetime.now(UTC))
        publish(self._bootstrap_servers, [record])

    def alert(self, threshold_bps: int) -> str:
        now = datetime.now(UTC)
        raised = BudgetAlert(
            id=f"alert_{self.id}_{threshold_bps}",
            kind=AlertKind.SOFT_THRESHOLD,
            tenant=self.id,
            budget_id=f"{self.id}-month",
            period="2026-11",
            period_end=now + timedelta(days=1),
            threshold_bps=threshold_bps,
            limit_pico=100,
            spent_pico=90,
            currency="USD",
            raised_at=now,
        )
        producer = Producer({"bootstrap.servers": self._bootstrap_servers, "partitioner": "murmur2_random"})
        producer.produce(BUDGET_ALERTS.name, raised.model_dump_json(), key=self.id)
        assert producer.flush(SECONDS_MAX) == 0
        return raised.id


@pytest.fixture
def tenant(bootstrap_servers: str) -> Iterator[Tenant]:
    ensure_topics(bootstrap_servers, PARTITIONS, 1)
    made = Tenant(bootstrap_servers)
    yield made
    made.leave()


def call(service: Service, path: str, method: str = "GET", token: str = TOKEN) -> dict[str, object]:
    request = urllib.request.Request(
        f"{service.url}{path}", method=method, headers={"authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        page: dict[str, object] = json.load(response)
        return page


def command(service: Service, *arguments: str) -> str:
    environment = {"TAXIMETER_ALERTS_URL": service.url, "TAXIMETER_ADMIN_TOKEN": TOKEN, "COLUMNS": "200"}
    result = CliRunner().invoke(app, ["alerts", *arguments], env=environment)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_dead_endpoint_is_told_of_taken_back_and_gets_everything_in_order(
    tenant: Tenant, service: Service, receivers: list[Receiver]
) -> None:
    dying, other, slack = receivers
    dead = tenant.endpoint("dying", dying.url)
    tenant.endpoint("other", other.url)
    tenant.endpoint("slack", slack.url, format="slack")
    service.start()
    first = tenant.alert(5_000)
    await_true(lambda: [len(held.taken) for held in receivers] == [1, 1, 1], lambda: f"{receivers}")
    assert list(slack.taken[0][1]) == ["text"]
    assert (slack.signed, dying.signed) == ([True], [True])  # a secret signs in any format

    # It says that it wants no more: the other endpoints of the tenant are told, and what comes meanwhile waits.
    dying.status = 410
    second, third = tenant.alert(8_000), tenant.alert(9_500)
    await_true(lambda: len(other.taken) == 4, lambda: f"{other.taken}")
    (notice,) = [body for _, body in other.taken if body["type"] == "endpoint.disabled"]
    assert "HTTP 410" in str(notice["data"]) and "secret-path" not in str(notice)
    await_true(lambda: any("have stopped" in str(body["text"]) for _, body in slack.taken), lambda: f"{slack.taken}")
    page = call(service, "/v1/endpoints")["endpoints"]
    assert isinstance(page, list)
    assert [held["reason"] for held in page if held["id"] == dead] == ["HTTP 410"]
    assert "HTTP 410" in command(service, "endpoints")

    # The state survives the process; the endpoint is well again, is enabled, and gets what waited.
    service.child.stop()
    assert service.child.exit_status == 0
    dying.status = 204
    service.start()
    assert dying.ids == [first]
    assert "is enabled" in command(service, "enable", dead)
    await_true(lambda: dying.ids == [first, third], lambda: f"{dying.ids}")
    # What failed while it died is sent again on demand, and so is what was delivered before.
    assert "1 " in command(service, "replay", "--endpoint", dead)
    await_true(lambda: dying.ids == [first, third, second], lambda: f"{dying.ids}")
    command(service, "replay", first, "--endpoint", dead)
    await_true(lambda: dying.ids == [first, third, second, first], lambda: f"{dying.ids}")
    assert second in command(service, "list", "--tenant", tenant.id)
    shown = command(service, "show", second)
    assert "has spent 80% of its" in shown and "delivered" in shown


def test_an_endpoint_that_is_declared_elsewhere_is_taken_back(
    tenant: Tenant, service: Service, receivers: list[Receiver]
) -> None:
    old, new, _ = receivers
    old.status = 410
    tenant.endpoint("moving", old.url)
    service.start()
    tenant.alert(5_000)
    await_true(lambda: '"failed": 1' in json.dumps(call(service, "/v1/deliveries")), lambda: "it fails")
    tenant.endpoint("moving", new.url)
    later = tenant.alert(8_000)
    await_true(lambda: new.ids == [later], lambda: f"{new.ids}")


def test_the_api_is_for_who_holds_the_token(service: Service) -> None:
    service.start()
    for path, method in (("/v1/deliveries", "GET"), ("/v1/endpoints", "GET"), ("/v1/endpoints/x/enable", "POST")):
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            call(service, path, method, token="another")
        refused.value.close()
    for path, method in (
        ("/v1/alerts/nothing", "GET"),
        ("/v1/alerts/nothing/replay", "POST"),
        ("/v1/endpoints/x/enable", "POST"),
    ):
        with pytest.raises(urllib.error.HTTPError, match="404") as missing:
            call(service, path, method)
        missing.value.close()
    with pytest.raises(urllib.error.HTTPError, match="422") as unknown:
        call(service, "/v1/deliveries?status=lost")
    unknown.value.close()
