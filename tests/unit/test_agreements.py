"""What may be agreed with a tenant, what is refused and in which words, and how a contract stands over its plan."""

from pathlib import Path
from typing import Any

import pytest

from taximeter_billing.declarations import read_file, read_mapping
from taximeter_billing.declarations.plan import make_plan
from taximeter_billing.domain.contracts import Contract, Meter, Plan, agreement
from taximeter_billing.errors import DeclarationError, FrozenError
from taximeter_schemas.control import ControlKind
from tests.declared_things import bodies, changed

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "contracts.yaml"


def small() -> dict[str, Any]:
    """A tenant with a plan, a contract and a grant."""
    price = {"model": "m", "uncached_input": "0.50", "output": "1.50"}
    tiers = [{"up_to": 1000, "price": "3"}, {"price": "2"}]
    return {
        "rate_cards": [{"id": "default", "version": 1, "effective_from": "2026-01-01T00:00:00Z", "prices": [price]}],
        "tenants": [{"id": "acme"}],
        "plans": [
            {
                "id": "pro",
                "tariffs": [{"id": "t", "meter": "input", "mode": "graduated", "tiers": tiers}],
                "allowances": [{"id": "a", "meter": "gpu_second", "quantity": 60}],
                "discounts": [{"id": "d", "percent": "12.5"}],
                "reservations": [{"id": "r", "model": "m", "units": 1, "tokens_per_minute": 1000, "unit_hour": "0.60"}],
                "minimum": {"amount": "10"},
            }
        ],
        "contracts": [{"id": "c", "tenant": "acme", "plan": "pro", "starts": "2026-01-01T00:00:00Z"}],
        "credits": [{"id": "g", "tenant": "acme", "amount": "5", "effective_at": "2026-01-01T00:00:00Z"}],
    }


def test_amounts_and_quantities_become_whole_units() -> None:
    plan = Plan.model_validate(bodies(small())[ControlKind.PLAN, "pro"])
    assert [tier.price_pico for tier in plan.tariffs[0].tiers] == [3_000_000, 2_000_000]
    assert (plan.allowances[0].meter, plan.allowances[0].quantity) == (Meter.GPU, 60_000_000)
    assert plan.discounts[0].bps == 1250
    assert plan.reservations[0].unit_minute_pico == 10**10
    assert plan.minimum is not None and plan.minimum.amount_pico == 10**13


def test_the_example_is_valid() -> None:
    declared = read_file(EXAMPLE)
    kinds = [thing.kind for thing in declared]
    assert kinds.count(ControlKind.CONTRACT) == 2
    assert kinds.count(ControlKind.COST_CARD) == 1


def test_a_contract_stands_over_its_plan() -> None:
    content = changed(small(), "contracts.0.discounts", [{"id": "d", "amount": "1"}, {"id": "e", "amount": "2"}])
    things = bodies(content)
    plans = {"pro": Plan.model_validate(things[ControlKind.PLAN, "pro"])}
    contract = Contract.model_validate(things[ControlKind.CONTRACT, "c"])
    held = agreement(contract, plans)
    assert [(one.id, one.bps) for one in held.terms.discounts] == [("d", None), ("e", None)]
    assert held.terms.tariffs == plans["pro"].tariffs
    # What it is called changes with the plan under it.
    cheaper = Plan.model_validate({**things[ControlKind.PLAN, "pro"], "minimum": {"amount_pico": 1}})
    assert agreement(contract, {"pro": cheaper}).name != held.name


REFUSED = [
    # (where, value, words that say so)
    ("plans.0.tariffs.0.tiers.0.price", 3.0, 'plans[0].tariffs[0].tiers[0].price: 3.0 is not exact; quote it: "3.0"'),
    ("plans.0.tariffs.0.tiers.0.price", "0.0000001", "finer than 1e-12 a token"),
    ("plans.0.tariffs.0.tiers.1.up_to", 900, "the last tier, and only that, has no bound"),
    ("plans.0.tariffs.0.mode", "package", "a package tariff has one price"),
    ("plans.0.tariffs.0.mode", "stairs", "plans[0]"),
    ("plans.0.tariffs.0.meter", "tokens", "plans[0]"),
    ("plans.0.tariffs.0.package_size", 5, "package_size belongs to a package tariff"),
    ("plans.0.allowances.0.quantity", "60", "plans[0].allowances[0].quantity: a whole number is needed"),
    ("plans.0.discounts.0.percent", "101", "is not a percentage above 0 up to 100"),
    ("plans.0.discounts.0.amount", "1", "either basis points or an amount"),
    ("plans.0.reservations.0.unit_hour", "0.0000000001", "finer than 1e-12 in the unit that is counted"),
    ("plans.0.minimum", "10", "plans[0].minimum: a mapping is needed"),
    ("plans.0.surprise", 1, "plans[0]"),
    ("contracts.0.plan", "gone", "contract c names the plan 'gone', which is not declared"),
    ("contracts.0.tenant", "gone", "contract c names the tenant 'gone', which is not declared"),
    ("contracts.0.ends", "2025-01-01T00:00:00Z", "a contract ends after it starts"),
    (
        "contracts.1",
        {"id": "d", "tenant": "acme", "starts": "2027-01-01T00:00:00Z"},
        "contracts c and d of tenant acme overlap",
    ),
    ("credits.0.currency", "EUR", "credit g is in EUR, its tenant pays in USD"),
    ("credits.0.tenant", "gone", "credit g names the tenant 'gone', which is not declared"),
]


@pytest.mark.parametrize(("path", "value", "words"), REFUSED, ids=[f"{path}={value}" for path, value, _ in REFUSED])
def test_what_is_refused_says_where(path: str, value: object, words: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        read_mapping(changed(small(), path, value))
    assert words in str(refused.value)


def test_a_grant_does_not_change_and_is_not_pruned() -> None:
    current = bodies(small())
    with pytest.raises(FrozenError, match="credit g is granted and cannot change"):
        make_plan(current, read_mapping(changed(small(), "credits.0.amount", "6")))
    without = small()
    del without["credits"], without["contracts"]
    assert {change.key for change in make_plan(current, read_mapping(without), prune=True).changes} == {"c"}
