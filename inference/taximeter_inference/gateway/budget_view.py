"""What a gateway knows about a tenant's budgets: which of them cover a request, where they stand, and what is told. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from taximeter_inference.gateway.errors import BudgetExhaustedError, InFlightBudgetError
from taximeter_schemas.budgets import Budget, BudgetPosition, BudgetState
from taximeter_schemas.money import format_pico
from taximeter_schemas.periods import PeriodKind, period_containing


@dataclass(frozen=True, slots=True)
class Standing:
    """A budget in its running period, as last published; nothing spent is known in a period that has just begun.

    A cap on a root request never resets, nor does a wallet.
    """

    budget: Budget
    spent_pico: int
    resets_at: datetime | None = None

    @property
    def left_pico(self) -> int:
        """What posted spend leaves; never below 0."""
        return max(0, self.budget.limit_pico - self.spent_pico)


def covering(budgets: Sequence[Budget], feature: str, model: str, api_key: str, currency: str) -> tuple[Budget, ...]:
    """The budgets that count a request's cost, hard and soft. Cost in another currency does not count against a budget."""
    return tuple(budget for budget in budgets if budget.currency == currency and budget.covers(feature, model, api_key))


def positions_by_budget(state: BudgetState | None) -> Mapping[str, BudgetPosition]:
    """Positions by budget id."""
    return {position.budget.id: position for position in state.positions} if state else {}


def standing(budget: Budget, position: BudgetPosition | None, time_zone: str, now: datetime) -> Standing:
    """Where the budget stands. Its limit is the declared one, which may be newer than the published position."""
    if position is not None and position.period_start <= now < position.period_end:
        resets_at = None if budget.period is PeriodKind.LIFETIME else position.period_end
        return Standing(budget, position.spent_pico, resets_at)
    if budget.period is PeriodKind.LIFETIME:
        return Standing(budget, 0)
    return Standing(budget, 0, period_containing(now, budget.period, time_zone).end)


def tightest(standings: Sequence[Standing]) -> Standing | None:
    """The budget that is told about: a hard one before a soft one, and of those the one with the least left."""
    return min(standings, key=lambda held: (not held.budget.hard, held.left_pico), default=None)


def headers(held: Standing) -> tuple[tuple[bytes, bytes], ...]:
    """Response headers that warn: limit, remaining (of posted spend) and reset time."""
    budget = held.budget
    told = (
        (b"x-taximeter-budget-limit", format_pico(budget.limit_pico, budget.currency).encode()),
        (b"x-taximeter-budget-remaining", format_pico(held.left_pico, budget.currency).encode()),
    )
    return told if held.resets_at is None else (*told, (b"x-taximeter-budget-reset", _iso(held.resets_at).encode()))


def refusal(held: Standing, needed_pico: int) -> BudgetExhaustedError:
    """Why a request that may cost `needed_pico` is refused: its budget is spent, or others hold what is left of it."""
    budget = held.budget
    limit, spent = (format_pico(amount, budget.currency) for amount in (budget.limit_pico, held.spent_pico))
    needed = format_pico(needed_pico, budget.currency)
    details = {"budget": budget.id, "limit": limit, "spent": spent}
    state = f"{spent} of {limit} are spent, this request may cost {needed}"
    ends = "it is one root request's, and does not reset" if budget.per_root_request else "it is prepaid: top it up"
    if held.resets_at is not None:
        details["resets_at"] = _iso(held.resets_at)
        ends = f"it resets at {details['resets_at']}"
    if needed_pico > held.left_pico:
        message = f'budget "{budget.id}" is exhausted: {state}; {ends}'
        return BudgetExhaustedError(message, details, headers(held), budget.fallbacks)
    message = f'budget "{budget.id}" is held by requests under way: {state}; try again'
    return InFlightBudgetError(message, details, headers(held), budget.fallbacks)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
