"""What each cache-savings policy promises, and that the engine agrees with a plain second opinion."""

import json
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taximeter.cli.savings import summary
from taximeter_billing.domain.epochs import in_order
from taximeter_billing.domain.savings import SavingsResult, savings_for_period
from taximeter_schemas.cache_policies import (
    CachePolicy,
    Rule,
    ShapleyRule,
    WaterfallRule,
    load_cache_policy,
    read_rule,
)
from taximeter_schemas.cache_uses import CacheUse, Cleared, Evicted, SkuRates
from taximeter_schemas.errors import CachePolicyError
from tests.property import cache_savings_oracle as oracle

Records = list[CacheUse | Evicted | Cleared]

TOKENS = {"S": 7, "D1": 11, "D2": 5, "E": 13}
# Prompts are paths in a prefix tree.
PATHS = [("S",), ("S", "D1"), ("S", "D2"), ("S", "D1", "E"), ("E",)]
# No premium, and an odd price; a write premium; a write that costs less than a read.
RATES = {
    "m": SkuRates(p=3, r=1, w=3),
    "premium": SkuRates(p=30, r=3, w=41),
    "free-write": SkuRates(p=10, r=4, w=0),
}
# Every kind of policy that may be published (weights by tokens need one price: see one_price below).
PUBLISHED: list[dict[str, object]] = [
    {"kind": "retain"},
    {"kind": "beneficiary"},
    {"kind": "beneficiary", "recover_premium": False},
    {"kind": "warmer", "warmer_cap_bps": 10000},
    {"kind": "warmer", "warmer_cap_bps": 2500, "recover_premium": False},
    {"kind": "pool", "weight": "list_spend"},
    {"kind": "shapley_tenant"},
    {"kind": "shapley_use"},
]
published = st.sampled_from([load_cache_policy(data, RATES) for data in PUBLISHED])


@st.composite
def a_use(draw: st.DrawFn, number: int, skus: tuple[str, ...]) -> CacheUse:
    path = draw(st.sampled_from(PATHS))
    return CacheUse(
        event_id=f"e{number}",
        tenant=draw(st.sampled_from("ABCD")),
        ts=draw(st.integers(0, 12)),
        sku=draw(st.sampled_from(skus)),
        pool=draw(st.sampled_from(["", "shared"])),
        model=draw(st.sampled_from([None, "weights"])),
        blocks=tuple((block, TOKENS[block]) for block in path),
        hit_blocks=draw(st.integers(0, len(path))),
        tail_tokens=draw(st.integers(0, 9)),
        cached_tokens=draw(st.sampled_from([0, 0, 6])),
        written_tokens=draw(st.sampled_from([0, 0, 2])),
    )


@st.composite
def some_records(draw: st.DrawFn, skus: tuple[str, ...] = tuple(RATES)) -> Records:
    records: Records = [draw(a_use(number, skus)) for number in range(draw(st.integers(1, 10)))]
    for _ in range(draw(st.integers(0, 2))):
        ts, model, pool = (
            draw(st.integers(0, 12)),
            draw(st.sampled_from([*skus, "weights"])),
            draw(st.sampled_from(["", "shared"])),
        )
        if draw(st.booleans()):
            records.append(Evicted(kind="evict", ts=ts, model=model, pool=pool, blocks=("S", "E")))
        else:
            records.append(Cleared(kind="clear", ts=ts, model=draw(st.sampled_from([None, model])), pool=pool))
    return records


@st.composite
def a_rule(draw: st.DrawFn) -> Rule:
    unattributed = draw(st.sampled_from(["beneficiary", "provider"]))
    if draw(st.integers(0, 3)) == 0:
        return ShapleyRule(players=draw(st.sampled_from(["tenant", "use"])), unattributed=unattributed)
    cuts = sorted(draw(st.lists(st.sampled_from([0, 1, 2000, 3333, 5000, 10000]), min_size=3, max_size=3)))
    return WaterfallRule(
        unattributed=unattributed,
        provider_bps=cuts[0],
        beneficiary_bps=cuts[1] - cuts[0],
        warmer_bps=cuts[2] - cuts[1],
        pool_bps=10000 - cuts[2],
        pool_weight=draw(st.sampled_from(["list_spend", "input_tokens", "cached_tokens", "equal"])),
        pool_tenants=draw(st.sampled_from([(), ("A", "Z")])),
        self_hits=draw(st.sampled_from(["keep", "share"])),
        recover_premium=draw(st.booleans()),
        warmer_cap_bps=draw(st.sampled_from([None, 0, 100, 5000, 10000, 20000])),
    )


def metered(result: SavingsResult) -> int:
    return sum(account.metered_pico for account in result.by_tenant.values())


def conserved(result: SavingsResult) -> bool:
    cells = result.by_tenant_and_sku.values()
    return (
        sum(result.charges_pico.values())
        == sum(cell.charge_pico for cell in cells)
        == metered(result) + result.provider_retained_pico
    )


@given(some_records(), a_rule(), st.sampled_from([None, 0, 3]))
def test_agrees_with_a_plain_second_opinion(records: Records, rule: Rule, ttl_s: int | None) -> None:
    result = savings_for_period(records, RATES, rule, ttl_s=ttl_s)
    exact, provider = oracle.charges(in_order(records, RATES), RATES, rule, ttl_s)
    charges = result.charges_pico
    assert all(
        abs(charges.get(tenant, 0) - exact.get(tenant, Fraction(0))) < 1 for tenant in charges.keys() | exact.keys()
    )
    assert abs(result.provider_retained_pico - provider) < 1
    assert conserved(result)


@given(some_records(), a_rule(), st.randoms(use_true_random=False))
def test_arrival_and_repetition_change_no_byte(records: Records, rule: Rule, random: Random) -> None:
    first = json.dumps(summary(savings_for_period(records, RATES, rule, "2026-11")))
    again = [*records, *(record for record in records if isinstance(record, CacheUse))]
    random.shuffle(again)
    assert json.dumps(summary(savings_for_period(again, RATES, rule, "2026-11"))) == first


@given(some_records(), published)
def test_nobody_pays_above_list_but_for_the_own_write_premium(records: Records, policy: CachePolicy) -> None:
    for account in savings_for_period(records, RATES, policy).by_tenant_and_sku.values():
        if policy.kind.startswith("shapley"):
            continue
        assert account.charge_pico <= account.list_pico + max(0, account.write_premium_pico)


@given(some_records(("m",)), published)
def test_without_a_write_premium_nobody_pays_above_list_nor_below_nothing(
    records: Records, policy: CachePolicy
) -> None:
    for account in savings_for_period(records, RATES, policy).by_tenant.values():
        assert 0 <= account.charge_pico <= account.list_pico


@given(st.permutations("AABBBC"), st.sampled_from(["tenant", "use"]), st.sampled_from(["m", "premium"]))
def test_shapley_does_not_ask_who_came_first(order: list[str], players: str, sku: str) -> None:
    rule = read_rule({"kind": "shapley", "players": players}, RATES)

    def charges(tenants: list[str]) -> dict[str, int]:
        uses = [
            CacheUse(event_id=f"e{at}", tenant=tenant, ts=at, sku=sku, blocks=(("S", 7),), hit_blocks=int(at > 0))
            for at, tenant in enumerate(tenants)
        ]
        return savings_for_period(uses, RATES, rule).charges_pico

    assert charges(order) == charges(list("AABBBC"))


# Where a write costs less than a read, sharing the filling is a gain, not a cost; the promise is about costs.
@given(some_records(("m", "premium")), st.data())
def test_shapley_use_gives_nothing_for_splitting_a_tenant(records: Records, data: st.DataObject) -> None:
    rule = ShapleyRule(players="use")
    whole = savings_for_period(records, RATES, rule).charges_pico
    split = [
        record.model_copy(update={"tenant": "A2"})
        if isinstance(record, CacheUse) and record.tenant == "A" and data.draw(st.booleans())
        else record
        for record in records
    ]
    parts = savings_for_period(split, RATES, rule).charges_pico
    # Exactly the same but for rounding: one unit for each of the three figures.
    assert abs(parts.get("A", 0) + parts.get("A2", 0) - whole.get("A", 0)) < 3


@given(some_records(("m", "premium")), st.data())
def test_shapley_use_gives_nothing_for_splitting_a_request(records: Records, data: st.DataObject) -> None:
    rule = ShapleyRule(players="use")
    uses = [record for record in records if isinstance(record, CacheUse) and len(record.blocks) > 1]
    if not uses:
        return
    use = data.draw(st.sampled_from(uses))
    # The first block is asked for on its own before, at the same second; then the request finds it in cache.
    before = use.model_copy(
        update={
            "event_id": use.event_id + "-",
            "blocks": use.blocks[:1],
            "hit_blocks": min(1, use.hit_blocks),
            **dict.fromkeys(("tail_tokens", "cached_tokens", "written_tokens"), 0),
        }
    )
    after = use.model_copy(update={"hit_blocks": max(1, use.hit_blocks)})
    alone = [record for record in records if not isinstance(record, CacheUse) or record.ts != use.ts or record is use]
    split = [part for record in alone for part in ([before, after] if record is use else [record])]
    whole = savings_for_period(alone, RATES, rule).charges_pico[use.tenant]
    assert savings_for_period(split, RATES, rule).charges_pico[use.tenant] > whole - 2


@given(some_records(), a_rule())
def test_what_a_late_use_changes_sums_to_what_it_added(records: Records, rule: Rule) -> None:
    late = CacheUse(event_id="late", tenant="B", ts=5, sku="m", blocks=(("S", 7),), hit_blocks=1, tail_tokens=3)
    before, after = savings_for_period(records, RATES, rule), savings_for_period([*records, late], RATES, rule)
    tenants = before.charges_pico.keys() | after.charges_pico.keys()
    changes = {tenant: after.charges_pico.get(tenant, 0) - before.charges_pico.get(tenant, 0) for tenant in tenants}
    kept = after.provider_retained_pico - before.provider_retained_pico
    assert sum(changes.values()) == metered(after) - metered(before) + kept
    assert metered(after) - metered(before) == 1 * 7 + 3 * 3  # a hit on 7 tokens, 3 tokens at list


def use(
    tenant: str, ts: int, sku: str = "m", hit: int = 0, tail: int = 0, blocks: tuple[tuple[str, int], ...] = ()
) -> CacheUse:
    return CacheUse(
        event_id=f"{tenant}{ts}{sku}", tenant=tenant, ts=ts, sku=sku, blocks=blocks, hit_blocks=hit, tail_tokens=tail
    )


SHARED = (("S", 1000),)
WARMED_THEN_HIT = [use("A", 1, blocks=SHARED), *(use("B", at, hit=1, blocks=SHARED) for at in (2, 3, 4))]


class TestRefusedPoliciesWouldBreakAPromise:
    def test_without_a_cap_a_tenant_is_paid_for_being_first(self) -> None:
        with pytest.raises(CachePolicyError, match="cap"):
            load_cache_policy({"kind": "waterfall", "warmer_bps": 10000}, RATES)
        rule = read_rule({"kind": "waterfall", "warmer_bps": 10000}, RATES)
        assert savings_for_period(WARMED_THEN_HIT, RATES, rule).charges_pico["A"] < 0
        capped = load_cache_policy({"kind": "warmer", "warmer_cap_bps": 10000}, RATES)
        assert savings_for_period(WARMED_THEN_HIT, RATES, capped).charges_pico["A"] == 0

    def test_token_weights_across_prices_pay_the_cheap_model(self) -> None:
        with pytest.raises(CachePolicyError, match="different price"):
            load_cache_policy({"kind": "pool", "weight": "input_tokens"}, RATES)
        records = [
            use("A", 1, "premium", blocks=SHARED),
            use("A", 2, "premium", hit=1, blocks=SHARED),
            use("B", 3, "m", tail=2000),
        ]
        split = {"kind": "waterfall", "pool_bps": 10000, "pool_weight": "input_tokens", "self_hits": "share"}
        assert savings_for_period(records, RATES, read_rule(split, RATES)).charges_pico["B"] < 0
        fair = read_rule({**split, "pool_weight": "list_spend"}, RATES)
        assert savings_for_period(records, RATES, fair).charges_pico["B"] >= 0

    def test_unnamed_equal_shares_reward_a_second_name(self) -> None:
        with pytest.raises(CachePolicyError, match="named list"):
            load_cache_policy({"kind": "pool", "weight": "equal"}, RATES)
        rule = read_rule({"kind": "waterfall", "pool_bps": 10000, "pool_weight": "equal", "self_hits": "share"}, RATES)
        one = savings_for_period(WARMED_THEN_HIT, RATES, rule).charges_pico
        split = [*WARMED_THEN_HIT[:-1], WARMED_THEN_HIT[-1].model_copy(update={"tenant": "B2"})]
        two = savings_for_period(split, RATES, rule).charges_pico
        assert two["B"] + two["B2"] < one["B"]

    def test_prices_that_part_later_stop_the_settlement(self) -> None:
        policy = load_cache_policy({"kind": "pool", "weight": "cached_tokens"}, {"m": RATES["m"]})
        with pytest.raises(CachePolicyError, match="different price"):
            savings_for_period([use("A", 1, "m"), use("A", 2, "premium")], RATES, policy)


@given(st.integers(1, 400))
def test_rounding_does_not_pile_up_over_many_blocks(blocks: int) -> None:
    """A third of a unit in each block: the charge is still within one unit of exact."""
    prefix = tuple((f"b{number}", 1) for number in range(blocks))
    records = [use(tenant, at, hit=blocks if at else 0, blocks=prefix) for at, tenant in enumerate("ABC")]
    charges = savings_for_period(records, {"m": SkuRates(p=2, r=1, w=2)}, ShapleyRule(players="use")).charges_pico
    assert all(abs(charge - Fraction(4 * blocks, 3)) < 1 for charge in charges.values())
