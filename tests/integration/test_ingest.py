"""POST /v1/events: every status, every shape, and the real process from start to SIGTERM."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from taximeter.embedded.ports import free_port
from taximeter_producers import UsageProducer
from taximeter_producers.ingest.app import build_app
from taximeter_producers.ingest.settings import IngestSettings
from taximeter_schemas import wire
from tests.topic_reader import read_topic
from tests.usage_events import usage

SECONDS_MAX = 60.0
NOWHERE = "127.0.0.1:1"
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}
BATCH = {"content-type": "application/cloudevents-batch+json"}
PLAIN = {"content-type": "application/json"}


class Ingest:
    """The application over a producer whose broker is away: what it takes is safe in the spool."""

    def __init__(self, folder: Path, spool_bytes_max: int = 1_000_000, **settings: Any) -> None:
        self._settings = IngestSettings.model_validate({"state_dir": folder} | settings)
        self.producer = UsageProducer(
            bootstrap_servers=NOWHERE, producer_id="ingest", spool_dir=folder, spool_bytes_max=spool_bytes_max
        )
        self._app = build_app(self._settings, self.producer)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://ingest") as client:
                return await client.request(method, path, content=body, headers=headers)

        return asyncio.run(send())

    def post(self, value: Any, headers: dict[str, str]) -> httpx.Response:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", "/v1/events", body, headers)


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    service = Ingest(tmp_path)
    yield service
    service.producer.close()


def statuses(response: httpx.Response) -> list[tuple[str | None, str]]:
    return [(result.get("id"), result["status"]) for result in response.json()["results"]]


@pytest.mark.parametrize(
    ("body", "headers", "taken"),
    [
        (usage("a"), STRUCTURED, ["a"]),
        ([usage("a"), usage("b")], BATCH, ["a", "b"]),
        ([], BATCH, []),
        (usage("a"), PLAIN, ["a"]),
        ([usage("a"), usage("b")], PLAIN, ["a", "b"]),
        (usage("a") | {"traceparent": "00-1"}, STRUCTURED, ["a"]),  # extension attributes are tolerated
    ],
)
def test_every_shape_is_taken(ingest: Ingest, body: Any, headers: dict[str, str], taken: list[str]) -> None:
    response = ingest.post(body, headers)
    assert response.status_code == 202
    assert statuses(response) == [(name, "accepted") for name in taken]
    assert bool(ingest.producer.state().spool_bytes) == bool(taken)
    assert ingest.producer.state().unsafe == 0


def test_binary_mode_has_the_attributes_in_headers(ingest: Ingest) -> None:
    event = usage("a")
    attributes = {f"ce-{name}": value for name, value in event.items() if name != "data"}
    response = ingest.post(event["data"], PLAIN | attributes | {"ce-source": "svc%2Fa"})
    assert response.status_code == 202
    assert ingest.post(event | {"source": "svc/a"}, STRUCTURED).json()["results"][0]["status"] == "duplicate"


def test_the_place_in_a_trace_goes_on_with_the_event(ingest: Ingest, tmp_path: Path) -> None:
    structured, binary = (f"00-{digit * 32}-{digit * 16}-01" for digit in "ab")
    assert ingest.post(usage("a") | {"traceparent": structured}, STRUCTURED).status_code == 202
    event = usage("b") | {"traceparent": binary}
    headers = {f"ce-{name}": value for name, value in event.items() if name != "data"}
    assert ingest.post(event["data"], PLAIN | headers).status_code == 202
    spooled = b"".join(path.read_bytes() for path in tmp_path.rglob("*.seg"))
    assert all(b'"traceparent":"%b"' % place.encode() in spooled for place in (structured, binary))


def test_a_duplicate_is_a_success_and_another_body_is_passed_on(ingest: Ingest) -> None:
    assert statuses(ingest.post(usage("a"), STRUCTURED)) == [("a", "accepted")]
    again = ingest.post(usage("a") | {"time": "2026-11-24T09:00:00Z"}, STRUCTURED)
    assert (again.status_code, statuses(again)) == (202, [("a", "duplicate")])
    conflict = ingest.post(usage("a", tokens={"output": 9}), STRUCTURED)  # the meter rejects it, with a reason
    assert statuses(conflict) == [("a", "accepted")]


def test_some_invalid_events_do_not_hold_up_the_others(ingest: Ingest) -> None:
    response = ingest.post([usage("a"), usage("b", tenant=None), {"id": 7}, 8, usage("c")], BATCH)
    assert response.status_code == 200
    assert statuses(response) == [
        ("a", "accepted"),
        ("b", "invalid"),
        (None, "invalid"),
        (None, "invalid"),
        ("c", "accepted"),
    ]
    assert "data.tenant" in response.json()["results"][1]["error"]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"tenant": None}, "data.tenant"),
        ({"feature": ""}, "data.feature"),
        ({"tokens": {"output": -1}}, "data.tokens.output"),
        ({"tokens": {"output": 10**12}}, "data.tokens.output"),
        ({"tokens": {"output": 1, "total": 2}}, "do not add up"),
        ({"surprise": 1}, "data.surprise"),
    ],
)
def test_all_invalid_is_400_with_the_reason(ingest: Ingest, data: dict[str, Any], named: str) -> None:
    response = ingest.post(usage("a", **data), STRUCTURED)
    assert response.status_code == 400
    assert statuses(response) == [("a", "invalid")]
    assert named in response.json()["results"][0]["error"]
    assert ingest.producer.state().spool_bytes == 0


REFUSED = [
    (b"{", STRUCTURED, 400, "malformed_json"),
    (b"\xff\xfe", PLAIN, 400, "malformed_json"),
    (b"[" * 100_000, BATCH, 400, "malformed_json"),
    (b"", STRUCTURED, 400, "malformed_json"),
    (b"[]", STRUCTURED, 400, "wrong_shape"),
    (b"{}", BATCH, 400, "wrong_shape"),
    (b"3", PLAIN, 400, "wrong_shape"),
    (b"{", PLAIN | {"ce-specversion": "1.0"}, 400, "malformed_json"),
    (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
    (b"{}", {}, 415, "unsupported_media_type"),
    (b"{}", STRUCTURED | {"content-encoding": "gzip"}, 415, "unsupported_encoding"),
    (b" " * 10_000_001, STRUCTURED, 413, "body_too_large"),
    (b"{" + b" " * 1_000_000 + b"}", STRUCTURED, 413, "event_too_large"),
]


@pytest.mark.parametrize(("body", "headers", "status", "code"), REFUSED, ids=lambda value: str(value)[:24])
def test_a_body_that_cannot_be_read(
    ingest: Ingest, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    response = ingest.post(body, headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["message"]


def test_a_large_event_in_a_batch_is_named(ingest: Ingest) -> None:
    large = usage("large", attributes={"x": "y" * 1_000_000})
    response = ingest.post([usage("a"), large], BATCH)
    assert statuses(response) == [("a", "accepted"), ("large", "invalid")]
    assert "1000000 is the limit" in response.json()["results"][1]["error"]


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer ", "secret", "Basic secret"])
def test_a_token_is_asked_for(tmp_path: Path, given: str | None) -> None:
    ingest = Ingest(tmp_path, ingest_token="secret")
    headers = STRUCTURED | ({} if given is None else {"authorization": given})
    refused = ingest.post(usage("a"), headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert ingest.post(usage("a"), STRUCTURED | {"authorization": "Bearer secret"}).status_code == 202
    ingest.producer.close()


def test_a_full_spool_is_503_and_not_ready(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path, spool_bytes_max=3_000, ingest_spool_bytes_max=1)
    assert ingest.request("GET", "/readyz").status_code == 200
    response = ingest.post([usage(f"e{number}") for number in range(20)], BATCH)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "spool_full")
    assert int(response.headers["retry-after"]) > 0
    ingest.producer.flush(SECONDS_MAX)
    assert ingest.request("GET", "/readyz").status_code == 503
    ingest.producer.close()
    closing = ingest.post(usage("new"), STRUCTURED)
    assert (closing.status_code, closing.json()["error"]["code"]) == (503, "closing")


def test_metrics_count_by_status(ingest: Ingest) -> None:
    ingest.post([usage("a"), usage("b", tenant=None)], BATCH)
    ingest.post(usage("a"), STRUCTURED)
    shown = ingest.request("GET", "/metrics").text
    for status in ("accepted", "duplicate", "invalid"):
        assert f'taximeter_ingest_events_total{{status="{status}"}} 1.0' in shown
    assert "taximeter_ingest_spool_bytes" in shown


def test_the_process_delivers_to_the_broker_and_ends_well(bootstrap_servers: str, tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "TAXIMETER_INGEST_PORT": str(port),
        "TAXIMETER_STATE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "taximeter_producers.ingest"]
    log = (tmp_path / "ingest.log").open("wb")
    process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS_MAX, trust_env=False) as client:
            await_answer(client)
            response = client.post("/v1/events", json=[usage("http-1"), usage("http-2")])
            assert (response.status_code, statuses(response)) == (202, [("http-1", "accepted"), ("http-2", "accepted")])
            assert client.get("/healthz").json() == {"status": "alive"}
            assert client.get("/readyz").json()["broker"] == "reachable"
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS_MAX) == 0
    finally:
        process.kill()
        process.wait()
        log.close()
    # Others may have sent garbage to the same topic.
    values = [message.value() or b"" for message in read_topic(bootstrap_servers, "usage.events.v1")]
    arrived = {wire.decode(value).id for value in values if b'"http-' in value}
    assert {"http-1", "http-2"} <= arrived
    assert all(json.loads(line)["service"] == "ingest" for line in (tmp_path / "ingest.log").read_text().splitlines())


def await_answer(client: httpx.Client) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        try:
            ready = client.get("/readyz")
        except httpx.TransportError:
            assert time.monotonic() < deadline
        else:
            assert ready.status_code == 200
            return
        time.sleep(0.05)
