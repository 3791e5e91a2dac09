"""Forecasts and spikes: what is told, when, and how often."""

from datetime import UTC, datetime, timedelta

import pytest

from taximeter_schemas.budgets import AlertKind, Budget, BudgetAlert
from taximeter_schemas.periods import PeriodKind
from taximeter_schemas.spend import SPEND_SLOT_SECONDS, SpendEntry, SpendRecord
from taximeter_streams.alerts.payload import sentence
from taximeter_streams.budgets import ledger
from taximeter_streams.budgets.forecast import Forecast, forecast, watch_pace
from taximeter_streams.budgets.ledger import Rules
from taximeter_streams.budgets.spikes import Usual, usual, watch_days
from taximeter_streams.budgets.state import Posting, TenantLedger

UNIT = 10**12
START = datetime(2026, 11, 1, tzinfo=UTC)
BUDGET = Budget(id="month", tenant="acme", limit_pico=100 * UNIT)


def posting(spent: int, recent: dict[datetime, int]) -> Posting:
    """A month of November with spend in spans of six hours."""
    ends_at = datetime(2026, 12, 1, tzinfo=UTC)
    by_span = {int(moment.timestamp()) // 21_600: amount * UNIT for moment, amount in recent.items()}
    return Posting(spent_pico=spent * UNIT, starts_at=START, ends_at=ends_at, keep_until=ends_at, recent_pico=by_span)


def day(number: int, hour: int = 0) -> datetime:
    return datetime(2026, 11, number, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("spent", "recent", "now", "told"),
    [
        # 50 in 10 days, 10 of them in the last two: 5 a day, the rest lasts 10 days; the month would cost 150.
        (50, {day(9, 12): 5, day(10, 12): 5}, day(11), Forecast(day(21), 150 * UNIT)),
        # The same, but the last two days were twice as fast: the slower pace counts.
        (50, {day(9, 12): 10, day(10, 12): 10}, day(11), Forecast(day(21), 150 * UNIT)),
        (50, {}, day(11), None),  # a burst that is over
        (50, {day(9, 12): 1, day(10, 12): 2}, day(11), None),  # slower of late: 30 more to come, which fit
        (30, {day(9, 12): 5, day(10, 12): 5}, day(11), None),  # 3 a day: the month costs 90
        (34, {day(9, 12): 5, day(10, 12): 5}, day(11), None),  # 102: over the limit, but within the margin
        (36, {day(9, 12): 5, day(10, 12): 5}, day(11), Forecast(day(28) + timedelta(seconds=67_200), 108 * UNIT)),
        (20, {day(2, 6): 10, day(2, 12): 10}, day(3), None),  # before a tenth of the month
        (100, {day(9, 12): 5, day(10, 12): 5}, day(11), None),  # there already
        (50, {day(10, 18): 10}, day(11), None),  # a single span is no pace
        (0, {}, day(11), None),
    ],
)
def test_when_the_limit_is_reached(
    spent: int, recent: dict[datetime, int], now: datetime, told: Forecast | None
) -> None:
    assert forecast(BUDGET.limit_pico, posting(spent, recent), PeriodKind.MONTH, now) == told


@pytest.mark.parametrize(
    ("spent", "recent", "told"),
    [
        # 20 in the last 1 3/4 days, 30 are left.
        (70, {day(9, 12): 10, day(10, 12): 10}, day(11) + timedelta(days=1.75) * 1.5),
        (70, {day(9, 12): 2, day(10, 12): 2}, None),  # lasts for 13 days
        (70, {day(10, 12): 10}, None),
    ],
)
def test_a_wallet_is_forecast_by_its_latest_pace(
    spent: int, recent: dict[datetime, int], told: datetime | None
) -> None:
    held = posting(spent, recent).model_copy(
        update={"starts_at": datetime(1970, 1, 1, tzinfo=UTC), "ends_at": datetime(9000, 1, 1, tzinfo=UTC)}
    )
    found = forecast(BUDGET.limit_pico, held, PeriodKind.LIFETIME, day(11))
    assert (found.reached_at if found else None) == told


def test_an_hour_is_not_forecast() -> None:
    assert forecast(BUDGET.limit_pico, posting(50, {day(9, 12): 5, day(10, 12): 5}), PeriodKind.HOUR, day(11)) is None


class Tenant:
    """A tenant's ledger that is fed with spend, a record after the other, and restarted between them."""

    def __init__(self, budget: Budget = BUDGET, time_zone: str = "UTC") -> None:
        self.rules = Rules((budget,), time_zone)
        self.state = TenantLedger(tenant="acme")
        self.offset = 0

    def spend(self, amount: int, at: datetime, currency: str = "USD") -> list[BudgetAlert]:
        self.state = TenantLedger.model_validate_json(self.state.model_dump_json(exclude_defaults=True))
        slot = int(at.timestamp()) // SPEND_SLOT_SECONDS * SPEND_SLOT_SECONDS
        self.offset += 1
        record = SpendRecord(
            tenant="acme",
            currency=currency,
            partition=0,
            first_offset=self.offset,
            last_offset=self.offset,
            entries=(SpendEntry(feature="chat", model="m", slot_start=slot, amount_pico=amount * UNIT, events=1),),
            rated_at=at,
        )
        self.state, alerts = ledger.post(self.state, self.rules, record, at)
        self.state, forecasts = watch_pace(self.state, self.rules, record, at)
        self.state, spikes = watch_days(self.state, record, self.rules.time_zone, at)
        return [*alerts, *forecasts, *spikes]


def kinds(alerts: list[BudgetAlert]) -> list[tuple[AlertKind, int]]:
    return [(alert.kind, alert.threshold_bps) for alert in alerts]


def test_each_threshold_of_a_list_is_told_once_a_period_whatever_the_limit_becomes() -> None:
    budget = BUDGET.model_copy(update={"hard": False, "soft_thresholds_bps": (5_000, 8_000, 9_500, 10_000)})
    tenant = Tenant(budget)
    told: list[tuple[AlertKind, int]] = []
    for amount in (40, 15, 30, 11, 10):  # 40, 55, 85, 96 and 106 of 100
        told += kinds(tenant.spend(amount, day(2)))
    soft = AlertKind.SOFT_THRESHOLD
    assert told == [(soft, 5_000), (soft, 8_000), (soft, 9_500), (soft, 10_000)]
    # The limit is doubled, and all is passed again; then it is lowered, and all is passed at once.
    for limit in (200, 50):
        tenant.rules = Rules((budget.model_copy(update={"limit_pico": limit * UNIT}),))
        assert kinds(tenant.spend(50, day(2))) == []
        assert ledger.review(tenant.state, tenant.rules, day(2))[1] == []
    # The next month begins anew.
    assert kinds(tenant.spend(26, day(30) + timedelta(days=1))) == [(soft, 5_000)]


def test_a_wallet_tells_each_threshold_once_for_each_sum_of_its_top_ups() -> None:
    wallet = BUDGET.model_copy(update={"period": PeriodKind.LIFETIME, "soft_thresholds_bps": (8_000,)})
    tenant = Tenant(wallet)
    soft, hard = (AlertKind.SOFT_THRESHOLD, 8_000), (AlertKind.HARD_LIMIT, 10_000)
    (alert,) = tenant.spend(85, day(2))
    assert sentence(alert) == "acme has spent 80% of its prepaid budget of 100.00 USD (85.00 USD spent)"
    assert kinds(tenant.spend(5, day(9))) == []
    tenant.rules = Rules((wallet.model_copy(update={"limit_pico": 200 * UNIT}),))
    assert kinds(tenant.spend(5, day(30))) == []
    later = tenant.spend(105, day(30) + timedelta(days=90))
    assert kinds(later) == [soft, hard]
    assert alert.id not in {raised.id for raised in later}
    assert tenant.state.spent_pico("month", "lifetime") == 200 * UNIT


def test_a_forecast_is_told_once_a_period_and_names_the_day() -> None:
    tenant = Tenant(BUDGET.model_copy(update={"soft_thresholds_bps": ()}))
    told = [alert for number in range(1, 20) for alert in tenant.spend(5, day(number, 12))]
    (alert,) = [alert for alert in told if alert.kind is AlertKind.FORECAST]
    # On the 4th at noon a tenth has gone by, and 20 are spent in 3.5 days: 80 more last 14 days.
    assert (alert.raised_at, alert.expected_at) == (day(4, 12), day(18, 12))
    assert sentence(alert) == (
        "at this rate acme reaches the limit of its monthly budget of 100.00 USD on the 18th (20.00 USD spent, 2026-11)"
    )
    # The next month tells again.
    later = [alert for number in range(1, 10) for alert in tenant.spend(9, datetime(2026, 12, number, 12, tzinfo=UTC))]
    assert [alert.kind for alert in later].count(AlertKind.FORECAST) == 1


@pytest.mark.parametrize(
    ("days", "known"),
    [
        ([10] * 6, None),  # too few
        ([10] * 7, Usual(10 * UNIT, 20 * UNIT, 15 * UNIT)),  # steady: twice the median
        # Median 10, distance 2: 10 + 3.5 * 2 / 0.6745 = 20.4 lies just above twice the median.
        ([6, 8, 8, 10, 12, 12, 14], Usual(10 * UNIT, 20_378_057_820_607, 15_930_318_754_633)),
        ([0] * 28, Usual(0, UNIT, UNIT // 2)),  # idle: one unit
        ([0] * 20 + [50, 10], Usual(50 * UNIT, 100 * UNIT, 75 * UNIT)),  # now and then: the largest
        ([0, 0, 10] * 5, Usual(10 * UNIT, 20 * UNIT, 15 * UNIT)),  # days off are left out
    ],
)  # fmt: skip
def test_what_is_usual(days: list[int], known: Usual | None) -> None:
    assert usual([amount * UNIT for amount in days]) == known


def test_a_spike_is_told_once_and_again_only_after_a_calm_day() -> None:
    tenant = Tenant(BUDGET.model_copy(update={"hard": False, "soft_thresholds_bps": (), "limit_pico": 10**18}))
    told: list[tuple[str, int]] = []
    amounts = [10, 11, 9, 10, 10, 12, 10, 10, 60, 70, 65, 10, 80, 10]
    for number, amount in enumerate(amounts, 1):
        # Each day's spend comes in two parts: a day that stands out is told with the part that passes the level.
        for part, hour in ((amount // 2, 8), (amount - amount // 2, 20)):
            told += [(alert.period, alert.spent_pico // UNIT) for alert in tenant.spend(part, day(number, hour))]
    # The 9th stands out and the spike lasts to the 11th; the 12th is calm; the 13th is another.
    assert told == [("2026-11-09", 30), ("2026-11-13", 40)]


def test_a_spike_says_what_is_usual_by_the_tenants_own_days() -> None:
    tenant = Tenant(BUDGET.model_copy(update={"hard": False, "limit_pico": 10**18}), "Europe/Berlin")
    for number in range(1, 9):
        assert tenant.spend(10, day(number, 23)) == []  # past midnight in Berlin: the next day
    (alert,) = tenant.spend(25, day(10, 12))
    assert (alert.kind, alert.budget_id, alert.period) == (AlertKind.SPEND_SPIKE, None, "2026-11-10")
    assert sentence(alert) == "acme has spent 25.00 USD on 2026-11-10; on a usual day it spends 10.00 USD"


def test_currencies_are_watched_apart() -> None:
    tenant = Tenant(BUDGET.model_copy(update={"hard": False, "limit_pico": 10**18}))
    for number in range(1, 9):
        tenant.spend(10, day(number))
    assert tenant.spend(100, day(9), currency="EUR") == []
    assert set(tenant.state.history) == {"USD", "EUR"}


def test_what_is_remembered_is_bounded() -> None:
    tenant = Tenant(BUDGET.model_copy(update={"hard": False, "limit_pico": 10**18}))
    for hours in range(0, 24 * 90, 3):
        tenant.spend(1, START + timedelta(hours=hours))
    assert len(tenant.state.history["USD"].by_day_pico) <= 29
    assert max(len(held.recent_pico) for held in tenant.state.postings["month"].values()) <= 8
