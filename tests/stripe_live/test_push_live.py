"""The push against Stripe itself, in its test mode: `pytest -m stripe_live tests/stripe_live`.

Needs a test key (sk_test_...) in TAXIMETER_STRIPE_TEST_KEY; a live key is refused. Each run makes customers and invoices of
tenants whose names no other run uses, and leaves them in the test account. Without the key it fails; it never skips.
"""

import os
import uuid
from datetime import UTC, datetime

import pytest
import stripe

from taximeter_billing.payments import PushInvoice, PushLine, push_invoice, stripe_client
from taximeter_billing.payments.errors import TotalMismatchError
from taximeter_billing.payments.reconcile import differences

KEY = "TAXIMETER_STRIPE_TEST_KEY"
START, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)


class NotATestKeyError(Exception):
    """The key is missing, or is no key of Stripe's test mode."""


def key_for_tests(key: str) -> str:
    """The key, if it is one of the test mode. Raises NotATestKeyError, without showing it."""
    if not key.startswith("sk_test_") or len(key) < 20:
        raise NotATestKeyError(
            f"{KEY} must hold a key of Stripe's test mode (sk_test_...); a live key is never used here"
        )
    return key


@pytest.fixture
def client() -> stripe.StripeClient:
    return stripe_client(key_for_tests(os.environ.get(KEY, "")))


def invoice(*amounts: int, currency: str = "USD", total: int | None = None) -> PushInvoice:
    """An invoice that no other run has."""
    name = uuid.uuid4().hex
    lines = tuple(PushLine(f"feature-{place}", f"feature-{place}: model", cents) for place, cents in enumerate(amounts))
    wanted = sum(amounts) if total is None else total
    email = f"{name}@example.com"
    return PushInvoice(f"TEST-{name}", f"test-{name}", "Test", email, currency, START, END, lines, wanted)


@pytest.mark.parametrize("key", ["", "sk_live_" + "a" * 30, "rk_live_" + "a" * 30, "pk_test_" + "a" * 30, "sk_test_"])
def test_only_a_test_key_is_taken(key: str) -> None:
    with pytest.raises(NotATestKeyError) as refused:
        key_for_tests(key)
    assert key in ("", "sk_test_") or key not in str(refused.value)


@pytest.mark.stripe_live
@pytest.mark.parametrize(
    ("currency", "amounts"),
    [
        ("USD", (1250, 99)),
        ("JPY", (700,)),
        ("KWD", (12_340, 50)),
        ("USD", (1000, -3)),
        ("USD", (0,)),
        ("USD", tuple(range(1, 251))),
    ],
)
def test_an_invoice_is_pushed_once_and_a_second_push_changes_nothing(
    client: stripe.StripeClient, currency: str, amounts: tuple[int, ...]
) -> None:
    wanted = invoice(*amounts, currency=currency)
    first, second = push_invoice(client, wanted), push_invoice(client, wanted)
    assert first.created and not second.created
    assert first.stripe_invoice_id == second.stripe_invoice_id
    assert first.total_minor == sum(amounts)
    assert differences(client, wanted, first.stripe_invoice_id) == []


@pytest.mark.stripe_live
def test_a_wrong_total_is_never_finalized(client: stripe.StripeClient) -> None:
    wanted = invoice(100, total=101)
    with pytest.raises(TotalMismatchError):
        push_invoice(client, wanted)
    customers = client.v1.customers.list({"email": wanted.email or ""}).data
    (left,) = client.v1.invoices.list({"customer": customers[0].id}).data
    assert left.status == "draft"
