"""Usage into Stripe's billing meters: once each, whatever is cut off; v1 on the double, v2 judged by the published contract."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import stripe
import uvicorn
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from taximeter.embedded.ports import free_port
from taximeter_billing.payments import stripe_client
from taximeter_billing.payments.double.store import Store
from taximeter_billing.payments.errors import StripeRefusedError
from taximeter_billing.payments.meter_corrections import Journal, TakenBack, cancel
from taximeter_billing.payments.meter_events import Cursor, MeteredUsage, identifier, send_v1, send_v2
from tests.double_process import judged_double
from tests.stripe_contract import operation

AT = datetime(2026, 11, 10, 12, tzinfo=UTC)


def usage(count: int, cursor: Cursor) -> list[MeteredUsage]:
    """Of that many events, those behind the cursor."""
    first = int(cursor.read() or 0)
    return [
        MeteredUsage(f"event-{number}", "tokens", "cus_1", number, AT, str(number + 1))
        for number in range(first, count)
    ]


def test_an_id_that_is_too_long_is_hashed() -> None:
    assert identifier("a" * 100) == "a" * 100
    assert len(identifier("a" * 101)) == 64 and identifier("a" * 101) != identifier("a" * 102)


@pytest.mark.parametrize("fault", ["lost", "500"])
def test_v1_sends_each_once_and_goes_on_where_it_was_cut_off(tmp_path: Path, fault: str) -> None:
    cursor = Cursor(tmp_path / "cursor")
    with judged_double(tmp_path / "stripe.db") as found:
        client = stripe_client("sk_test_1", found.url, retries=0)
        assert send_v1(client, usage(2, cursor), cursor) == 2
        found.double.plan_faults({"POST /v1/billing/meter_events": [fault]})
        with pytest.raises(StripeRefusedError):
            send_v1(client, usage(5, cursor), cursor)
        assert cursor.read() == "2"
        assert send_v1(client, usage(5, cursor), cursor) == 3
        assert send_v1(client, usage(5, cursor), cursor) == 0
        assert found.problems == []


class Stream:
    """Stripe's v2 meter event session and stream. Every session but the last opened has expired."""

    def __init__(self) -> None:
        self.sessions = 0
        self.sizes: list[int] = []
        self.events: dict[str, int] = {}
        self.problems: list[str] = []
        self.expire_next = False

    async def session(self, _request: Request) -> JSONResponse:
        self.sessions += 1
        body = {
            "object": "v2.billing.meter_event_session",
            "id": f"mes_{self.sessions}",
            "authentication_token": f"token_{self.sessions}",
            "created": "2026-11-10T12:00:00.000Z",
            "expires_at": "2026-11-10T12:15:00.000Z",
            "livemode": False,
        }
        self._judge(body, "/v2/billing/meter_event_session", ("responses", "200"))
        return JSONResponse(body)

    async def stream(self, request: Request) -> JSONResponse:
        body = json.loads(await request.body())
        self._judge(body, "/v2/billing/meter_event_stream", ("requestBody",))
        if self.expire_next or request.headers["authorization"] != f"Bearer token_{self.sessions}":
            self.expire_next = False
            error = {
                "type": "temporary_session_expired",
                "code": "billing_meter_event_session_expired",
                "message": "expired",
            }
            return JSONResponse({"error": error}, 401)
        self.sizes.append(len(body["events"]))
        for event in body["events"]:
            self.events.setdefault(event["identifier"], int(event["payload"]["value"]))
        return JSONResponse({})

    async def adjust(self, request: Request) -> JSONResponse:
        body = json.loads(await request.body())
        self._judge(body, "/v2/billing/meter_event_adjustments", ("requestBody",))
        name = body["cancel"]["identifier"]
        if self.events.pop(name, None) is None:
            error = {"type": "invalid_request", "code": "invalid_cancel_configuration", "message": f"{name} is gone"}
            return JSONResponse({"error": error}, 400)
        made = {
            "object": "v2.billing.meter_event_adjustment",
            "id": f"mea_{name}",
            "cancel": body["cancel"],
            "created": "2026-11-10T12:00:00.000Z",
            "event_name": body["event_name"],
            "livemode": False,
            "status": "pending",
            "type": "cancel",
        }
        self._judge(made, "/v2/billing/meter_event_adjustments", ("responses", "200"))
        return JSONResponse(made)

    def _judge(self, body: Any, path: str, where: tuple[str, ...]) -> None:
        found: Any = operation("POST", path)
        for name in where:
            found = found[name]
        schema = found["content"]["application/json"]["schema"]
        if "$ref" not in json.dumps(schema):
            self.problems += [error.message for error in Draft202012Validator(schema).iter_errors(body)]


@pytest.fixture
def stream() -> Iterator[tuple[Stream, str]]:
    found, port = Stream(), free_port()
    routes = [
        Route("/v2/billing/meter_event_session", found.session, methods=["POST"]),
        Route("/v2/billing/meter_event_stream", found.stream, methods=["POST"]),
        Route("/v2/billing/meter_event_adjustments", found.adjust, methods=["POST"]),
    ]
    config = uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=port, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    yield found, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(60)


def test_v2_sends_in_batches_and_opens_an_expired_session_anew(stream: tuple[Stream, str], tmp_path: Path) -> None:
    found, url = stream
    cursor = Cursor(tmp_path / "cursor")
    client: stripe.StripeClient = stripe_client("sk_test_1", url, retries=0)
    assert send_v2(client, usage(150, cursor), cursor, url) == 150
    found.expire_next = True
    assert send_v2(client, usage(250, cursor), cursor, url) == 100
    assert found.sizes == [100, 50, 100]
    assert found.events == {f"event-{number}": number for number in range(250)}
    assert cursor.read() == "250"
    assert found.problems == []


@pytest.mark.parametrize("fault", ["lost", "500"])
def test_v1_cancels_each_once_and_tells_what_stripe_refuses(tmp_path: Path, fault: str) -> None:
    cursor, journal = Cursor(tmp_path / "cursor"), Journal(tmp_path / "journal")
    sent = usage(3, cursor)
    with judged_double(tmp_path / "stripe.db") as found:
        client = stripe_client("sk_test_1", found.url, retries=0)
        send_v1(client, sent, cursor)
        found.double.plan_faults({"POST /v1/billing/meter_event_adjustments": [fault]})
        if fault == "lost":
            with pytest.raises(StripeRefusedError):
                cancel(client, sent[1:], journal)
        # An answer that was lost is asked for again; a failure, which Stripe keeps under its key, once under another one.
        again = {one.event_id: one.outcome for one in cancel(client, sent[1:], Journal(tmp_path / "journal"))}
        assert again == {"event-1": "cancelled", "event-2": "cancelled"}
        store = Store(tmp_path / "stripe.db")
        old = store.get("mtr_event-0", "meter_event")
        assert old is not None
        store.put({**old, "created": old["created"] - 25 * 3600}, "meter_event")
        journal = Journal(tmp_path / "journal")
        refused = TakenBack("event-0", 0, "stands", "The event with identifier event-0 can no longer be cancelled.")
        assert cancel(client, sent[:1], journal) == [refused]
        assert cancel(client, sent, journal) == []
        assert Journal(tmp_path / "journal").standing == [refused]
        assert found.problems == []


def test_v2_cancels_too(stream: tuple[Stream, str], tmp_path: Path) -> None:
    found, url = stream
    cursor, journal = Cursor(tmp_path / "cursor"), Journal(tmp_path / "journal")
    client: stripe.StripeClient = stripe_client("sk_test_1", url, retries=0)
    sent = usage(2, cursor)
    send_v2(client, sent, cursor, url)
    assert [one.outcome for one in cancel(client, sent[:1], journal, stream=True)] == ["cancelled"]
    found.events.clear()
    assert [one.outcome for one in cancel(client, sent, journal, stream=True)] == ["stands"]
    assert found.problems == []


def test_a_journal_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    Journal(file).note(TakenBack("a", 1, "not sent"))
    file.write_text(file.read_text() + '\n{"event_id": "b", "val')
    journal = Journal(file)
    assert "a" in journal and "b" not in journal
    journal.note(TakenBack("b", 2, "stands", "too late"))
    assert Journal(file).standing == [TakenBack("b", 2, "stands", "too late")]
