"""Pushing to Stripe when things go wrong: pushers that die, a double that is killed, search that lags, strange hands."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stripe

from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.stack import answers
from taximeter.embedded.tether import tethered_command
from taximeter_billing.payments import PushInvoice, PushLine, PushResult, push, push_invoice, stripe_client
from taximeter_billing.payments.errors import (
    DuplicateInvoiceError,
    LinesMismatchError,
    MissingKeyError,
    StripeRefusedError,
    TotalMismatchError,
)
from taximeter_billing.payments.push import API_VERSION
from taximeter_billing.payments.reconcile import differences
from tests.contract.test_stripe_contract import invoice
from tests.double_process import JudgedDouble, judged_double

WRITES = (
    "POST /v1/customers",
    "POST /v1/customers/{id}",
    "POST /v1/invoices",
    "POST /v1/invoices/{id}/add_lines",
    "POST /v1/invoices/{id}/finalize",
    "POST /v1/invoices/{id}/send",
    "POST /v1/invoices/{id}",
)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[JudgedDouble]:
    with judged_double(tmp_path / "stripe.db") as found:
        yield found
        assert found.problems == []


@pytest.fixture
def client(double: JudgedDouble) -> stripe.StripeClient:
    return stripe_client("sk_test_1", double.url, retries=0)


def of(tenant: str, *amounts: int) -> PushInvoice:
    """An invoice of a tenant of its own, so that many cases share one double."""
    return replace(invoice(*amounts, number=f"INV-{tenant}"), tenant=tenant)


def in_stripe(client: stripe.StripeClient, tenant: str) -> list[stripe.Invoice]:
    """All invoices of a tenant."""
    return [
        one
        for one in client.v1.invoices.list({"limit": 100}).auto_paging_iter()
        if one.metadata is not None and one.metadata["taximeter_tenant"] == tenant
    ]


def require_one(client: stripe.StripeClient, wanted: PushInvoice, result: PushResult) -> None:
    """The tenant has one customer and one invoice, and that is the right one."""
    assert [one.id for one in in_stripe(client, wanted.tenant)] == [result.stripe_invoice_id]
    customers = [
        one.id
        for one in client.v1.customers.list({"limit": 100}).auto_paging_iter()
        if one.metadata is not None and one.metadata["taximeter_tenant"] == wanted.tenant
    ]
    assert customers == [result.customer_id]
    assert differences(client, wanted, result.stripe_invoice_id) == []


class _DeathError(BaseException):
    """The pusher dies here; no code of its own runs on."""


class MortalClient(stripe.RequestsClient):
    """An HTTP client whose process dies at one request: before it is sent, or when its effect is there."""

    def __init__(self, lives: int, after: bool) -> None:
        super().__init__()
        self._lives = lives
        self._after = after

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, **options: Any
    ) -> Any:
        """Send it, unless it is the last."""
        self._lives -= 1
        if self._lives < 0 and not self._after:
            raise _DeathError
        answer = super().request(method, url, headers, post_data, **options)
        if self._lives < 0:
            raise _DeathError
        return answer


def mortal(double: JudgedDouble, lives: int, after: bool) -> stripe.StripeClient:
    """A client that dies at its request number `lives`."""
    http_client = MortalClient(lives, after)
    addresses: Any = {"api": double.url}
    return stripe.StripeClient(
        "sk_test_1",
        base_addresses=addresses,
        http_client=http_client,
        stripe_version=API_VERSION,
        max_network_retries=0,
    )


@pytest.mark.parametrize("search_lags", [False, True], ids=["search is current", "search lags"])
def test_a_pusher_that_dies_at_any_request_is_followed_by_one_right_invoice(
    double: JudgedDouble, client: stripe.StripeClient, search_lags: bool
) -> None:
    double.double.pause_search(search_lags)
    deaths, alive = 0, False
    while not alive:
        wanted = of(f"tenant-{deaths}", *range(1, 121))
        for after in (False, True):
            try:
                push_invoice(mortal(double, deaths, after), wanted, send=True)
                alive = True
            except _DeathError:
                double.double.forget_keys()  # the next try comes a day later
        result = push_invoice(client, wanted, send=True)
        again = push_invoice(client, wanted, send=True)
        assert again == replace(result, created=False)
        require_one(client, wanted, result)
        deaths += 1
    assert deaths > len(WRITES)


@pytest.mark.parametrize("fault", ["lost", "cut", "500", "500-after", "503", "429", "409"])
def test_any_fault_at_any_write_ends_with_one_right_invoice(
    double: JudgedDouble, client: stripe.StripeClient, fault: str
) -> None:
    double.double.pause_search(True)
    for place, step in enumerate(WRITES):
        wanted = of(f"tenant-{place}", 5, 6)
        double.double.plan_faults({step: [fault, fault]})
        with pytest.raises(StripeRefusedError):
            push_invoice(client, wanted, send=True)
        with suppress(StripeRefusedError):  # the second fault strikes where the first left the step undone
            push_invoice(client, wanted, send=True)
        result = push_invoice(client, wanted, send=True)
        require_one(client, wanted, result)


class TimingOut(stripe.RequestsClient):
    """An HTTP client whose answer to one of the calls of a step does not come in time; the effect is there, or not."""

    def __init__(self, step: str, number: int, after: bool) -> None:
        super().__init__()
        self._step, self._left, self._after = step, number, after

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, **options: Any
    ) -> Any:
        """Send it, and time out where it is the one."""
        if url.endswith(self._step):
            self._left -= 1
            if self._left == 0:
                if self._after:
                    super().request(method, url, headers, post_data, **options)
                raise stripe.APIConnectionError("Request timed out")  # type: ignore[no-untyped-call]
        return super().request(method, url, headers, post_data, **options)


@pytest.mark.parametrize("after", [False, True], ids=["nothing was done", "it was done"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["at once", "a day later"])
def test_a_time_out_at_the_third_of_ten_chunks_adds_each_line_once(
    double: JudgedDouble, client: stripe.StripeClient, monkeypatch: pytest.MonkeyPatch, after: bool, forgotten: bool
) -> None:
    monkeypatch.setattr(push, "CHUNK_LINES", 12)
    wanted = of("acme", *range(1, 121))
    slow = stripe.StripeClient(
        "sk_test_1", base_addresses={"api": double.url}, http_client=TimingOut("/add_lines", 3, after),
        stripe_version=API_VERSION, max_network_retries=0,
    )  # fmt: skip
    with pytest.raises(StripeRefusedError, match="timed out"):
        push_invoice(slow, wanted)
    (draft,) = in_stripe(client, "acme")
    lines = list(client.v1.invoices.line_items.list(draft.id, {"limit": 100}).auto_paging_iter())
    assert (draft.status, len(lines)) == ("draft", 36 if after else 24)
    if forgotten:
        double.double.forget_keys()
    require_one(client, wanted, push_invoice(client, wanted))
    assert double.double.calls["POST /v1/invoices/{id}/add_lines"] == 10


def test_what_passes_by_itself_is_waited_for(double: JudgedDouble, client: stripe.StripeClient) -> None:
    double.double.plan_faults({"POST /v1/invoices": ["429", "cut", "503", "lost"]})
    waited: list[float] = []
    result = push_invoice(client, of("acme", 5), tries_max=5, wait=waited.append)
    assert waited == [1, 2, 4, 8]
    require_one(client, of("acme", 5), result)


def test_a_refusal_that_does_not_pass_is_not_waited_for(client: stripe.StripeClient) -> None:
    waited: list[float] = []
    wrong = replace(of("acme", 5), number="x" * 27)
    with pytest.raises(StripeRefusedError, match="26 characters"):
        push_invoice(client, wrong, tries_max=5, wait=waited.append)
    assert waited == []


def test_several_pushers_at_once_make_one_invoice(double: JudgedDouble) -> None:
    double.double.pause_search(True)
    double.double.plan_faults({step: ["stall"] for step in WRITES[2:5]})
    wanted = of("acme", *range(1, 151))
    with ThreadPoolExecutor(4) as pool:
        pushes = [pool.submit(push_invoice, stripe_client("sk_test_1", double.url), wanted) for _ in range(4)]
        results = [push.result(120) for push in pushes]
    assert len({result.stripe_invoice_id for result in results}) == 1
    assert sum(result.created for result in results) == 1
    require_one(stripe_client("sk_test_1", double.url), wanted, results[0])


def test_an_invoice_is_sent_once(double: JudgedDouble, client: stripe.StripeClient) -> None:
    push_invoice(client, of("acme", 5))
    for _ in range(2):
        push_invoice(client, of("acme", 5), send=True)
        double.double.forget_keys()
    assert len(client.v1.events.list({"type": "invoice.sent"}).data) == 1


def test_who_has_no_address_is_sent_nothing_and_charged_nothing(client: stripe.StripeClient) -> None:
    wanted = replace(of("acme", 5), email=None, tenant_name="")
    result = push_invoice(client, wanted)
    found = client.v1.invoices.retrieve(result.stripe_invoice_id)
    assert (found.collection_method, found.auto_advance, found.status) == ("charge_automatically", False, "open")
    assert client.v1.customers.retrieve(result.customer_id).name == "acme"


def test_a_customer_is_completed_and_never_overwritten(client: stripe.StripeClient) -> None:
    first = push_invoice(client, replace(of("acme", 5), email=None))
    client.v1.customers.update(first.customer_id, {"name": "Acme Limited"})
    second = push_invoice(client, replace(of("acme", 5), number="INV-2", email="new@acme.example"))
    customer = client.v1.customers.retrieve(second.customer_id)
    assert second.customer_id == first.customer_id
    assert (customer.name, customer.email) == ("Acme Limited", "new@acme.example")


def test_names_with_quotes_are_found_again(client: stripe.StripeClient) -> None:
    wanted = of("o'neill\\", 5)
    first = push_invoice(client, wanted)
    assert push_invoice(client, wanted) == replace(first, created=False)


def test_our_number_is_the_invoices_number(client: stripe.StripeClient) -> None:
    result = push_invoice(client, of("acme", 5))
    assert client.v1.invoices.retrieve(result.stripe_invoice_id).number == "INV-acme"


def draft_of(client: stripe.StripeClient, wanted: PushInvoice, number: str | None = None, currency: str = "usd") -> str:
    """A draft of the invoice, as a hand in Stripe's dashboard might leave one."""
    customers = client.v1.customers.list({"limit": 1}).data
    customer = (
        customers[0] if customers else client.v1.customers.create({"metadata": {"taximeter_tenant": wanted.tenant}})
    )
    metadata = {"taximeter_invoice": wanted.number, "taximeter_tenant": wanted.tenant}
    params: Any = {"customer": customer.id, "currency": currency, "metadata": metadata}
    return client.v1.invoices.create(params | ({"number": number} if number else {})).id


def test_a_strange_line_stops_the_push_even_if_the_total_is_right(client: stripe.StripeClient) -> None:
    draft = draft_of(client, of("acme", 5))
    client.v1.invoices.add_lines(draft, {"lines": [{"amount": 7}, {"amount": -7}]})
    with pytest.raises(LinesMismatchError, match="unknown: 7"):
        push_invoice(client, of("acme", 5))
    assert client.v1.invoices.retrieve(draft).status == "draft"


def test_a_draft_in_another_currency_stops_the_push(client: stripe.StripeClient) -> None:
    draft = draft_of(client, of("acme", 5), currency="eur")
    with pytest.raises(TotalMismatchError, match="eur"):
        push_invoice(client, of("acme", 5))
    assert client.v1.invoices.retrieve(draft).total == 0


def test_two_invoices_of_one_number_stop_the_push(client: stripe.StripeClient) -> None:
    drafts = [draft_of(client, of("acme", 5)) for _ in range(2)]
    with pytest.raises(DuplicateInvoiceError):
        push_invoice(client, of("acme", 5))
    client.v1.invoices.delete(drafts[1])
    assert push_invoice(client, of("acme", 5)).stripe_invoice_id == drafts[0]


def test_a_deleted_draft_is_made_anew(double: JudgedDouble, client: stripe.StripeClient) -> None:
    double.double.plan_faults({"POST /v1/invoices/{id}/add_lines": ["429"]})
    with pytest.raises(StripeRefusedError):
        push_invoice(client, of("acme", 5))
    (draft,) = in_stripe(client, "acme")
    client.v1.invoices.delete(draft.id)
    result = push_invoice(client, of("acme", 5))
    assert result.created and result.stripe_invoice_id != draft.id
    require_one(client, of("acme", 5), result)


def test_a_voided_invoice_is_told_and_not_made_again(client: stripe.StripeClient) -> None:
    result = push_invoice(client, of("acme", 5))
    client.v1.invoices.void_invoice(result.stripe_invoice_id)
    assert push_invoice(client, of("acme", 5)) == replace(result, status="void", created=False)
    assert differences(client, of("acme", 5), result.stripe_invoice_id) == ["Stripe's status is void"]


def test_reconciling_names_every_difference(client: stripe.StripeClient) -> None:
    result = push_invoice(client, of("acme", 5, 6))
    other = replace(invoice(5, 7, 8, number="INV-2", currency="EUR"), tenant="other")
    problems = differences(client, other, result.stripe_invoice_id)
    assert [problem.partition(" ")[0] for problem in problems] == ["Stripe's"] * 4 + ["line"] * 2
    fewer = differences(client, of("acme", 5), result.stripe_invoice_id)
    assert "Stripe has a line of 6 (minor units) that is not ours" in fewer


def test_a_long_invoice_keeps_its_details(client: stripe.StripeClient) -> None:
    lines = tuple(PushLine(f"feature-{place % 2}", f"model-{place}", 1) for place in range(400))
    wanted = replace(of("acme"), lines=lines, total_minor=400)
    result = push_invoice(client, wanted)
    first = client.v1.invoices.line_items.list(result.stripe_invoice_id).data[0]
    assert (first.amount, first.metadata["taximeter_feature"]) == (200, "feature-0")
    assert first.metadata["taximeter_detail_01"].startswith("model-0 = 1; model-2 = 1; ")
    require_one(client, wanted, result)


@pytest.mark.parametrize("key", ["", "pk_test_1", "whsec_1"])
def test_something_that_is_no_secret_key_is_refused(key: str) -> None:
    with pytest.raises(MissingKeyError):
        stripe_client(key)


_DIES_FOR_REAL = """
import os, signal, sys
from taximeter_billing.payments import push_invoice, stripe_client
from tests.integration.test_stripe_push import of
class Killed(BaseException): ...
client = stripe_client("sk_test_1", sys.argv[1])
add = client.v1.invoices.add_lines
def last_words(*arguments):
    add(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
client.v1.invoices.add_lines = last_words
push_invoice(client, of("acme", *range(1, 151)))
"""


@contextmanager
def running(data: Path, port: int) -> Iterator[None]:
    """The double as a process of its own; in the end it is killed, not stopped."""
    module = [
        sys.executable,
        "-m",
        "taximeter_billing.payments.double",
        "--port",
        str(port),
        "--data",
        str(data / "s.db"),
    ]
    child = ChildProcess("stripe", tethered_command(module), {}, data / "double.log")
    child.start()
    deadline = time.monotonic() + 60
    while not answers(f"http://127.0.0.1:{port}/healthz"):
        assert child.running and time.monotonic() < deadline, child.log_tail()
        time.sleep(0.05)
    try:
        yield
    finally:
        child.signal(signal.SIGKILL)
        child.wait()


def test_pusher_and_double_are_killed_for_real(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    root = Path(__file__).parents[2]
    with running(tmp_path, port):
        command = [sys.executable, "-c", _DIES_FOR_REAL, url]
        died = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False, timeout=120)
        assert died.returncode == -signal.SIGKILL
    with running(tmp_path, port):
        client = stripe_client("sk_test_1", url)
        wanted = of("acme", *range(1, 151))
        assert [one.status for one in in_stripe(client, "acme")] == ["draft"]
        require_one(client, wanted, push_invoice(client, wanted))
