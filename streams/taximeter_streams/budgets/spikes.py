"""A day on which a tenant spends far more than it usually does: told once a day, against the tenant's own past. Pure.

The measure is the modified z-score of Iglewicz and Hoaglin ("How to Detect and Handle Outliers", 1993): with the median m
of the past days and the median distance from it d (MAD), a value x stands out when 0.6745 (x - m) / d > 3.5. Median and MAD
do not move when single days were unusual, where a mean would. Two floors are added: a day stands out only at twice the
median or more (steady tenants have d near 0) and from one unit of the currency. What has been spent today is held against
whole days, so a spike is told as soon as today passes the level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from taximeter_schemas.budgets import AlertKind, BudgetAlert
from taximeter_schemas.periods import PeriodKind, period_containing
from taximeter_schemas.spend import SpendRecord
from taximeter_streams.budgets.state import SpendHistory, TenantLedger
from taximeter_streams.budgets.thresholds import FULL_BPS, alert_id

DAYS_COMPARED = 28
DAYS_LEAST = 7
"""Fewer days of a tenant's past say nothing about what is usual."""
ACTIVE_LEAST = 3
LEAST_PICO = 10**12
"""Below one unit of the currency nobody needs to be called."""
STANDS_OUT_TENTHS, CALM_TENTHS = 35, 20
"""The modified z-score, in tenths, from which a day stands out, and the one up to which a spike is over (hysteresis)."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What is usual for a tenant, in pico-units a day: from `level_pico` a day stands out, up to `calm_pico` it is calm."""

    median_pico: int
    level_pico: int
    calm_pico: int


def usual(days_pico: Sequence[int]) -> Usual | None:
    """What the past days say; None where there are too few. Days without spend are no measure of those with some.

    Who spent on fewer than three of them has no usual day, and is held against the largest.
    """
    if len(days_pico) < DAYS_LEAST:
        return None
    active = [day for day in days_pico if day > 0]
    middle, distance = max(active, default=0), 0
    if len(active) >= ACTIVE_LEAST:
        middle = _median(active)
        distance = _median([abs(day - middle) for day in active])
    # (x - m) > z d / 0.6745, with z in tenths.
    level, calm = (middle + distance * tenths * 1_000 // 6_745 for tenths in (STANDS_OUT_TENTHS, CALM_TENTHS))
    level = max(level, 2 * middle, LEAST_PICO)
    return Usual(middle, level, min(max(calm, middle * 3 // 2, LEAST_PICO // 2), level))


def watch_days(
    state: TenantLedger, record: SpendRecord, time_zone: str, now: datetime
) -> tuple[TenantLedger, list[BudgetAlert]]:
    """Take a record that was just posted into the tenant's days, and tell when today stands out.

    A spike that goes on is told once: another is told only after a whole day that was calm.
    """
    history = state.history.get(record.currency, SpendHistory())
    today = period_containing(now, PeriodKind.DAY, time_zone)
    by_day = _with_days(history.by_day_pico, record, time_zone, date.fromisoformat(today.label))
    past = _past(by_day, date.fromisoformat(today.label))
    known = usual([spent for _, spent in past])
    since = history.spiking_since
    if known is not None and since is not None and any(day > since and spent <= known.calm_pico for day, spent in past):
        since = None
    spent_pico = by_day.get(today.label, 0)
    alerts: list[BudgetAlert] = []
    if known is not None and since is None and spent_pico >= known.level_pico:
        since = today.label
        alerts.append(
            BudgetAlert(
                id=alert_id(f"{state.tenant}\n{record.currency}", today.label, FULL_BPS, AlertKind.SPEND_SPIKE),
                kind=AlertKind.SPEND_SPIKE,
                tenant=state.tenant,
                period=today.label,
                period_end=today.end,
                threshold_bps=FULL_BPS,
                limit_pico=known.level_pico,
                spent_pico=spent_pico,
                currency=record.currency,
                raised_at=now,
                usual_pico=known.median_pico,
            )
        )
    changed = SpendHistory(by_day_pico=by_day, spiking_since=since)
    return state.model_copy(update={"history": {**state.history, record.currency: changed}}), alerts


def _with_days(by_day: dict[str, int], record: SpendRecord, time_zone: str, today: date) -> dict[str, int]:
    changed = dict(by_day)
    for entry in record.entries:
        slot = datetime.fromtimestamp(entry.slot_start, UTC)
        label = period_containing(slot, PeriodKind.DAY, time_zone).label
        changed[label] = changed.get(label, 0) + entry.amount_pico
    oldest = (today - timedelta(days=DAYS_COMPARED)).isoformat()
    return {label: spent for label, spent in sorted(changed.items()) if label >= oldest}


def _past(by_day: dict[str, int], today: date) -> list[tuple[str, int]]:
    """The days before today, from the first that is known on. A day without spend is a day with 0."""
    first = min(by_day, default=today.isoformat())
    days = ((today - timedelta(days=back)).isoformat() for back in range(DAYS_COMPARED, 0, -1))
    return [(day, by_day.get(day, 0)) for day in days if day >= first]


def _median(values: Sequence[int]) -> int:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2
