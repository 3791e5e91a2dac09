"""The double as Stripe's clients see it: refusals in Stripe's shape, keys, credit notes, events and signed webhooks."""

import http.server
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe

from taximeter_billing.payments import push_invoice, stripe_client
from taximeter_billing.payments.double.deliveries import signature
from taximeter_billing.payments.errors import WebhookRefusedError
from taximeter_billing.payments.push import API_VERSION
from taximeter_billing.payments.webhooks import StripeEvent, read_event
from tests.contract.test_stripe_contract import invoice
from tests.double_process import JudgedDouble, judged_double
from tests.stripe_contract import specification

TOKEN = {"Authorization": "Bearer sk_test_1"}


@pytest.fixture
def double(tmp_path: Path) -> Iterator[JudgedDouble]:
    with judged_double(tmp_path / "stripe.db") as found:
        yield found
        assert found.problems == []


@pytest.fixture
def client(double: JudgedDouble) -> stripe.StripeClient:
    return stripe_client("sk_test_1", double.url, retries=0)


def test_we_speak_the_version_that_the_contract_describes() -> None:
    assert specification()["info"]["version"] == API_VERSION


@pytest.mark.parametrize(
    ("method", "path", "form", "status", "code"),
    [
        ("GET", "/v1/invoices/in_none", "", 404, "resource_missing"),
        ("GET", "/v1/invoices?limit=0", "", 400, None),
        ("GET", "/v1/invoices?limit=many", "", 400, "parameter_invalid_integer"),
        ("GET", "/v1/invoices?starting_after=in_none", "", 404, "resource_missing"),
        ("GET", "/v1/invoices/search?query=total>5", "", 400, None),
        ("POST", "/v1/invoices", "customer=cus_none", 404, "resource_missing"),
        ("POST", "/v1/customers", "[name]=x", 400, "parameter_unknown"),
        ("POST", "/v1/customers", "name=x&name[y]=z", 400, "parameter_unknown"),
        ("POST", "/v1/customers", f"metadata[{'k' * 41}]=v", 400, None),
        ("POST", "/v1/customers", f"metadata[k]={'v' * 501}", 400, None),
        ("POST", "/v1/customers", "metadata=word", 400, None),
        ("POST", "/v1/webhook_endpoints", "url=ftp://x&enabled_events[]=*", 400, "url_invalid"),
        ("POST", "/v1/credit_notes", "invoice=in_none&amount=1", 404, "resource_missing"),
    ],
)
def test_what_is_wrong_is_refused_in_stripes_shape(
    double: JudgedDouble, method: str, path: str, form: str, status: int, code: str | None
) -> None:
    answer = httpx.request(method, double.url + path, content=form, headers=TOKEN)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"].get("code") == code


@pytest.mark.parametrize("authorization", [None, "Bearer sk_live_1", "Bearer", "Basic !", "Digest sk_test_1"])
def test_only_test_keys_are_let_in(double: JudgedDouble, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = httpx.get(f"{double.url}/v1/customers", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "api_key_invalid")


def test_a_key_as_curl_sends_it(double: JudgedDouble) -> None:
    assert httpx.get(f"{double.url}/v1/customers", auth=("sk_test_1", "")).json()["data"] == []


def test_an_address_that_stripe_does_not_have(double: JudgedDouble) -> None:
    assert httpx.get(f"{double.url}/v2/bills", headers=TOKEN).json()["error"]["type"] == "invalid_request_error"


def post(double: JudgedDouble, path: str, form: dict[str, str], key: str) -> httpx.Response:
    return httpx.post(double.url + path, data=form, headers=TOKEN | {"Idempotency-Key": key}, timeout=60)


def test_the_same_key_says_the_same_again_and_says_so(double: JudgedDouble) -> None:
    first = post(double, "/v1/customers", {"name": "a", "email": "a@b.example"}, "k")
    again = post(double, "/v1/customers", {"email": "a@b.example", "name": "a"}, "k")
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.json() == again.json()
    assert first.headers["Idempotency-Key"] == "k"


@pytest.mark.parametrize(("path", "form"), [("/v1/customers", {"name": "b"}), ("/v1/webhook_endpoints", {"name": "a"})])
def test_the_same_key_with_another_request_is_refused(double: JudgedDouble, path: str, form: dict[str, str]) -> None:
    post(double, "/v1/customers", {"name": "a"}, "k")
    refused = post(double, path, form, "k")
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "idempotency_error")


def test_a_failure_is_kept_too_until_the_key_is_forgotten(double: JudgedDouble) -> None:
    double.double.plan_faults({"POST /v1/customers": ["500"]})
    answers = [post(double, "/v1/customers", {"name": "a"}, "k") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [500, 500]
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    double.double.forget_keys()
    assert post(double, "/v1/customers", {"name": "a"}, "k").status_code == 200


def test_a_key_in_use_is_a_conflict_and_then_the_answer(double: JudgedDouble) -> None:
    double.double.plan_faults({"POST /v1/customers": ["stall"]})
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, double, "/v1/customers", {"name": "a"}, "k")
        deadline = time.monotonic() + 60
        while not double.double.calls["POST /v1/customers"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        conflict = post(double, "/v1/customers", {"name": "a"}, "k")
        assert (conflict.status_code, conflict.json()["error"]["type"]) == (409, "idempotency_error")
        made = first.result(60)
    assert post(double, "/v1/customers", {"name": "a"}, "k").json() == made.json()


def test_metadata_is_merged_and_taken_away(client: stripe.StripeClient) -> None:
    made = client.v1.customers.create({"metadata": {"a": "1", "b": "2"}})
    client.v1.customers.update(made.id, {"metadata": {"a": "", "0": "3"}})
    assert client.v1.customers.retrieve(made.id).to_dict()["metadata"] == {"b": "2", "0": "3"}
    client.v1.customers.update(made.id, {"metadata": ""})
    assert client.v1.customers.retrieve(made.id).to_dict()["metadata"] == {}


def test_only_drafts_are_deleted_and_only_open_invoices_move(client: stripe.StripeClient) -> None:
    pushed = push_invoice(client, invoice(100))
    with pytest.raises(stripe.InvalidRequestError, match="finalized"):
        client.v1.invoices.delete(pushed.stripe_invoice_id)
    assert client.v1.invoices.pay(pushed.stripe_invoice_id).amount_paid == 100
    for move in (client.v1.invoices.void_invoice, client.v1.invoices.pay, client.v1.invoices.mark_uncollectible):
        with pytest.raises(stripe.InvalidRequestError, match="paid"):
            move(pushed.stripe_invoice_id)


def test_an_invoice_without_lines_or_below_zero_is_not_finalized(client: stripe.StripeClient) -> None:
    customer = client.v1.customers.create({"name": "a"})
    draft = client.v1.invoices.create({"customer": customer.id, "currency": "usd"})
    with pytest.raises(stripe.InvalidRequestError, match="without lines"):
        client.v1.invoices.finalize_invoice(draft.id)
    client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": -5, "description": "back"}]})
    with pytest.raises(stripe.InvalidRequestError, match="negative"):
        client.v1.invoices.finalize_invoice(draft.id)


def test_credit_notes_before_and_after_payment(client: stripe.StripeClient) -> None:
    open_id = push_invoice(client, invoice(100)).stripe_invoice_id
    client.v1.credit_notes.create({"invoice": open_id, "amount": 30})
    assert client.v1.invoices.retrieve(open_id).amount_remaining == 70
    client.v1.credit_notes.create({"invoice": open_id, "amount": 70})
    assert client.v1.invoices.retrieve(open_id).status == "paid"
    with pytest.raises(stripe.InvalidRequestError, match="0 left"):
        client.v1.credit_notes.create({"invoice": open_id, "amount": 1, "credit_amount": 1})

    paid_id = push_invoice(client, invoice(100, number="INV-000002")).stripe_invoice_id
    client.v1.invoices.pay(paid_id)
    with pytest.raises(stripe.InvalidRequestError, match="what goes back"):
        client.v1.credit_notes.create({"invoice": paid_id, "amount": 40})
    note = client.v1.credit_notes.create({"invoice": paid_id, "amount": 40, "credit_amount": 40})
    assert (note.type, note.post_payment_amount) == ("post_payment", 40)
    assert client.v1.credit_notes.retrieve(note.id).amount == 40
    assert [one.id for one in client.v1.credit_notes.list({"invoice": paid_id}).data] == [note.id]


class Receiver(http.server.BaseHTTPRequestHandler):
    """A webhook receiver that fails the first delivery of each event, as real ones do at times."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        server.deliveries.append((body, self.headers["Stripe-Signature"]))
        self.send_response(500 if server.fail else 204)
        server.fail = not server.fail
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.deliveries, server.fail = [], True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(30)


def test_events_reach_an_endpoint_signed_until_they_are_taken(client: stripe.StripeClient, receiver: Any) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/"
    endpoint = client.v1.webhook_endpoints.create({"url": url, "enabled_events": ["invoice.finalized", "invoice.paid"]})
    assert endpoint.secret is not None
    pushed = push_invoice(client, invoice(100))
    client.v1.invoices.pay(pushed.stripe_invoice_id)
    deadline = time.monotonic() + 60
    while len(receiver.deliveries) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    events = [read_event(body, header, endpoint.secret) for body, header in receiver.deliveries]
    assert [event.kind for event in events] == ["invoice.finalized"] * 2 + ["invoice.paid"] * 2
    assert len({event.id for event in events}) == 2  # each came twice; the id tells
    assert {(event.invoice_number, event.tenant, event.live) for event in events} == {("INV-000001", "acme", False)}
    assert [event.status for event in events] == ["open", "open", "paid", "paid"]
    listed = client.v1.events.list({"type": "invoice.paid"}).data
    assert [one.id for one in listed] == [events[-1].id]
    assert client.v1.events.retrieve(events[-1].id).type == "invoice.paid"


EVENT = b'{"id":"evt_1","object":"event","type":"invoice.paid","created":1,"livemode":false,"data":{"object":{"id":"in_1"}}}'


def test_a_signed_event_is_read() -> None:
    event = read_event(EVENT, signature(EVENT, "whsec_1", int(time.time())), "whsec_1")
    assert event == StripeEvent("evt_1", "invoice.paid", 1, False, "in_1", None, None, None)


@pytest.mark.parametrize(
    ("body", "header", "secret"),
    [
        (EVENT, "t={now},v1=00", "whsec_1"),  # another signature
        (EVENT, "", "whsec_1"),
        (EVENT, "nonsense", "whsec_1"),
        (EVENT, "{old}", "whsec_1"),  # signed an hour ago
        (EVENT + b" ", "{good}", "whsec_1"),  # one byte more
        (EVENT, "{good}", "whsec_2"),
        (EVENT, "{good}", ""),
        (b"[1]", "{itself}", "whsec_1"),
        (b"{}", "{itself}", "whsec_1"),
        (b"no json", "{itself}", "whsec_1"),
        (b'{"id":"evt_1","object":"event","type":"a.b"}', "{itself}", "whsec_1"),
    ],
)
def test_a_webhook_that_is_not_to_be_believed(body: bytes, header: str, secret: str) -> None:
    now = int(time.time())
    signed = header.format(
        now=now,
        good=signature(EVENT, "whsec_1", now),
        old=signature(EVENT, "whsec_1", now - 3600),
        itself=signature(body, "whsec_1", now),
    )
    with pytest.raises(WebhookRefusedError):
        read_event(body, signed, secret)
