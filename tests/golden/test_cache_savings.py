"""Worked figures, checked by hand: the engine and the command reproduce every one of them."""

import json
from pathlib import Path
from typing import TypedDict

import pytest
import typer
from typer.testing import CliRunner

from taximeter.cli.savings import command
from taximeter_billing.domain.savings import savings_for_period
from taximeter_billing.domain.split import largest_remainder
from taximeter_schemas.cache_policies import read_rule
from taximeter_schemas.cache_uses import read_cache_records, read_rates


class Expected(TypedDict, total=False):
    name: str
    policy: dict[str, object]
    charges: dict[str, int]
    credits: dict[str, int]


class Case(TypedDict):
    name: str
    rates: dict[str, dict[str, int]]
    events: list[dict[str, object]]
    list: dict[str, int]
    metered: dict[str, int]
    gross_saving: dict[str, int]
    write_premium: dict[str, int]
    expect: list[Expected]


GOLDEN = json.loads(Path(__file__).with_name("cache_savings.json").read_text("utf-8"))
CASES: list[Case] = GOLDEN["cases"]
EXPECTED = [
    pytest.param(case, expected, id=f"{case['name'].split()[0]}: {expected['name']}")
    for case in CASES
    for expected in case["expect"]
]


def assert_shares(found: dict[str, int], expected: dict[str, int], exactly: bool) -> None:
    """The same sum; the same shares, or each within one unit where the salt decides who gets the odd one."""
    assert sum(found.values()) == sum(expected.values())
    off = 0 if exactly else 1
    assert all(abs(found.get(key, 0) - share) <= off for key, share in expected.items())
    assert all(abs(share) <= off for key, share in found.items() if key not in expected)


@pytest.mark.parametrize("row", GOLDEN["largest_remainder"])
def test_largest_remainder(row: dict[str, object]) -> None:
    total, weights, salt = row["total"], row["weights"], row["salt"]
    assert isinstance(total, int)
    assert isinstance(weights, dict)
    assert isinstance(salt, str)
    assert largest_remainder(total, weights, salt) == row["result"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"].split()[0])
def test_costs_before_any_policy(case: Case) -> None:
    rates = read_rates(case["rates"])
    rule = read_rule({"kind": "waterfall", "beneficiary_bps": 10000}, rates)
    accounts = savings_for_period(read_cache_records(case["events"]), rates, rule).by_tenant
    assert {tenant: account.list_pico for tenant, account in accounts.items()} == case["list"]
    assert {tenant: account.metered_pico for tenant, account in accounts.items()} == case["metered"]
    assert {tenant: account.gross_pico for tenant, account in accounts.items()} == case["gross_saving"]
    assert {tenant: account.write_premium_pico for tenant, account in accounts.items()} == case["write_premium"]


@pytest.mark.parametrize(("case", "expected"), EXPECTED)
def test_policies(case: Case, expected: Expected) -> None:
    rates = read_rates(case["rates"])
    rule = read_rule(expected["policy"], rates)
    result = savings_for_period(read_cache_records(case["events"]), rates, rule, salt="2026-11")
    exactly = not case["name"].startswith("G5")
    assert_shares(result.charges_pico, expected["charges"], exactly)
    if "credits" in expected:
        assert_shares({"@provider": result.provider_retained_pico, **result.credits_pico}, expected["credits"], exactly)
    assert sum(result.charges_pico.values()) == sum(case["metered"].values()) + result.provider_retained_pico


@pytest.mark.parametrize(("case", "expected"), EXPECTED)
def test_command(case: Case, expected: Expected, tmp_path: Path) -> None:
    named = {"events": case["events"], "rates": case["rates"], "policy": expected["policy"]}
    arguments = ["--json"]
    for name, content in named.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content), "utf-8")
        arguments += [f"--{name}", str(path)]
    app = typer.Typer()
    app.command()(command)
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    printed = json.loads(ran.stdout)
    assert printed.keys() == {"charges", "credits", "provider_retained"}
    exactly = not case["name"].startswith("G5")
    assert_shares(printed["charges"], expected["charges"], exactly)
    if "credits" in expected:
        tenants = {name: credit for name, credit in expected["credits"].items() if name != "@provider"}
        assert printed["credits"].keys() == tenants.keys()
        assert printed["provider_retained"] == expected["credits"].get("@provider", 0)
