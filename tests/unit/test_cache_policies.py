"""What a cache-savings policy, its rates and its events must look like, and what each fault is called."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
import typer
from typer.testing import CliRunner

from taximeter.cli.savings import command
from taximeter_schemas.cache_policies import DEFAULT_CACHE_POLICY, WaterfallRule, load_cache_policy, read_rule
from taximeter_schemas.cache_uses import read_cache_records, read_rates
from taximeter_schemas.errors import CachePolicyError, CacheUseError

ONE_PRICE = read_rates({"m": {"p": 10, "r": 1}, "m@2": {"p": 10, "r": 1, "w": 12}})
TWO_PRICES = read_rates({"m": {"p": 10, "r": 1}, "n": {"p": 30, "r": 3}})


def test_the_default_is_beneficiary_with_the_premium_recovered_first() -> None:
    assert DEFAULT_CACHE_POLICY.name == "default@1"
    assert DEFAULT_CACHE_POLICY.rule == WaterfallRule(beneficiary_bps=10000, recover_premium=True)


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "retain"},
        {"kind": "beneficiary"},
        {"kind": "warmer", "warmer_cap_bps": 10000},
        {"kind": "pool", "weight": "list_spend"},
        {"kind": "pool", "weight": "input_tokens"},
        {"kind": "pool", "weight": "cached_tokens"},
        {"kind": "pool", "weight": "equal", "tenants": ["a", "b"]},
        {"kind": "waterfall", "provider_bps": 2000, "beneficiary_bps": 8000},
        {"kind": "waterfall", "warmer_bps": 10000, "warmer_cap_bps": 1},
        {"kind": "shapley_tenant"},
        {"kind": "shapley_use", "id": "fair", "version": 3, "unattributed": "provider", "storage": "shared"},
    ],
)
def test_published(data: dict[str, object]) -> None:
    policy = load_cache_policy(data, ONE_PRICE)
    assert load_cache_policy(policy.model_dump(), ONE_PRICE) == policy
    assert policy.rule.unattributed == policy.unattributed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "warmer"}, "warmer_cap_bps: Field required"),
        ({"kind": "warmer", "warmer_cap_bps": 10001}, "less than or equal to 10000"),
        ({"kind": "waterfall", "warmer_bps": 10000}, "needs a cap"),
        ({"kind": "waterfall", "warmer_bps": 10000, "warmer_cap_bps": 10001}, "more than the write cost"),
        ({"kind": "waterfall", "provider_bps": 9999}, "must sum to 10000 basis points, not 9999"),
        ({"kind": "waterfall"}, "must sum to 10000"),
        ({"kind": "waterfall", "provider_bps": 10000.0}, "valid integer"),
        ({"kind": "pool", "weight": "input_tokens"}, "different price: m, n"),
        ({"kind": "pool", "weight": "cached_tokens"}, "different price"),
        ({"kind": "waterfall", "pool_bps": 10000, "pool_weight": "input_tokens"}, "different price"),
        ({"kind": "pool", "weight": "equal"}, "named list"),
        ({"kind": "waterfall", "pool_bps": 10000, "pool_weight": "equal"}, "named list"),
        ({"kind": "pool", "weight": "equal", "tenants": ["a", "a"]}, "names one twice"),
        ({"kind": "pool", "weight": "list_spend", "tenants": ["a"]}, "equal shares only"),
        ({"kind": "retain", "surprise": 1}, "Extra inputs"),
        ({"kind": "shapley", "players": "use"}, "does not match any of the expected tags"),
        ({}, "Unable to extract tag"),
        ([], "valid dictionary"),
    ],
)
def test_refused(data: object, message: str) -> None:
    with pytest.raises(CachePolicyError, match=message):
        load_cache_policy(data, TWO_PRICES)


def test_arithmetic_alone_takes_a_rule_that_may_not_be_published() -> None:
    rule = read_rule({"kind": "waterfall", "warmer_bps": 10000}, TWO_PRICES)
    assert isinstance(rule, WaterfallRule)
    assert (rule.warmer_cap_bps, rule.self_hits, rule.recover_premium) == (None, "keep", False)
    with pytest.raises(CachePolicyError, match="players"):
        read_rule({"kind": "shapley", "players": "everybody"}, TWO_PRICES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"m": {"p": 1, "r": 2}}, "cache read price 2 is above the list price 1"),
        ({"m": {"p": 1.5, "r": 1}}, "m/p: Input should be a valid integer"),
        ({"m": {"p": -1, "r": -1}}, "greater than or equal to 0"),
        ({"m": {"p": 1}}, "m/r: Field required"),
        ([], "valid dictionary"),
    ],
)
def test_rates_refused(data: object, message: str) -> None:
    with pytest.raises(CacheUseError, match=message):
        read_rates(data)


USE = {"event_id": "e", "tenant": "A", "ts": 1, "sku": "m"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{**USE, "hit_blocks": 1}], "1 hit blocks of 0 blocks"),
        ([{**USE, "blocks": [["P", -1]]}], "0/use/blocks/0/1"),
        ([{**USE, "blocks": [["P", True]]}], "valid integer"),
        ([{**USE, "tail_tokens": 1.0}], "valid integer"),
        ([{**USE, "tenant": "@provider"}], "tenant"),
        ([{**USE, "tenant": ""}], "tenant"),
        ([{**USE, "surprise": 1}], "Extra inputs"),
        ([{"event_id": "e"}], "tenant: Field required; 0/use/ts: Field required; 0/use/sku: Field required"),
        ([{"kind": "evict", "ts": 1}], "Field required"),
        ([{"kind": "other"}], "'other' found"),
        ([3], "Unable to extract tag"),
        ({}, "valid list"),
    ],
)
def test_events_refused(data: object, message: str) -> None:
    with pytest.raises(CacheUseError, match=message):
        read_cache_records(data)


class TestCommand:
    """Files in, exit code out; the figures are in the golden tests."""

    GOOD: ClassVar[dict[str, str]] = {
        "events": json.dumps([{**USE, "blocks": [["P", 5]]}]),
        "rates": json.dumps({"m": {"p": 10, "r": 1}}),
        "policy": json.dumps({"kind": "shapley_use"}),
    }

    def run(self, folder: Path, *flags: str, events_name: str = "events.json", **files: str) -> tuple[int, str, str]:
        arguments = list(flags)
        for name, text in {**self.GOOD, **files}.items():
            path = folder / (events_name if name == "events" else f"{name}.json")
            path.write_text(text, "utf-8")
            arguments += [f"--{name}", str(path)]
        app = typer.Typer()
        app.command()(command)
        ran = CliRunner().invoke(app, arguments)
        return ran.exit_code, ran.stdout, ran.stderr

    def test_a_table_for_people(self, tmp_path: Path) -> None:
        code, shown, _ = self.run(tmp_path)
        assert code == 0
        assert "A" in shown
        assert "50" in shown

    def test_json_lines(self, tmp_path: Path) -> None:
        lines = json.dumps(USE) + "\n\n" + json.dumps({**USE, "event_id": "f", "tail_tokens": 2}) + "\n"
        code, shown, _ = self.run(tmp_path, "--json", events_name="uses.jsonl", events=lines)
        assert code == 0
        assert json.loads(shown) == {"charges": {"A": 20}, "credits": {}, "provider_retained": 0}

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"events": "[{"}, "not JSON"),
            ({"events": "[" * 100_000}, "not JSON"),
            ({"events": "{}"}, "events"),
            ({"events": json.dumps([{**USE, "sku": "x[y]"}])}, "no rates for SKU 'x[y]'"),
            ({"rates": "[]"}, "rates"),
            ({"rates": '{"m": {"p": NaN, "r": 1}}'}, "rates"),
            ({"policy": '{"kind": "warmer"}'}, "warmer_cap_bps"),
            ({"policy": "null"}, "policy"),
        ],
    )
    def test_bad_input_is_named_and_exits_2(self, files: dict[str, str], message: str, tmp_path: Path) -> None:
        code, shown, told = self.run(tmp_path, "--json", **files)
        assert (code, shown) == (2, "")
        assert message in told

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        app = typer.Typer()
        app.command()(command)
        arguments = [part for name in self.GOOD for part in (f"--{name}", str(tmp_path / "nowhere"))]
        ran = CliRunner().invoke(app, arguments)
        assert ran.exit_code == 2
        assert "No such file" in ran.stderr

    def test_published_refuses_what_the_arithmetic_takes(self, tmp_path: Path) -> None:
        uncapped = json.dumps({"kind": "waterfall", "warmer_bps": 10000})
        assert self.run(tmp_path, policy=uncapped)[0] == 0
        code, _, told = self.run(tmp_path, "--published", policy=uncapped)
        assert code == 2
        assert "needs a cap" in told
