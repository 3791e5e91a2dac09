"""Alerts come once: whatever is spent, whichever limits are declared, and however often the keeper starts again."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from taximeter_schemas.budgets import AlertKind, Budget
from taximeter_schemas.periods import PeriodKind
from taximeter_schemas.spend import SPEND_SLOT_SECONDS, SpendEntry, SpendRecord
from taximeter_streams.budgets import ledger
from taximeter_streams.budgets.forecast import watch_pace
from taximeter_streams.budgets.ledger import Rules
from taximeter_streams.budgets.spikes import watch_days
from taximeter_streams.budgets.state import TenantLedger
from taximeter_streams.budgets.thresholds import FULL_BPS, alert_id

UNIT = 10**12
THRESHOLDS_BPS = (5_000, 8_000, 9_500, 10_000)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 60),  # spent, in units
        st.sampled_from([50, 100, 200]),  # the limit from then on
        st.sampled_from([timedelta(), timedelta(hours=5), timedelta(days=1), timedelta(days=20)]),
        st.booleans(),  # the record comes twice
    ),
    max_size=25,
)


@given(STEPS, st.sampled_from([PeriodKind.DAY, PeriodKind.MONTH, PeriodKind.LIFETIME]))
@settings(max_examples=100)
def test_each_alert_is_raised_once_and_every_reached_threshold_is(
    steps: list[tuple[int, int, timedelta, bool]], period: PeriodKind
) -> None:
    state, now = TenantLedger(tenant="acme"), datetime(2026, 11, 1, tzinfo=UTC)
    raised: list[str] = []
    for offset, (units, limit, later, twice) in enumerate(steps):
        now += later
        budget = Budget(
            id="b", tenant="acme", limit_pico=limit * UNIT, soft_thresholds_bps=THRESHOLDS_BPS, period=period
        )
        rules = Rules((budget,))
        slot = int(now.timestamp()) // SPEND_SLOT_SECONDS * SPEND_SLOT_SECONDS
        entry = SpendEntry(feature="f", model="m", slot_start=slot, amount_pico=units * UNIT, events=1)
        record = SpendRecord(
            tenant="acme",
            currency="USD",
            partition=0,
            first_offset=offset,
            last_offset=offset,
            entries=(entry,),
            rated_at=now,
        )
        for _ in range(1 + twice):
            state = TenantLedger.model_validate_json(state.model_dump_json(exclude_defaults=True))  # a restart
            if ledger.was_seen(state, record):
                continue
            state, thresholds = ledger.post(state, rules, record, now)
            state, forecasts = watch_pace(state, rules, record, now)
            state, spikes = watch_days(state, record, "UTC", now)
            raised += [alert.id for alert in (*thresholds, *forecasts, *spikes)]
        assert len(set(raised)) == len(raised)
        label = rules.period(budget, now).label
        spent = state.spent_pico("b", label)
        filling = f"@{budget.limit_pico}" if period is PeriodKind.LIFETIME else ""
        for threshold_bps in THRESHOLDS_BPS:
            if spent and spent * FULL_BPS >= budget.limit_pico * threshold_bps:
                assert alert_id("b", label + filling, threshold_bps, AlertKind.SOFT_THRESHOLD) in raised
