"""What an operator may declare, what is refused and in which words, and what a plan makes of it."""

from pathlib import Path
from typing import Any

import pytest

from taximeter_billing.declarations import read_file, read_mapping
from taximeter_billing.declarations.plan import Current, make_plan
from taximeter_billing.errors import DeclarationError, FrozenError
from taximeter_schemas.control import ControlKind
from tests.declared_things import bodies, changed

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "taximeter.yaml"


def small() -> dict[str, Any]:
    """One tenant on one card, in a pool, with a budget."""
    price = {"model": "m", "uncached_input": "0.50", "cache_read_gpu": "0.05", "output": "1.50", "request": "0.001"}
    card = {"id": "default", "version": 1, "effective_from": "2026-01-01T00:00:00Z", "prices": [price]}
    return {
        "rate_cards": [card],
        "cache_pools": [{"id": "pool", "tenants": ["acme"]}],
        "tenants": [{"id": "acme"}],
        "budgets": [{"id": "month", "tenant": "acme", "limit": "12.50"}],
    }


def test_amounts_become_whole_pico_units() -> None:
    declared = bodies(small())
    price = declared[ControlKind.RATE_CARD, "default@1"]["prices"][0]
    assert (price["uncached_input"], price["cache_read_gpu"], price["output"]) == (500_000, 50_000, 1_500_000)
    assert price["request"] == 1_000_000_000
    assert declared[ControlKind.BUDGET, "month"]["limit_pico"] == 12_500_000_000_000


def test_a_pool_makes_its_tenants_members() -> None:
    assert bodies(small())[ControlKind.TENANT, "acme"]["cache_pool"] == "pool"


REFUSED = [
    # (what, where, value, words that say so)
    (
        "a float",
        "rate_cards.0.prices.0.output",
        1.5,
        'rate_cards[0].prices[0].output: 1.5 is not exact; quote it: "1.5"',
    ),
    (
        "too fine",
        "rate_cards.0.prices.0.output",
        "0.0000005",
        "rate_cards[0].prices[0].output: '0.0000005' per million",
    ),
    # Finer than what a decimal context of 28 digits would notice.
    ("far too fine", "budgets.0.limit", "1.0000000000000000000000000000001", "budgets[0].limit: finer than 1e-12"),
    ("no number", "budgets.0.limit", "a lot", "budgets[0].limit: not an amount: 'a lot'"),
    ("a truth", "budgets.0.limit", True, "budgets[0].limit: a bool is not an exact amount"),
    ("no amount", "budgets.0.limit", None, "budgets[0].limit: an amount is needed"),
    ("negative", "budgets.0.limit", "-1", "budgets[0]: limit_pico"),
    ("a dear read", "rate_cards.0.prices.0.cache_read_gpu", "0.60", "prices[0].cache_read_gpu: a cache read is dearer"),
    ("no prices", "rate_cards.0.prices", [], "rate_cards[0].prices: a list is needed"),
    ("a time without a zone", "rate_cards.0.effective_from", "2026-01-01T00:00:00", "rate_cards[0]: effective_from"),
    ("no time", "rate_cards.0.effective_from", None, "rate_cards[0]: effective_from"),
    ("an unknown field", "tenants.0.colour", "red", "tenants[0]: colour"),
    ("an unknown section", "colours", [], "unknown section colours"),
    ("no list", "tenants", {"id": "acme"}, "tenants is not a list"),
    ("an unknown zone", "tenants.0.time_zone", "Mars/Base", "no such time zone: 'Mars/Base'"),
    ("twice", "tenants.1", {"id": "acme"}, "tenant acme is declared twice"),
    ("an unknown card", "tenants.0.rate_card", "gold", "tenant acme names the rate card 'gold'"),
    ("an unknown policy", "tenants.0.cache_policy", "gold", "tenant acme names the cache policy 'gold'"),
    ("an unknown pool", "tenants.1", {"id": "b", "cache_pool": "x"}, "tenant b names the cache pool 'x'"),
    ("another pool", "tenants.0.cache_pool", "other", "tenant acme names the cache pool 'other'"),
    ("a stranger in a pool", "cache_pools.0.tenants", ["acme", "b"], "cache pool pool lists the tenant 'b'"),
    ("two pools", "cache_pools.1", {"id": "p2", "tenants": ["acme"]}, "tenant acme is in two cache pools: pool and p2"),
    ("another currency", "tenants.0.currency", "EUR", "tenant acme pays in EUR, its rate card default is in USD"),
    ("a budget's currency", "budgets.0.currency", "EUR", "budget month is in EUR, its tenant pays in USD"),
    ("a budget of nobody", "budgets.0.tenant", "b", "budget month names the tenant 'b'"),
    ("an uncapped warmer", "cache_policies", [{"id": "w", "kind": "warmer"}], "cache_policies[0]: policy: warmer"),
]


@pytest.mark.parametrize(("path", "value", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused_says_where(path: str, value: object, words: str) -> None:
    with pytest.raises(DeclarationError) as refusal:
        read_mapping(changed(small(), path, value))
    assert words in str(refusal.value)


def test_members_of_a_pool_settle_by_one_policy() -> None:
    content = changed(small(), "tenants.1", {"id": "b", "cache_policy": "shared"})
    content["cache_policies"] = [{"id": "shared", "kind": "shapley_use"}]
    content["cache_pools"][0]["tenants"] = ["acme", "b"]
    with pytest.raises(DeclarationError, match="acme and b share the cache pool 'pool', so they need one cache_policy"):
        read_mapping(content)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text('budgets:\n  - id: a\n    tenant: t\n    limit: "1"\n    limit: "100"\n')
    with pytest.raises(DeclarationError, match="'limit' stands twice"):
        read_file(file)


@pytest.mark.parametrize("text", ["[", "just words", "- a", "\x00", "&a [*a]"])
def test_a_file_that_holds_no_declarations(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(DeclarationError, match=r"broken\.yaml"):
        read_file(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="No such file"):
        read_file(tmp_path / "nowhere.yaml")


def test_the_example_is_valid() -> None:
    kinds = [thing.kind for thing in read_file(EXAMPLE)]
    assert kinds.count(ControlKind.TENANT) == 5
    assert kinds.count(ControlKind.CACHE_POOL) == 2


def current(content: dict[str, Any]) -> Current:
    return bodies(content)


def test_a_plan_names_what_is_new_changed_and_as_it_was() -> None:
    content = changed(small(), "budgets.0.limit", "13")
    content["tenants"].append({"id": "b"})
    plan = make_plan(current(small()), read_mapping(content))
    assert [(change.action, change.kind, change.key) for change in plan.changes] == [
        ("create", ControlKind.TENANT, "b"),
        ("change", ControlKind.BUDGET, "month"),
    ]
    assert plan.changes[1].fields == ["limit_pico"]
    assert plan.unchanged == 3


def test_the_same_again_is_no_change() -> None:
    assert make_plan(current(small()), read_mapping(small())).empty


def test_only_pruning_deletes_and_never_a_rate_card() -> None:
    held = current(changed(small(), "tenants.1", {"id": "b"}))
    assert make_plan(held, read_mapping(small())).empty
    pruned = make_plan(held, read_mapping(small()), prune=True)
    assert [(change.action, change.key) for change in pruned.changes] == [("delete", "b")]
    everything = make_plan(held, read_mapping({}), prune=True)
    assert ControlKind.RATE_CARD not in {change.kind for change in everything.changes}


def test_a_published_rate_card_does_not_change() -> None:
    with pytest.raises(FrozenError, match="rate card default@1 is published and cannot change"):
        make_plan(current(small()), read_mapping(changed(small(), "rate_cards.0.prices.0.output", "1.60")))


def test_a_published_cache_policy_changes_by_a_new_version_only() -> None:
    policy = {"id": "keep", "kind": "retain"}
    held = current({**small(), "cache_policies": [policy]})
    with pytest.raises(FrozenError, match="cache policy keep@1 is published and cannot change; declare version 2"):
        make_plan(held, read_mapping({**small(), "cache_policies": [{**policy, "unattributed": "provider"}]}))
    later = {**policy, "unattributed": "provider", "version": 2}
    plan = make_plan(held, read_mapping({**small(), "cache_policies": [later]}))
    assert [change.key for change in plan.changes] == ["keep"]
