"""Worked figures of billing: tiers, commitments, credits, rounding and periods come out to the last digit."""

import json
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from taximeter_billing.domain.anchors import anchored
from taximeter_billing.domain.commitments import prorated, true_up
from taximeter_billing.domain.credits import Grant, draw
from taximeter_billing.domain.rounding import round_lines
from taximeter_billing.domain.tariffs import Tier, Tiers, pooled, price_steps
from taximeter_schemas.money import price_per_token_pico, to_pico
from taximeter_schemas.periods import billing_month

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "billing.json").read_text())

# Up to 100 million tokens, up to 1,000 million, above.
TIERS = Tiers(
    tuple(
        Tier(bound, price_per_token_pico(str(price)))
        for bound, (_, price) in zip(
            (100_000_000, 1_000_000_000, None),
            GOLDEN["graduated_and_volume"]["tiers_usd_per_million"],
            strict=True,
        )
    )
)


@pytest.mark.parametrize("case", GOLDEN["graduated_and_volume"]["cases"], ids=lambda case: str(case["tokens"]))
def test_graduated_and_volume(case: dict[str, Any]) -> None:
    assert TIERS.graduated(case["tokens"]) == to_pico(case["graduated"])
    assert TIERS.volume(case["tokens"]) == to_pico(case["volume"])


def test_tiers_pooled_across_features() -> None:
    case = GOLDEN["pooled_tier_across_features"]
    lines = pooled(TIERS, case["usage"])
    assert lines == {feature: to_pico(amount) for feature, amount in case["lines"].items()}
    assert sum(lines.values()) == to_pico(case["total"])


def test_a_price_change_keeps_the_position_in_the_tiers() -> None:
    case = GOLDEN["price_change_mid_period_carries_tier_position"]
    before, after = (
        Tiers(
            tuple(
                Tier(bound, price_per_token_pico(str(price)))
                for bound, price in zip((case["threshold"], None), case[version], strict=True)
            )
        )
        for version in ("v1_usd_per_million", "v2_usd_per_million")
    )
    steps = price_steps([(before, case["usage_before"]), (after, case["usage_after"])])
    lines = [cost for step in steps for cost in step]
    assert lines == [to_pico(amount) for amount in case["lines"]]
    assert sum(lines) == to_pico(case["total"])


def test_minimum_commitment() -> None:
    case = GOLDEN["minimum_commitment"]
    minimum = to_pico(case["minimum"])
    assert true_up(minimum, to_pico(case["usage"]), 0) == to_pico(case["true_up"])
    assert prorated(minimum, 20, 30, "USD") == to_pico(case["minimum_prorated_20_of_30_days"])


def test_what_counts_towards_a_minimum() -> None:
    case = GOLDEN["minimum_basis"]
    minimum, listed, savings = (to_pico(case[name]) for name in ("minimum", "list", "cache_savings"))
    assert true_up(minimum, listed, savings, "net") == to_pico(case["true_up_basis_net"])
    assert true_up(minimum, listed, savings, "list") == to_pico(case["true_up_basis_list"])


def test_the_total_is_rounded_first() -> None:
    case = GOLDEN["round_total_first"]
    lines_pico = {str(index): to_pico(cents) // 100 for index, cents in enumerate(case["lines_cents"])}
    total, lines = round_lines(lines_pico, "USD", salt="any")
    assert total == case["total_cents"] == sum(lines.values())
    assert sorted(lines.values()) == [0, 0, 1]


@pytest.mark.parametrize("case", GOLDEN["billing_periods_half_open"], ids=lambda case: str(case["tz"]))
def test_billing_periods(case: dict[str, Any]) -> None:
    period = billing_month(case["period"], case["tz"])
    assert period.start == datetime.fromisoformat(case["start"])
    assert period.end == datetime.fromisoformat(case["end"])
    assert (period.end - period.start).total_seconds() == case["hours"] * 3600
    assert period.start in period and period.end not in period


def test_a_month_that_lacks_the_anchor_day_does_not_move_the_next() -> None:
    days = [date.fromisoformat(day) for day in GOLDEN["anchor_day_31"]]
    assert list(islice(anchored(days[0]), len(days))) == days


def _instant(text: str) -> datetime:
    return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)


def test_credits_burn_down_in_their_order() -> None:
    case = GOLDEN["credit_burn_down"]
    grants = tuple(
        Grant(
            grant["id"],
            to_pico(grant["balance"]),
            grant["priority"],
            grant["kind"],
            expires_at=_instant(grant["expires"]) if grant["expires"] else None,
        )
        for grant in case["grants"]
    )
    for row in case["draws"]:
        result = draw(grants, to_pico(row["amount"]), _instant(row["on"]))
        assert result.drawn_pico == {grant: to_pico(amount) for grant, amount in row["drawn"].items()}, row["on"]
        assert result.unpaid_pico == to_pico(row["unpaid"]), row["on"]
        grants = result.grants
