"""What a webhook says: a budget alert as JSON for programs, with one sentence for people. Pure."""

from decimal import Decimal

from taximeter_schemas.budgets import AlertKind, BudgetAlert
from taximeter_schemas.money import currency_exponent, format_pico

_PERIODS = {7: "monthly", 10: "daily"}
"""Length of a period's label ("2026-11", "2026-11-24") to the kind of period; an hour's is longer."""


def event_type(alert: BudgetAlert) -> str:
    """The type in the payload: `budget.soft_threshold` or `budget.hard_limit`."""
    return f"budget.{alert.kind.value}"


def sentence(alert: BudgetAlert) -> str:
    """ "acme has spent 80% of its monthly budget of 50.00 USD (40.10 USD, 2026-11)"."""
    places = currency_exponent(alert.currency)
    spent, limit = (
        format_pico(amount_pico, alert.currency, _places(amount_pico, places))
        for amount_pico in (alert.spent_pico, alert.limit_pico)
    )
    scope = "".join(
        f" for {name} {value}" for name, value in (("feature", alert.feature), ("model", alert.model)) if value
    )
    budget = f"{_PERIODS.get(len(alert.period), 'hourly')} budget{scope} of {limit}"
    if alert.kind is AlertKind.HARD_LIMIT:
        return f"{alert.tenant} has reached the limit of its {budget} ({spent} spent, {alert.period}); requests are refused"
    return f"{alert.tenant} has spent {_percent(alert.threshold_bps)} of its {budget} ({spent} spent, {alert.period})"


def webhook_body(alert: BudgetAlert) -> dict[str, object]:
    """The payload: type, timestamp, and the alert with its sentence as data. Amounts are pico-units (1e-12)."""
    return {
        "type": event_type(alert),
        "timestamp": alert.model_dump(mode="json")["raised_at"],
        "data": {**alert.model_dump(mode="json"), "message": sentence(alert)},
    }


def _percent(threshold_bps: int) -> str:
    share = Decimal(threshold_bps) / 100
    return f"{share.normalize():f}%"


def _places(amount_pico: int, places: int) -> int | None:
    """Cents where there are some; a sum below a cent is written out instead of as zero."""
    return None if 0 < abs(amount_pico) < 10 ** (12 - places) else places
