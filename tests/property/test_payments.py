"""Laws of what is pushed: sums survive, limits hold, forms are read as stripe-python writes them, keys tell requests apart."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from hypothesis import given
from hypothesis import strategies as st
from stripe._encode import _api_encode

from taximeter_billing.payments import PushInvoice, PushLine
from taximeter_billing.payments.double.forms import parse_form
from taximeter_billing.payments.invoices import LINES_MAX, METADATA_VALUE_CHARS_MAX, lines_for_stripe
from taximeter_billing.payments.keys import KEY_CHARS_MAX, IdempotencyKeys

START, END = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
LINES = st.tuples(st.integers(0, 400), st.integers(-(10**12), 10**12), st.integers(1, 700))


def invoice(lines: tuple[PushLine, ...]) -> PushInvoice:
    total = sum(line.amount_minor for line in lines)
    return PushInvoice("INV-1", "acme", "", None, "USD", START, END, lines, total)


@given(st.lists(LINES, max_size=20), st.integers(1, 400), st.integers(1, 3))
def test_whatever_is_summed_the_sum_stays_and_the_limits_hold(
    drawn: list[tuple[int, int, int]], features: int, repeats: int
) -> None:
    many = tuple(
        PushLine(f"f{(feature + place) % features}", "d" * width, amount + place)
        for place in range(0, 150 * repeats, 7)
        for feature, amount, width in drawn
    )
    lines = lines_for_stripe(invoice(many))
    assert sum(line.amount_minor for line in lines) == sum(line.amount_minor for line in many)
    assert 1 <= len(lines) <= LINES_MAX
    for line in lines:
        assert len(line.metadata) <= 48  # our own two entries come on top of these
        assert all(len(value) <= METADATA_VALUE_CHARS_MAX and len(name) <= 40 for name, value in line.metadata)
    assert lines_for_stripe(invoice(many)) == lines


NAMES = st.text("abcdefghij_", min_size=1, max_size=8)
TEXTS = st.text(max_size=20)
# Neither side can say an empty list or object in a form; names of digits alone are metadata's.
NESTED: st.SearchStrategy[Any] = st.recursive(
    TEXTS,
    lambda below: st.lists(below, min_size=1, max_size=4) | st.dictionaries(NAMES, below, min_size=1, max_size=4),
    max_leaves=8,
)


@given(
    st.dictionaries(NAMES, NESTED, max_size=4), st.dictionaries(st.text("0123456789é '", min_size=1), TEXTS, min_size=1)
)
def test_a_form_is_read_as_stripe_python_writes_it(params: dict[str, Any], metadata: Mapping[str, str]) -> None:
    wanted = params | {"metadata": dict(metadata)}
    text = urlencode(list(_api_encode(wanted)))
    assert parse_form(text) == wanted


@given(
    st.text(max_size=400), st.text("abc-", max_size=10), st.dictionaries(TEXTS, TEXTS), st.dictionaries(TEXTS, TEXTS)
)
def test_equal_requests_have_equal_keys_and_others_have_others(
    subject: str, step: str, first: dict[str, str], second: dict[str, str]
) -> None:
    keys = IdempotencyKeys(subject)
    assert (keys.key(step, first) == keys.key(step, second)) == (first == second)
    assert keys.key(step, dict(reversed(first.items()))) == keys.key(step, first)
    assert IdempotencyKeys(subject, 1).key(step, first) != keys.key(step, first)
    assert len(keys.key(step, first)) <= KEY_CHARS_MAX
    assert keys.key(step, first).isascii()
