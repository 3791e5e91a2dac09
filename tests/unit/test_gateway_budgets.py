"""Budgets at the gateway: which cover a request, where they stand, what is refused; and the wallet's decisions."""

from datetime import UTC, datetime, timedelta

import pytest

from taximeter_inference.gateway import budget_view
from taximeter_inference.gateway.admission import Answer, Ask, Close, Scope, Wallet, WalletTerms
from taximeter_inference.gateway.budget_view import Standing
from taximeter_inference.gateway.errors import BudgetExhaustedError, InFlightBudgetError
from taximeter_inference.gateway.pricing import dearest_pico
from taximeter_schemas.budgets import Budget, BudgetPosition
from taximeter_schemas.rate_cards import Price

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
SCOPE = Scope("acme", ("b", "c"))


def budget(**fields: object) -> Budget:
    return Budget.model_validate({"id": "b", "tenant": "acme", "limit_pico": 5 * 10**12, **fields})


@pytest.mark.parametrize(
    ("fields", "covers"),
    [
        ({}, True),
        ({"feature": "chat"}, True),
        ({"feature": "search"}, False),
        ({"model": "m", "feature": "chat"}, True),
        ({"model": "other"}, False),
        ({"currency": "EUR"}, False),  # spend in another currency does not count
        ({"hard": False}, True),  # a soft one warns
    ],
)
def test_which_budgets_cover_a_request(fields: dict[str, object], covers: bool) -> None:
    assert bool(budget_view.covering([budget(**fields)], "chat", "m", "USD")) is covers


def test_a_standing_belongs_to_the_running_period_and_the_declared_limit() -> None:
    published = BudgetPosition(
        budget=budget(limit_pico=1),
        period="2026-11",
        period_start=datetime(2026, 11, 1, tzinfo=UTC),
        period_end=datetime(2026, 12, 1, tzinfo=UTC),
        spent_pico=7,
    )
    held = budget_view.standing(budget(), published, "UTC", NOW)
    assert (held.spent_pico, held.left_pico) == (7, 5 * 10**12 - 7)
    next_month = budget_view.standing(budget(), published, "Europe/Berlin", NOW + timedelta(days=10))
    assert (next_month.spent_pico, next_month.resets_at) == (0, datetime(2026, 12, 31, 23, tzinfo=UTC))


def test_what_is_told_and_refused() -> None:
    hard, soft = Standing(budget(), 10**12, NOW), Standing(budget(id="s", hard=False), 4 * 10**12, NOW)
    assert budget_view.tightest([soft, hard]) == hard
    assert budget_view.headers(hard) == (
        (b"x-taximeter-budget-limit", b"5.00 USD"),
        (b"x-taximeter-budget-remaining", b"4.00 USD"),
        (b"x-taximeter-budget-reset", b"2026-11-24T08:00:00Z"),
    )
    spent = budget_view.refusal(hard, 4 * 10**12 + 1)
    assert type(spent) is BudgetExhaustedError
    expected = {"budget": "b", "limit": "5.00 USD", "spent": "1.00 USD", "resets_at": "2026-11-24T08:00:00Z"}
    assert spent.details() == expected
    held = budget_view.refusal(hard, 4 * 10**12)
    assert (type(held), held.retry_after_seconds) == (InFlightBudgetError, 1)


def test_the_dearest_request_is_every_answer_at_its_bound() -> None:
    price = Price(model="m", uncached_input=2, cache_write_5m=3, output=5, request=7)
    assert dearest_pico(price, prompt_tokens=10, output_tokens_max=20, answers=2) == 7 + 10 * 3 + 40 * 5


def supplied(granted: int = 100, terms: WalletTerms | None = None) -> Wallet:
    """A wallet with one lease, granted at 0 for 60 s."""
    wallet = Wallet(iter(f"lease-{n}" for n in range(100)).__next__, terms or WalletTerms(slice_requests=4))
    assert wallet.reserve(SCOPE, 10, 0.0) is None
    assert wallet.ask(SCOPE, 10, 0.0) == Ask("lease-0", SCOPE, 40, 10)
    assert wallet.grant("lease-0", {"b": granted, "c": granted + 5}, 60.0, 0.0) is Answer.SLICE
    return wallet


def test_a_lease_admits_what_it_holds_in_its_smallest_budget() -> None:
    wallet = supplied(100)
    one = wallet.reserve(SCOPE, 60, 1.0)
    assert one is not None
    assert wallet.reserve(SCOPE, 41, 1.0) is None
    wallet.settle(one, 20, 2.0)
    assert wallet.available_pico(SCOPE, 2.0) == 80
    with pytest.raises(KeyError):
        wallet.settle(one, 20, 2.0)


def test_a_lease_is_not_used_past_its_time_less_a_margin() -> None:
    wallet = supplied()
    assert wallet.reserve(SCOPE, 1, 53.9) is not None
    assert wallet.reserve(SCOPE, 1, 54.0) is None


def test_a_question_is_repeated_until_it_is_answered() -> None:
    wallet = Wallet(lambda: "lease", WalletTerms(slice_requests=1))
    asked = wallet.ask(SCOPE, 10, 0.0)
    assert wallet.ask(SCOPE, 10, 0.5) is None
    assert wallet.ask(SCOPE, 10, 1.0) == asked
    assert wallet.grant("lease", {"b": 5, "c": 5}, 60.0, 1.0) is Answer.SLICE
    assert wallet.ask(SCOPE, 10, 1.05) is None  # a short grant: the next question waits
    assert wallet.ask(SCOPE, 10, 1.2) is not None


def test_the_next_slice_is_asked_for_before_the_last_runs_out() -> None:
    wallet = supplied(40)
    assert wallet.ask(SCOPE, 0, 1.0) is None
    assert wallet.reserve(SCOPE, 30, 1.0) is not None
    assert wallet.ask(SCOPE, 0, 1.5) is not None


def test_a_lease_in_use_is_renewed_and_its_answer_lengthens_it() -> None:
    wallet = supplied(10_000)
    assert wallet.reserve(SCOPE, 1, 20.0) is not None
    assert list(wallet.due(20.0)) == [Ask("lease-0", SCOPE, 40, 10)]
    assert wallet.grant("lease-0", {"b": 1, "c": 1}, 80.0, 21.0) is Answer.RENEWAL  # 60 s from the 20th
    assert wallet.reserve(SCOPE, 1, 73.0) is not None
    assert wallet.reserve(SCOPE, 1, 74.0) is None


def test_a_lease_that_is_over_at_the_keepers_admits_nothing_more() -> None:
    wallet = supplied()
    assert wallet.grant("lease-0", {"b": 0, "c": 0}, 60.0, 5.0) is Answer.RENEWAL
    assert wallet.reserve(SCOPE, 1, 5.0) is None


def test_an_idle_lease_goes_back_with_its_true_cost() -> None:
    wallet = supplied()
    one = wallet.reserve(SCOPE, 60, 1.0)
    assert one is not None
    wallet.settle(one, 20, 2.0)
    assert not list(wallet.due(6.9))
    assert list(wallet.due(7.0)) == [Close("lease-0", SCOPE, 20)]
    assert wallet.grant("lease-0", {"b": 9, "c": 9}, 60.0, 8.0) is Answer.STRAY


def test_remainders_go_back_to_be_granted_as_one() -> None:
    wallet = supplied()
    held = wallet.reserve(SCOPE, 60, 1.0)
    assert held is not None
    assert wallet.squeeze(SCOPE) == []  # somebody holds it
    wallet.settle(held, 60, 1.0)
    assert wallet.squeeze(SCOPE) == [Close("lease-0", SCOPE, 60)]
    assert wallet.close_all() == []
