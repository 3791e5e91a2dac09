"""What a webhook says: a budget alert as JSON for programs, with one sentence for people. Pure."""

from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlsplit

from taximeter_schemas.budgets import AlertKind, BudgetAlert, IsolationIncident
from taximeter_schemas.money import currency_exponent, format_pico
from taximeter_schemas.periods import PeriodKind
from taximeter_schemas.tenants import AlertEndpoint, AlertFormat

_PERIODS = {7: "monthly", 10: "daily"}
"""Length of a period's label ("2026-11", "2026-11-24") to the kind of period; an hour's is longer."""

_TYPES = {AlertKind.NEGATIVE_MARGIN: "margin.negative", AlertKind.ISOLATION_INCIDENT: "isolation.incident"}
OPERATORS_ALONE = frozenset(_TYPES)
"""Kinds that no tenant is told."""


def event_type(alert: BudgetAlert) -> str:
    """The type in the payload: `budget.soft_threshold`, `budget.hard_limit`, `budget.forecast`, `budget.spend_spike`,
    `margin.negative`, or `isolation.incident`."""
    return _TYPES.get(alert.kind, f"budget.{alert.kind.value}")


def sentence(alert: BudgetAlert) -> str:
    """ "acme has spent 80% of its monthly budget of 50.00 USD (40.10 USD spent, 2026-11)"."""
    if alert.incident is not None:
        return _incident(alert.tenant, alert.incident)
    spent, limit = _money(alert.spent_pico, alert), _money(alert.limit_pico, alert)
    if alert.kind is AlertKind.SPEND_SPIKE:
        usual = _money(alert.usual_pico or 0, alert)
        return f"{alert.tenant} has spent {spent} on {alert.period}; on a usual day it spends {usual}"
    scope = "".join(
        f" for {name} {value}" for name, value in (("feature", alert.feature), ("model", alert.model)) if value
    )
    if alert.kind is AlertKind.NEGATIVE_MARGIN:
        return (
            f"{alert.tenant}{scope} costs more than it earns: {spent} against {limit} in {alert.period}; see `taximeter margin"
            f" --period {alert.period} --tenant {alert.tenant} --by model`, then mend its price or its cost"
        )
    kind = "prepaid" if alert.period == PeriodKind.LIFETIME else _PERIODS.get(len(alert.period), "hourly")
    budget, spent = f"{kind} budget{scope} of {limit}", f"{spent} spent"
    if alert.period != PeriodKind.LIFETIME:
        spent += f", {alert.period}"
    if alert.kind is AlertKind.HARD_LIMIT:
        return f"{alert.tenant} has reached the limit of its {budget} ({spent}); {_until(alert)}"
    if alert.kind is AlertKind.FORECAST:
        return f"at this rate {alert.tenant} reaches the limit of its {budget} on {_day(alert)} ({spent})"
    return f"{alert.tenant} has spent {_percent(alert.threshold_bps)} of its {budget} ({spent})"


def body_for(endpoint: AlertEndpoint, alert: BudgetAlert) -> dict[str, object]:
    """What that endpoint is sent, in its format."""
    return slack_body(sentence(alert)) if endpoint.format is AlertFormat.SLACK else webhook_body(alert)


def slack_body(text: str) -> dict[str, object]:
    """The message that Slack's incoming webhooks take (as do Mattermost's, Discord's at /slack, and others)."""
    return {"text": text.translate({ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"})}


def notice_body(endpoint: AlertEndpoint, dead: AlertEndpoint, reason: str, now: datetime) -> dict[str, object]:
    """What `endpoint` is sent when `dead` was given up: where it was is told, not its secret path."""
    where = urlsplit(dead.url).netloc
    again = f"`taximeter alerts enable {dead.id}` starts them again"
    text = f"alerts to the endpoint {dead.id} ({where}) have stopped: {reason}; {again}"
    if endpoint.format is AlertFormat.SLACK:
        return slack_body(text)
    data = {"endpoint_id": dead.id, "host": where, "tenant": dead.tenant, "reason": reason, "message": text}
    return {"type": "endpoint.disabled", "timestamp": now.isoformat(), "data": data}


def webhook_body(alert: BudgetAlert) -> dict[str, object]:
    """The payload: type, timestamp, and the alert with its sentence as data. Amounts are pico-units (1e-12)."""
    return {
        "type": event_type(alert),
        "timestamp": alert.model_dump(mode="json")["raised_at"],
        "data": {**alert.model_dump(mode="json"), "message": sentence(alert)},
    }


def _incident(tenant: str, incident: IsolationIncident) -> str:
    return (
        f"cache isolation incident: {tenant} (pool {incident.pool}) hit blocks that {incident.warmed_by} warmed in pool"
        f" {incident.warmed_in} (request {incident.request_id}, worker {incident.worker}); next: take that worker out of"
        ' service, then follow "When an incident is told" in docs/isolation.md'
    )


def _until(alert: BudgetAlert) -> str:
    """What is blocked, and what ends it."""
    if alert.period == PeriodKind.LIFETIME:
        return "requests are refused until it is topped up"
    return f"requests are refused until {alert.period_end.astimezone(UTC):%Y-%m-%d %H:%M} UTC, or until the limit is raised"


def _percent(threshold_bps: int) -> str:
    share = Decimal(threshold_bps) / 100
    return f"{share.normalize():f}%"


def _places(amount_pico: int, places: int) -> int | None:
    """Cents where there are some; a sum below a cent is written out instead of as zero."""
    return None if 0 < abs(amount_pico) < 10 ** (12 - places) else places


def _money(amount_pico: int, alert: BudgetAlert) -> str:
    return format_pico(amount_pico, alert.currency, _places(amount_pico, currency_exponent(alert.currency)))


def _day(alert: BudgetAlert) -> str:
    """The 19th, or 14:05 where the period is a day; in UTC."""
    expected = (alert.expected_at or alert.period_end).astimezone(UTC)
    if len(alert.period) == len("2026-11-24"):
        return f"{expected:%Y-%m-%d at %H:%M} UTC"
    return f"the {_ordinal(expected.day)}"


def _ordinal(day: int) -> str:
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"
