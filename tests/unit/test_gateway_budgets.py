"""Budgets at the gateway: which cover a request, where they stand, what is refused; and the wallet's decisions."""

from datetime import UTC, datetime, timedelta

import pytest

from taximeter_inference.gateway import budget_view
from taximeter_inference.gateway.admission import Answer, Ask, Close, Scope, Wallet, WalletTerms
from taximeter_inference.gateway.budget_view import Standing
from taximeter_inference.gateway.errors import BudgetExhaustedError, InFlightBudgetError, InvalidTagError
from taximeter_inference.gateway.output_bound import OutputBounds
from taximeter_inference.gateway.pricing import Quote, beside_pico, dearest_pico
from taximeter_inference.gateway.waiting import DisplacedError, QueueFullError, WaitingRoom
from taximeter_schemas.budgets import Budget, BudgetPosition
from taximeter_schemas.rate_cards import ContextBand, Price

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
        ({"api_key": "k1"}, True),
        ({"api_key": "k2"}, False),  # another key's
        ({"hard": False}, True),  # a soft one warns
    ],
)
def test_which_budgets_cover_a_request(fields: dict[str, object], covers: bool) -> None:
    assert bool(budget_view.covering([budget(**fields)], "chat", "m", "k1", "USD")) is covers


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
    assert spent.headers == budget_view.headers(hard)
    expected = {"budget": "b", "limit": "5.00 USD", "spent": "1.00 USD", "resets_at": "2026-11-24T08:00:00Z"}
    assert spent.details() == expected
    held = budget_view.refusal(hard, 4 * 10**12)
    assert (type(held), held.retry_after_seconds) == (InFlightBudgetError, 1)


def test_a_cap_on_a_root_request_never_resets() -> None:
    cap = Standing(budget(per_root_request=True), 10**12)
    assert [name for name, _ in budget_view.headers(cap)] == [
        b"x-taximeter-budget-limit",
        b"x-taximeter-budget-remaining",
    ]
    refused = budget_view.refusal(cap, 5 * 10**12)
    assert "resets_at" not in refused.details() and "does not reset" in str(refused)


PRICED = Price(model="m", uncached_input=1, output=10)


@pytest.mark.parametrize(
    ("stated", "left_pico", "bound", "amount_pico"),
    [
        (50, None, 50, 600),  # the client's own bound
        (50, 300, 50, 600),  # it is never shortened
        (None, None, 100, 1_100),  # learnt
        (None, 1_100, 100, 1_100),
        (None, 700, 60, 700),  # what is left pays for fewer, which is still useful
        (None, 300, 100, 1_100),  # for too few: it does not fit
    ],
)
def test_a_bound_that_nobody_stated_shrinks_to_what_the_budget_pays_for(
    stated: int | None, left_pico: int | None, bound: int, amount_pico: int
) -> None:
    quote = Quote(PRICED, 100, 1, stated, lambda: 100, lambda: 40)
    assert quote.amount_pico(left_pico) == amount_pico
    assert quote.bound == bound
    quote.agree()
    assert quote.agreed == bound


def test_what_is_priced_beside_tokens_is_reserved_as_its_tags_say() -> None:
    price = Price(model="m", uncached_input=1, output=10, search_unit=1_000)
    assert beside_pico(PRICED, {"search_units": "many"}) == 0  # not priced
    assert beside_pico(price, {"search_units": "3"}) == 3_000
    with pytest.raises(InvalidTagError):
        beside_pico(price, {"search_units": "many"})
    assert (
        Quote(price, 100, 1, 50, lambda: 100, lambda: 40, beside_pico(price, {"search_units": "3"})).amount_pico()
        == 3_600
    )


def test_a_longer_prompt_may_be_dearer_and_then_a_short_bound_does_not_help() -> None:
    banded = Price(model="m", uncached_input=1, output=10, bands=(ContextBand(input_over=50, output=100),))
    quote = Quote(banded, 100, 1, None, lambda: 100, lambda: 40)
    assert (quote.amount_pico(), quote.amount_pico(5_000), quote.bound) == (10_100, 4_995 + 5, 49)
    assert quote.amount_pico(3_000) == 10_100


def test_a_bound_follows_the_answers_and_doubles_when_it_cuts_them() -> None:
    bounds = OutputBounds(start=1_024, least=64, most=8_192)
    assert (bounds.bound("acme", "m"), bounds.useful("acme", "m")) == (1_024, 64)
    for _ in range(4):
        bounds.learn("acme", "m", 100, was_cut=False)
    assert bounds.bound("acme", "m") == 160  # half as much again, in steps
    assert bounds.useful("acme", "m") == 100
    bounds.learn("acme", "m", 160, was_cut=True)
    assert bounds.bound("acme", "m") == 480
    for _ in range(200):
        bounds.learn("acme", "m", 10, was_cut=False)
    assert bounds.bound("acme", "m") < 160  # the long one fades
    for _ in range(9):
        bounds.learn("acme", "m", bounds.bound("acme", "m"), was_cut=True)
    assert bounds.bound("acme", "m") == 8_192
    assert bounds.bound("globex", "m") == 1_024
    assert bounds.bound("acme", "n") == 1_024


def test_a_first_answer_that_was_cut_lifts_the_bound_at_once() -> None:
    bounds = OutputBounds(start=100, least=64, most=8_192)
    bounds.learn("acme", "m", 100, was_cut=True)
    assert bounds.bound("acme", "m") == 200


def test_the_waiting_room_is_bounded_and_fair_between_tenants() -> None:
    room = WaitingRoom(places=4, tenant_places=3)
    big = [room.enter("big", "line") for _ in range(3)]
    with pytest.raises(QueueFullError):
        room.enter("big", "other line")
    small = room.enter("small", "line of small")
    second = room.enter("small", "line of small")  # full: takes the place of the newest of who holds the most
    with pytest.raises(DisplacedError):
        room.is_first(big[2])
    assert big[2].news.is_set()
    with pytest.raises(QueueFullError):
        room.enter("small", "line of small")  # two each is fair
    assert [room.is_first(ticket) for ticket in (big[0], big[1], small, second)] == [True, False, True, False]
    room.leave(big[0])
    assert big[1].news.is_set() and room.is_first(big[1])
    room.leave(big[0])
    assert len(room) == 3
    room.tell("small")
    assert small.news.is_set()


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


def test_questions_that_bring_nothing_become_rare_until_there_is_room() -> None:
    wallet = Wallet(iter(f"lease-{n}" for n in range(100)).__next__, WalletTerms(slice_requests=1))
    now = 0.0
    for number, delay in enumerate((0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0)):
        assert wallet.ask(SCOPE, 10, now) is not None
        wallet.grant(f"lease-{number}", {"b": 0, "c": 0}, 0.0, now)
        assert wallet.ask(SCOPE, 10, now + delay - 0.01) is None
        now += delay
    assert wallet.ask(SCOPE, 10, now) is not None
    wallet.grant("lease-7", {"b": 0, "c": 0}, 0.0, now)
    assert wallet.ask(SCOPE, 10, now) is None
    wallet.ask_soon(SCOPE)
    assert wallet.ask(SCOPE, 10, now) is not None


def test_a_silent_keeper_is_asked_less_and_less_often() -> None:
    wallet = Wallet(lambda: "lease", WalletTerms(slice_requests=1))
    asked, now = wallet.ask(SCOPE, 10, 0.0), 0.0
    for patience in (1.0, 2.0, 4.0, 8.0, 8.0):
        assert wallet.ask(SCOPE, 10, now + patience - 0.01) is None
        now += patience
        assert wallet.ask(SCOPE, 10, now) == asked


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


def test_a_lease_of_an_old_limit_is_used_no_more_and_goes_back() -> None:
    wallet = supplied()
    held = wallet.reserve(SCOPE, 60, 1.0)
    assert held is not None
    wallet.retire("globex")
    assert wallet.available_pico(SCOPE, 1.0) == 40
    wallet.retire("acme")
    assert (wallet.available_pico(SCOPE, 1.0), wallet.reserve(SCOPE, 1, 1.0)) == (0, None)
    assert not list(wallet.due(1.0))
    wallet.settle(held, 20, 1.5)
    assert list(wallet.due(1.5)) == [Close("lease-0", SCOPE, 20)]


def test_a_request_must_end_before_the_keeper_grants_its_amount_again() -> None:
    wallet = Wallet(iter(f"lease-{n}" for n in range(100)).__next__, WalletTerms(slice_requests=4))
    assert wallet.ask(SCOPE, 10, 0.0) is not None
    wallet.grant("lease-0", {"b": 100, "c": 100}, 60.0, 0.0, held_seconds=960.0)
    held = wallet.reserve(SCOPE, 60, 1.0)
    assert wallet.overdue(953.9) == []
    wallet.grant("lease-0", {"b": 100, "c": 100}, 80.0, 21.0, held_seconds=980.0)
    assert wallet.overdue(954.0) == []
    assert wallet.overdue(974.0) == [held]


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
