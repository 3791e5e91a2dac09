"""Pushing to Stripe, exchange by exchange, against Stripe's published contract; and exactly one invoice whatever is cut off."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import stripe

from taximeter_billing.payments import PushInvoice, PushLine, push_invoice, stripe_client
from taximeter_billing.payments.errors import LiveKeyError, NegativeInvoiceError, StripeRefusedError, TotalMismatchError
from taximeter_billing.payments.invoices import LINES_MAX, lines_for_stripe
from taximeter_billing.payments.reconcile import differences
from tests.double_process import JudgedDouble, judged_double
from tests.stripe_contract import answer_problems, request_problems

START, END = datetime(2026, 10, 31, 23, tzinfo=UTC), datetime(2026, 11, 30, 23, tzinfo=UTC)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[JudgedDouble]:
    with judged_double(tmp_path / "stripe.db") as found:
        yield found
        assert found.problems == []


def invoice(*amounts: int, number: str = "INV-000001", currency: str = "USD", total: int | None = None) -> PushInvoice:
    lines = tuple(
        PushLine(f"feature-{index}", f"feature-{index}: model", amount) for index, amount in enumerate(amounts)
    )
    wanted = sum(amounts) if total is None else total
    return PushInvoice(number, "acme", "Acme", "billing@acme.example", currency, START, END, lines, wanted)


def client(double: JudgedDouble, retries: bool = False) -> stripe.StripeClient:
    return stripe_client("sk_test_1", double.url, retries=2 if retries else 0)


def test_the_judge_finds_fault() -> None:
    assert request_problems("POST", "/v1/invoices", {"customer": "c", "colour": "red"})
    assert request_problems("POST", "/v1/invoices/in_1/add_lines", {"lines": [{"amount": "1.5"}]})
    assert answer_problems("GET", "/v1/customers/cus_1", {"id": "cus_1"})
    with pytest.raises(KeyError):
        request_problems("POST", "/v1/bills", {})


@pytest.mark.parametrize(
    ("currency", "amounts"),
    [
        ("USD", (1250, 99)),
        ("JPY", (7,)),
        ("KWD", (1234, 5)),
        ("USD", (10, -3)),  # a line may be below zero, an invoice not
        ("USD", (0,)),  # nothing to pay: Stripe marks it paid
        ("USD", tuple(range(LINES_MAX))),
    ],
)
def test_an_invoice_is_pushed_once_and_a_second_push_changes_nothing(
    double: JudgedDouble, currency: str, amounts: tuple[int, ...]
) -> None:
    wanted = invoice(*amounts, currency=currency)
    first = push_invoice(client(double), wanted)
    judged = double.judged
    second = push_invoice(client(double), wanted)
    assert first.created and not second.created
    assert first.stripe_invoice_id == second.stripe_invoice_id
    assert first.total_minor == sum(amounts)
    assert first.status == ("open" if sum(amounts) else "paid")
    assert differences(client(double), wanted, first.stripe_invoice_id) == []
    assert double.judged > judged > 0


def test_more_lines_than_stripe_takes_are_summed_by_feature() -> None:
    lines = tuple(PushLine(f"feature-{index % 3}", "d", 1) for index in range(LINES_MAX + 2))
    wanted = PushInvoice("INV-1", "acme", "", None, "USD", START, END, lines, len(lines))
    assert [line.amount_minor for line in lines_for_stripe(wanted)] == [84, 84, 84]


STEPS = (
    "POST /v1/customers",
    "POST /v1/invoices",
    "POST /v1/invoices/{id}/add_lines",
    "POST /v1/invoices/{id}/finalize",
)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", ["lost", "500", "429", "409"])
def test_a_push_cut_off_at_any_step_ends_with_exactly_one_right_invoice(
    double: JudgedDouble, step: str, fault: str
) -> None:
    wanted = invoice(*range(1, 151))
    double.double.plan_faults({step: [fault]})
    with pytest.raises(StripeRefusedError):
        push_invoice(client(double), wanted)
    result = push_invoice(client(double), wanted)
    assert result.total_minor == sum(range(1, 151))
    assert differences(client(double), wanted, result.stripe_invoice_id) == []
    assert len(client(double).v1.invoices.list().data) == 1
    assert len(client(double).v1.customers.search({"query": "metadata['taximeter_tenant']:'acme'"}).data) == 1


def test_a_wrong_total_leaves_a_draft(double: JudgedDouble) -> None:
    with pytest.raises(TotalMismatchError):
        push_invoice(client(double), invoice(100, total=101))
    (left,) = client(double).v1.invoices.list().data
    assert left.status == "draft"


def test_a_negative_total_is_refused_before_anything_is_sent(double: JudgedDouble) -> None:
    with pytest.raises(NegativeInvoiceError):
        push_invoice(client(double), invoice(-5))
    assert not double.double.calls


def test_a_finalized_invoice_cannot_be_changed(double: JudgedDouble) -> None:
    result = push_invoice(client(double), invoice(100))
    with pytest.raises(stripe.InvalidRequestError):
        client(double).v1.invoices.add_lines(result.stripe_invoice_id, {"lines": [{"amount": 1}]})


def test_an_idempotency_key_with_another_request_is_an_error(double: JudgedDouble) -> None:
    customers = client(double).v1.customers
    first = customers.create({"name": "a"}, {"idempotency_key": "k"})
    assert customers.create({"name": "a"}, {"idempotency_key": "k"}).id == first.id
    with pytest.raises(stripe.IdempotencyError):
        customers.create({"name": "b"}, {"idempotency_key": "k"})


def test_reconciling_names_what_differs(double: JudgedDouble) -> None:
    result = push_invoice(client(double), invoice(100, 20))
    problems = differences(client(double), invoice(100, 21), result.stripe_invoice_id)
    assert len(problems) == 2


def test_a_live_key_needs_permission() -> None:
    with pytest.raises(LiveKeyError):
        stripe_client("sk_live_1")
    assert stripe_client("sk_live_1", live=True)


def test_the_client_retries_by_itself(double: JudgedDouble) -> None:
    double.double.plan_faults({"POST /v1/invoices": ["500", "409"]})
    assert push_invoice(client(double, retries=True), invoice(5)).created
