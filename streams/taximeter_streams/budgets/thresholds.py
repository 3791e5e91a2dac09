"""When somebody is told: soft thresholds and the hard limit, each once a budget and period, with an id that repeats."""

import hashlib
from datetime import datetime

from taximeter_schemas.budgets import AlertKind, Budget, BudgetAlert
from taximeter_schemas.periods import PeriodKind
from taximeter_streams.budgets.state import Posting

FULL_BPS = 10_000
MARKS_MAX = 500
"""What a posting remembers to have told: far more than a period has, and the last hundred fillings of a wallet."""


def alert_id(budget_id: str, period: str, threshold_bps: int, kind: AlertKind) -> str:
    """The id of that alert: the same whoever raises it, and whenever."""
    name = f"{budget_id}\n{period}\n{threshold_bps}\n{kind}"
    return f"alert_{hashlib.sha256(name.encode()).hexdigest()}"


def watched(budget: Budget) -> list[tuple[int, AlertKind]]:
    """The thresholds of a budget in basis points of its limit, lowest first; the hard limit comes after a soft one at 100%."""
    soft = [(threshold_bps, AlertKind.SOFT_THRESHOLD) for threshold_bps in sorted(set(budget.soft_thresholds_bps))]
    hard = [(FULL_BPS, AlertKind.HARD_LIMIT)] if budget.hard else []
    return sorted([*soft, *hard], key=lambda threshold: threshold[0])


def reached(budget: Budget, spent_pico: int, threshold_bps: int) -> bool:
    """Whether spend has reached that share of the limit. Nothing is reached before the first spend."""
    return spent_pico > 0 and spent_pico * FULL_BPS >= budget.limit_pico * threshold_bps


def raise_alerts(budget: Budget, period: str, posting: Posting, now: datetime) -> tuple[Posting, list[BudgetAlert]]:
    """The alerts that this posting has earned and not yet raised, and the posting with them marked as raised.

    A wallet never resets: there a threshold is told once for each sum of its top-ups.
    """
    suffix = filling(budget)
    due = [
        (threshold_bps, kind)
        for threshold_bps, kind in watched(budget)
        if _due(budget, posting, threshold_bps, kind) and mark(kind, threshold_bps) + suffix not in posting.alerted
    ]
    if not due:
        return posting, []
    marks = (mark(kind, threshold_bps) + suffix for threshold_bps, kind in due)
    alerts = [alert_of(budget, period, posting, threshold, now) for threshold in due]
    return posting.model_copy(update={"alerted": (*posting.alerted, *marks)[-MARKS_MAX:]}), alerts


def filling(budget: Budget) -> str:
    """What tells one filling of a wallet from the next, behind a mark or a period; empty for what resets."""
    return f"@{budget.limit_pico}" if budget.period is PeriodKind.LIFETIME else ""


def _due(budget: Budget, posting: Posting, threshold_bps: int, kind: AlertKind) -> bool:
    at_limit = posting.short_pico > max(0, budget.limit_pico - posting.spent_pico)
    return (at_limit and kind is AlertKind.HARD_LIMIT) or reached(budget, posting.spent_pico, threshold_bps)


def mark(kind: AlertKind, threshold_bps: int) -> str:
    """How a posting remembers that it was told."""
    return f"{kind}/{threshold_bps}"


def alert_of(
    budget: Budget, period: str, posting: Posting, threshold: tuple[int, AlertKind], now: datetime
) -> BudgetAlert:
    """The alert of that threshold and kind."""
    threshold_bps, kind = threshold
    return BudgetAlert(
        id=alert_id(budget.id, period + filling(budget), threshold_bps, kind),
        kind=kind,
        tenant=budget.tenant,
        budget_id=budget.id,
        feature=budget.feature,
        model=budget.model,
        period=period,
        period_end=posting.ends_at,
        threshold_bps=threshold_bps,
        limit_pico=budget.limit_pico,
        spent_pico=posting.spent_pico,
        currency=budget.currency,
        raised_at=now,
    )
