"""The billing API: who may call, what is declared, keys, usage, invoices as JSON and as pages; and the process itself."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from taximeter.embedded.ports import free_port
from taximeter_billing.book import open_book
from taximeter_billing.closing import close_period
from taximeter_billing.service.app import build_app
from taximeter_billing.service.sender import ControlSender
from taximeter_billing.service.stripe_webhooks import StripeInbox
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_producers.control import ControlFollower
from taximeter_producers.topics import ensure_topics
from tests.face_process import FaceProcess
from tests.integration.test_billing import NOW, PERIOD, content, insert, shared_prefix

TOKEN = "an-admin-token"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
PARTITIONS = 4


@pytest.fixture
def settings(book_url: str, clickhouse: FaceProcess, unique_database: str, bootstrap_servers: str) -> BillingSettings:
    ensure_topics(bootstrap_servers, PARTITIONS, 1)
    return BillingSettings(
        database_url=book_url,
        clickhouse_url=clickhouse.url(unique_database),
        kafka_bootstrap_servers=bootstrap_servers,
        kafka_partitions=PARTITIONS,
        admin_token=TOKEN,
    )


@pytest.fixture
def book(settings: BillingSettings) -> Iterator[Engine]:
    engine = open_book(settings.database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def api(settings: BillingSettings, book: Engine) -> Iterator[httpx.Client]:
    app = build_app(settings, book, ControlSender(book, settings), StripeInbox(book, settings))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=WITH_TOKEN, timeout=60) as client:
        yield client
    server.should_exit = True
    thread.join(60)


def declare(api: httpx.Client, declared: dict[str, Any]) -> dict[str, Any]:
    answer = api.post("/v1/declarations", json=declared)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer wrong",
        "Bearer",
        TOKEN,
        f"Digest {TOKEN}",
        "Basic !!!",
        "Basic " + b64encode(b"operator:wrong").decode(),
        "Basic " + b64encode(b"operator").decode(),
    ],
)
def test_nobody_without_the_token(api: httpx.Client, authorization: str | None) -> None:
    del api.headers["Authorization"]
    for path in ("/v1/tenants", "/v1/keys", "/v1/audit", "/invoices", "/v1/invoices"):
        answer = api.get(path, headers={"Authorization": authorization} if authorization else {})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), path


def test_a_browser_gives_the_token_as_its_password(api: httpx.Client) -> None:
    basic = "Basic " + b64encode(f"operator:{TOKEN}".encode()).decode()
    assert api.get("/invoices", headers={"Authorization": basic}).status_code == 200


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_a_foreign_page_cannot_act_with_the_browsers_password(api: httpx.Client, content_type: str | None) -> None:
    # What a page may send to another site without asking it first: these types, and a body without any.
    basic = "Basic " + b64encode(f"operator:{TOKEN}".encode()).decode()
    headers = {"Authorization": basic, **({"Content-Type": content_type} if content_type else {})}
    for path in ("/v1/invoices/finalize", "/v1/invoices/close"):
        assert api.post(path, content=b'{"period": "2026-11"}', headers=headers).status_code == 422
    assert api.post("/v1/keys", content=b'{"tenant": "acme"}', headers=headers).status_code == 422


def test_no_page_loads_anything_from_elsewhere(api: httpx.Client) -> None:
    assert {api.get(path).status_code for path in ("/docs", "/redoc")} == {404}


@pytest.mark.parametrize("period", ["0001-01", "1969-12", "2200-01", "9999-12", "2026-13", "٢٠٢٦-11"])
def test_what_is_no_month_of_ours_is_refused(api: httpx.Client, period: str) -> None:
    declare(api, content())
    assert api.get("/v1/usage", params={"tenant": "acme", "period": period}).status_code == 422
    assert api.post("/v1/invoices/close", json={"period": period, "early": True}).status_code == 422


def test_health_and_metrics_are_open(api: httpx.Client) -> None:
    del api.headers["Authorization"]
    assert api.get("/healthz").json() == {"status": "alive"}
    assert api.get("/readyz").status_code == 503  # nothing has been published: the sender does not run here
    assert "taximeter_billing_outbox_records 0.0" in api.get("/metrics").text


def test_declaring_reading_and_declaring_again(api: httpx.Client) -> None:
    planned = api.post("/v1/declarations?dry_run=true", json=content()).json()
    assert (planned["applied"], len(planned["changes"])) == (False, 5)
    assert api.get("/v1/tenants").json() == []
    assert len(declare(api, content())["changes"]) == 5
    assert declare(api, content())["changes"] == []
    assert [tenant["id"] for tenant in api.get("/v1/tenants").json()] == ["acme", "berlin", "globex"]
    assert api.get("/v1/tenants/acme").json()["cache_pool"] == "pool"
    assert api.get("/v1/rate-cards/default@1").json()["prices"][0]["output"] == 1_500_000
    assert {entry["actor"] for entry in api.get("/v1/audit").json()} == {"api"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/declarations", {"tenants": [{"id": ""}]}, 422, "invalid_declaration"),
        ("POST", "/v1/declarations", ["no", "mapping"], 422, "invalid_request"),
        ("GET", "/v1/tenants/nobody", None, 404, "not_found"),
        ("POST", "/v1/keys", {"tenant": "nobody"}, 404, "not_found"),
        ("DELETE", "/v1/keys/key-0", None, 404, "not_found"),
        ("GET", "/v1/usage?tenant=nobody&period=2026-11", None, 404, "not_found"),
        ("GET", "/v1/usage?tenant=acme&period=2026-13", None, 422, "invalid_request"),
        ("POST", "/v1/invoices/close", {"period": "soon"}, 422, "invalid_period"),
        ("GET", "/v1/invoices/INV-9", None, 404, "not_found"),
        ("GET", "/invoices/INV-9", None, 404, "not_found"),
        ("GET", "/nowhere", None, 404, "not_found"),
    ],
)
def test_every_refusal_has_a_code(
    api: httpx.Client, method: str, path: str, body: object, status: int, code: str
) -> None:
    declare(api, content())
    answer = api.request(method, path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_the_running_month_is_not_closed_by_accident(api: httpx.Client) -> None:
    declare(api, content())
    answer = api.post("/v1/invoices/close", json={"period": f"{datetime.now(UTC):%Y-%m}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "period_open")


def test_a_published_price_does_not_change(api: httpx.Client) -> None:
    declare(api, content())
    other = content()
    other["rate_cards"][0]["prices"][0]["output"] = "9"
    answer = api.post("/v1/declarations", json=other)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "frozen")


def test_keys_from_making_to_revoking(api: httpx.Client) -> None:
    declare(api, content())
    made = api.post("/v1/keys", json={"tenant": "acme"})
    assert made.status_code == 201
    listed = api.get("/v1/keys?tenant=acme").json()
    assert [key["disabled"] for key in listed] == [False]
    assert made.json()["secret"] not in str(listed)
    assert api.delete(f"/v1/keys/{made.json()['id']}").status_code == 204
    assert [key["disabled"] for key in api.get("/v1/keys").json()] == [True]


def test_usage_and_invoices(api: httpx.Client, book: Engine, warehouse: Client) -> None:
    declare(api, content())
    insert(warehouse, *shared_prefix())
    usage = api.get(f"/v1/usage?tenant=globex&period={PERIOD}").json()["usage"]
    assert [(row["feature"], row["cached_input_tokens"], row["metered_pico"]) for row in usage] == [
        ("chat", 128_000, "56400000000")
    ]
    # The month is closed at a time that is past its grace, whatever the day of this run.
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    drafts = api.get(f"/v1/invoices?period={PERIOD}").json()["invoices"]
    assert [(row["tenant"], row["status"], row["total_minor"]) for row in drafts] == [
        ("acme", "draft", "10"),
        ("globex", "draft", "6"),
    ]
    finalized = api.post("/v1/invoices/finalize", json={"period": PERIOD}).json()["finalized"]
    assert [row["number"] for row in finalized] == ["INV-000001", "INV-000002"]
    assert api.post("/v1/invoices/finalize", json={"period": PERIOD}).json()["finalized"] == []
    one = api.get("/v1/invoices/INV-000002").json()
    assert one["document"]["lines"][0]["savings_pico"] == "57600000000"
    page = api.get("/invoices/INV-000001")
    assert "Acme &lt;Stores&gt;" in page.text and "0.10 USD" in page.text
    assert "INV-000002" in api.get("/invoices").text


def test_invoices_are_proven_voided_and_credited(api: httpx.Client, book: Engine, warehouse: Client) -> None:
    costs = [{"id": "c", "version": 1, "effective_from": "2026-01-01T00:00:00Z",
              "prices": [{"model": "m", "uncached_input": "0.10", "output": "9"}]}]  # fmt: skip
    declare(api, {**content(), "cost_cards": costs})
    insert(warehouse, *shared_prefix())
    close_period(book, UsageReader(warehouse), PERIOD, datetime.now(UTC), early=True)
    assert api.post("/v1/invoices/review", json={"invoice": "acme/2026-11"}).json()["reviewed_at"]
    wanted = {"period": PERIOD, "reviewed_only": True}
    assert [row["tenant"] for row in api.post("/v1/invoices/finalize", json=wanted).json()["finalized"]] == ["acme"]
    assert api.get("/v1/verify?invoice=INV-000001").json()["proven"] is True
    explained = api.get("/v1/explain?invoice=INV-000001&line=1").json()
    assert (explained["agrees"], explained["events"][0]["event_id"]) == (True, "a")
    margins = {row["name"]: row for row in api.get(f"/v1/margins?period={PERIOD}&by=model").json()["margins"]}
    assert margins["m"]["negative"] is True
    refused = api.post("/v1/invoices/credit", json={"number": "INV-000001", "reason": "x", "amount": "a lot"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_amount")
    given = api.post("/v1/invoices/credit", json={"number": "INV-000001", "reason": "x", "amount": "0.01"})
    assert (given.status_code, given.json()["total_minor"]) == (201, "-1")
    assert [note["number"] for note in api.get("/v1/credit-notes").json()] == ["CN-000001"]
    voided = api.post("/v1/invoices/void", json={"number": "INV-000001", "reason": "address"}).json()
    assert (voided["status"], voided["void_reason"]) == ("void", "address")
    assert api.post("/v1/invoices/void", json={"number": "INV-000001", "reason": "x"}).status_code == 409


def test_the_process_publishes_what_is_declared_and_stops_cleanly(
    settings: BillingSettings, book: Engine, api: httpx.Client, tmp_path: Path
) -> None:
    declare(api, {**content(), "budgets": [{"id": f"b{time.time_ns()}", "tenant": "berlin", "limit": "1"}]})
    port = free_port()
    environment = {
        **os.environ,
        "TAXIMETER_DATABASE_URL": settings.database_url,
        "TAXIMETER_CLICKHOUSE_URL": settings.clickhouse_url,
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
        "TAXIMETER_ADMIN_TOKEN": TOKEN,
        "TAXIMETER_BILLING_PORT": str(port),
    }
    with (tmp_path / "service.log").open("wb") as log:
        service = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "taximeter_billing.service"], env=environment, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while not _is_ready(port):
            assert service.poll() is None and time.monotonic() < deadline, (tmp_path / "service.log").read_text()
            time.sleep(0.05)
        follower = ControlFollower(settings.kafka_bootstrap_servers)
        follower.start()
        assert {"acme", "berlin", "globex"} <= set(follower.snapshot().tenants)
        follower.stop()
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
    finally:
        service.kill()
        service.wait()


def test_the_process_does_not_start_without_a_token() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAXIMETER_")}
    done = subprocess.run(
        [sys.executable, "-m", "taximeter_billing.service"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "TAXIMETER_ADMIN_TOKEN is not set" in done.stderr


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
