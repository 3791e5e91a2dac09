"""What Stripe tells by webhook, through the billing service's own door: paid, failed, disputed, void, in storms and any order."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe
import uvicorn
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter.embedded.ports import free_port
from taximeter_billing.book import InvoiceRow, open_book, writing
from taximeter_billing.payments import push_invoice, stripe_client
from taximeter_billing.payments.corrections import PushCreditNote, push_credit_note, void_invoice
from taximeter_billing.payments.double.deliveries import signature
from taximeter_billing.payments.errors import NotVoidableError, TotalMismatchError
from taximeter_billing.payments.webhooks import read_event
from taximeter_billing.service.app import build_app
from taximeter_billing.service.sender import ControlSender
from taximeter_billing.service.stripe_webhooks import StripeInbox
from taximeter_billing.settings import BillingSettings
from taximeter_billing.stripe_inbox import handle_waiting, list_events, payments_of, refresh_payment, take_event
from tests.contract.test_stripe_contract import invoice
from tests.double_process import JudgedDouble, judged_double
from tests.waiting import await_true

SECRET, OLD_SECRET = "whsec_new", "whsec_old"
SECONDS_MAX = 60.0


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Desk:
    """A billing service with one pushed invoice, and the double behind it."""

    url: str
    book: Engine
    double: JudgedDouble
    client: stripe.StripeClient
    stripe_id: str

    def payment(self) -> str:
        found = payments_of(self.book, ["INV-acme"])
        return found["INV-acme"].status if found else "unknown"

    def deliver(self, event: Any, secret: str = SECRET, moment: int | None = None) -> httpx.Response:
        body = event if isinstance(event, bytes) else str(event).encode()
        header = signature(body, secret, int(time.time()) if moment is None else moment)
        return httpx.post(f"{self.url}/v1/stripe/webhooks", content=body, headers={"Stripe-Signature": header})

    def told(self) -> list[str]:
        """Every event of the double as it is delivered, oldest first."""
        listed = list(self.client.v1.events.list({"limit": 100}).auto_paging_iter())
        return [str(event) for event in reversed(listed)]

    def await_handled(self) -> None:
        await_true(lambda: list_events(self.book, waiting=True) == [], "every event is handled")


@pytest.fixture
def desk(book_url: str, tmp_path: Path) -> Iterator[Desk]:
    with judged_double(tmp_path / "stripe.db") as double:
        settings = BillingSettings.model_validate(
            {
                "database_url": book_url,
                "admin_token": "token",
                "stripe_url": double.url,
                "stripe_api_key": "sk_test_1",
                "stripe_webhook_secret": f"{OLD_SECRET}, {SECRET}",
            }
        )
        book = open_book(settings.database_url)
        client = stripe_client("sk_test_1", double.url, retries=0)
        result = push_invoice(client, invoice(5, 6, number="INV-acme"))
        with writing(book) as session:
            session.add(_row(result.stripe_invoice_id))
        inbox = StripeInbox(book, settings)
        port = free_port()
        app = build_app(settings, book, ControlSender(book, settings), inbox)
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        await_true(lambda: server.started, "the service started")
        with inbox:
            yield Desk(f"http://127.0.0.1:{port}", book, double, client, result.stripe_invoice_id)
        server.should_exit = True
        thread.join(SECONDS_MAX)
        book.dispose()
        assert double.problems == []


def _row(stripe_id: str) -> InvoiceRow:
    return InvoiceRow(
        tenant="acme", period="2026-10", status="final", number="INV-acme", currency="USD", list_pico=0, savings_pico=0,
        net_pico=0, total_minor=11, document="{}", document_sha256="", drafted_at=now(), finalized_at=now(),
        stripe_invoice_id=stripe_id, stripe_status="open",
    )  # fmt: skip


def listen(desk: Desk) -> None:
    """Let the double deliver by itself from now on."""
    desk.double.double.listen_at(f"{desk.url}/v1/stripe/webhooks", SECRET)


def test_failed_paid_disputed_won(desk: Desk) -> None:
    listen(desk)
    desk.double.double.fail_payment(desk.stripe_id)
    await_true(lambda: desk.payment() == "failed", "the failure is known")
    desk.client.v1.invoices.pay(desk.stripe_id)
    await_true(lambda: desk.payment() == "paid", "the payment is known")
    desk.double.double.dispute(desk.stripe_id)
    await_true(lambda: desk.payment() == "disputed", "the dispute is known")
    with Session(desk.book) as session:
        assert [row.stripe_status for row in session.query(InvoiceRow)] == ["disputed"]
    assert "needs_response" in payments_of(desk.book, ["INV-acme"])["INV-acme"].disputes
    desk.double.double.dispute(desk.stripe_id, "won")
    await_true(lambda: desk.payment() == "paid", "the dispute is over")
    kept = payments_of(desk.book, ["INV-acme"])["INV-acme"]
    assert (kept.paid_minor, kept.remaining_minor, kept.attempts) == (11, 0, 1)


def test_a_storm_in_any_order_ends_at_the_truth(desk: Desk) -> None:
    desk.double.double.fail_payment(desk.stripe_id)
    desk.client.v1.invoices.pay(desk.stripe_id)
    desk.double.double.dispute(desk.stripe_id)
    storm = desk.told() * 5
    random.Random(4).shuffle(storm)
    answers = [desk.deliver(event).json() for event in storm]
    assert sum(answer["new"] for answer in answers) == len(set(storm))
    desk.await_handled()
    assert desk.payment() == "disputed"
    assert len(list_events(desk.book)) == len(set(storm))


def test_void_and_uncollectible_are_reflected(desk: Desk) -> None:
    listen(desk)
    desk.client.v1.invoices.mark_uncollectible(desk.stripe_id)
    await_true(lambda: desk.payment() == "uncollectible", "uncollectible is known")


def test_what_stripe_does_not_answer_is_asked_again_and_holds_up_no_other(desk: Desk) -> None:
    desk.double.double.plan_faults({"GET /v1/invoices/{id}": ["503"] * 2})
    for event in desk.told():
        desk.deliver(event)
    desk.await_handled()
    tried = {row.kind: row.tries for row in list_events(desk.book)}
    assert max(tried.values()) > 1 and tried["customer.created"] == 1
    assert desk.payment() == "open"


def test_events_wait_for_a_service_that_died_after_noting_them(desk: Desk, tmp_path: Path) -> None:
    """Noted by one life of the service, handled by the next."""
    book = open_book(f"sqlite:///{tmp_path / 'other.db'}")
    with writing(book) as session:
        session.add(_row(desk.stripe_id))
    desk.client.v1.invoices.pay(desk.stripe_id)
    body = desk.told()[-1].encode()
    event = read_event(body, signature(body, SECRET, int(time.time())), SECRET)
    assert take_event(book, event, now())
    assert not take_event(book, event, now())
    handled = handle_waiting(book, desk.client, now)
    assert [one.outcome for one in handled] == ["INV-acme is paid"]
    assert handle_waiting(book, desk.client, now) == []
    book.dispose()


def test_an_older_look_never_wins(desk: Desk) -> None:
    """Two look at once; the one whose answer is older finds that the other wrote, and looks again."""
    client, paid = desk.client, threading.Event()
    retrieve = client.v1.invoices.retrieve

    def slow(invoice_id: str) -> stripe.Invoice:
        found = retrieve(invoice_id)
        if not paid.is_set():
            paid.set()
            fresh = stripe_client("sk_test_1", desk.double.url)
            fresh.v1.invoices.pay(invoice_id)
            refresh_payment(desk.book, fresh, invoice_id, now)
        return found

    client.v1.invoices.retrieve = slow  # type: ignore[method-assign, assignment]
    state = refresh_payment(desk.book, client, desk.stripe_id, now)
    assert state is not None and state.status == "paid"
    assert desk.payment() == "paid"


def test_somebody_elses_invoice_is_noted_and_left_alone(desk: Desk) -> None:
    customer = desk.client.v1.customers.create({"name": "A stranger"})
    stranger = desk.client.v1.invoices.create({"customer": customer.id, "auto_advance": False})
    for event in desk.told():
        desk.deliver(event)
    desk.await_handled()
    outcomes = {row.invoice_id: row.outcome for row in list_events(desk.book) if row.kind == "invoice.created"}
    assert outcomes[stranger.id] == "not an invoice of ours"
    assert outcomes[desk.stripe_id] == "INV-acme is open"


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_both_secrets_are_good_while_one_takes_over(desk: Desk, secret: str) -> None:
    assert desk.deliver(desk.told()[0], secret).json() == {"received": True, "new": True}


def test_what_stripe_did_not_send_is_refused(desk: Desk) -> None:
    event = desk.told()[0]
    refused = [
        desk.deliver(event, "whsec_other"),
        desk.deliver(event, moment=int(time.time()) - 3_600),
        desk.deliver(b"no event"),
        desk.deliver(b"x" * (1 << 20) + b"y"),
        desk.deliver(event.replace('"livemode": false', '"livemode": true')),
        httpx.post(f"{desk.url}/v1/stripe/webhooks", content=event),
    ]
    assert [answer.status_code for answer in refused] == [400] * 6, [answer.text for answer in refused]
    assert {answer.json()["error"]["code"] for answer in refused} == {"webhook_refused"}
    assert list_events(desk.book) == []


def credit_of(desk: Desk, amount: int = 4) -> PushCreditNote:
    return PushCreditNote("CN-1", "INV-acme", desk.stripe_id, "USD", amount, "a wrong price")


@pytest.mark.parametrize("paid", [False, True], ids=["open", "paid"])
def test_a_credit_note_is_issued_once(desk: Desk, paid: bool) -> None:
    listen(desk)
    if paid:
        desk.client.v1.invoices.pay(desk.stripe_id)
    desk.double.double.plan_faults({"POST /v1/credit_notes": ["lost"]})
    with pytest.raises(Exception, match="Stripe"):
        push_credit_note(desk.client, credit_of(desk))
    desk.double.double.forget_keys()
    again = push_credit_note(desk.client, credit_of(desk))
    assert (again.amount_minor, again.created) == (4, False)
    assert len(desk.client.v1.credit_notes.list({"invoice": desk.stripe_id}).data) == 1
    with pytest.raises(TotalMismatchError):
        push_credit_note(desk.client, credit_of(desk, 5))
    await_true(
        lambda: [row.credited_minor for row in payments_of(desk.book, ["INV-acme"]).values()] == [4], "it is known"
    )


def test_an_invoice_is_voided_once_and_not_when_paid(desk: Desk) -> None:
    listen(desk)
    assert [void_invoice(desk.client, "INV-acme", desk.stripe_id) for _ in range(2)] == ["void", "void"]
    await_true(lambda: desk.payment() == "void", "the void is known")
    other = push_invoice(desk.client, invoice(7, number="INV-2"))
    desk.client.v1.invoices.pay(other.stripe_invoice_id)
    with pytest.raises(NotVoidableError):
        void_invoice(desk.client, "INV-2", other.stripe_invoice_id)
