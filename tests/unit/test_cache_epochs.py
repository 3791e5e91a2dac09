"""When a residency of a block begins and ends, and what that means for who is credited."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from taximeter_billing.domain.savings import SavingsResult, savings_for_period
from taximeter_schemas.cache_policies import read_rule
from taximeter_schemas.cache_uses import read_cache_records, read_rates
from taximeter_schemas.errors import CacheUseError

RATES = read_rates({"m": {"p": 10, "r": 1, "w": 12, "s": 7}, "m-batch": {"p": 4, "r": 1}})
SHAPLEY = {"kind": "shapley", "players": "tenant"}
WARMER = {"kind": "waterfall", "warmer_bps": 10000}


def use(tenant: str, ts: int, hit: int = 0, **more: object) -> dict[str, object]:
    prompt = {"blocks": [["P", 100]], "hit_blocks": hit, "sku": "m"}
    return {"event_id": f"{tenant}{ts}", "tenant": tenant, "ts": ts, **prompt, **more}


def settle(
    events: list[dict[str, object]],
    policy: Mapping[str, object],
    ttl_s: int | None = None,
    until: int | None = None,
) -> SavingsResult:
    return savings_for_period(read_cache_records(events), RATES, read_rule(policy, RATES), ttl_s=ttl_s, until=until)


# A fills, B hits twice; the row says what comes in between the hits, and what A is credited as the warmer.
FIRST_HIT, BOTH_HITS = 900, 1800
ENDS: list[tuple[str, list[dict[str, object]], int | None, int]] = [
    ("nothing", [], None, BOTH_HITS),
    ("evicted", [{"kind": "evict", "ts": 5, "model": "m", "blocks": ["P"]}], None, FIRST_HIT),
    ("another block evicted", [{"kind": "evict", "ts": 5, "model": "m", "blocks": ["Q"]}], None, BOTH_HITS),
    (
        "evicted in another pool",
        [{"kind": "evict", "ts": 5, "model": "m", "blocks": ["P"], "pool": "x"}],
        None,
        BOTH_HITS,
    ),
    ("cleared", [{"kind": "clear", "ts": 5, "model": "m"}], None, FIRST_HIT),
    ("everything cleared", [{"kind": "clear", "ts": 5}], None, FIRST_HIT),
    ("another model cleared", [{"kind": "clear", "ts": 5, "model": "n"}], None, BOTH_HITS),
    ("unused past its time to live", [], 6, FIRST_HIT),
    ("unused for just its time to live", [], 7, BOTH_HITS),
    ("filled again by C", [use("C", 5)], None, FIRST_HIT),
    ("used by C in another pool", [use("C", 5, pool="x")], None, BOTH_HITS),
    ("a block of another length under the same hash", [use("C", 5, 1, blocks=[["P", 99]])], None, FIRST_HIT),
]


@pytest.mark.parametrize(("between", "ttl_s", "credited"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_a_warmer_is_credited_for_its_own_residency_only(
    between: list[dict[str, object]], ttl_s: int | None, credited: int
) -> None:
    result = settle([use("A", 1), use("B", 2, 1), *between, use("B", 9, 1)], WARMER, ttl_s)
    assert result.credits_pico["A"] == credited
    assert sum(result.charges_pico.values()) == sum(a.metered_pico for a in result.by_tenant.values())


def test_a_hit_whose_filler_nobody_saw_is_the_hitters_own() -> None:
    assert settle([use("B", 2, 1)], WARMER).charges_pico == {"B": 100}
    assert settle([use("B", 2, 1)], SHAPLEY).charges_pico == {"B": 100}


def test_at_one_second_who_fills_comes_before_who_hits() -> None:
    result = settle([use("A", 1, 1), use("B", 1, 0)], WARMER)
    assert result.credits_pico == {"A": 0, "B": 900}


def test_skus_of_one_model_share_a_cache_each_at_its_own_price() -> None:
    result = settle([use("A", 1, model="weights"), use("B", 2, 1, sku="m-batch", model="weights")], SHAPLEY)
    # The filling cost (12 - 1) x 100 above a read: half each. Reads at each SKU's own price.
    assert result.charges_pico == {"A": 100 + 550, "B": 100 + 550}
    assert result.by_tenant_and_sku[("B", "m-batch")].list_pico == 400
    apart = settle([use("A", 1), use("B", 2, 1, sku="m-batch")], SHAPLEY)
    assert apart.charges_pico == {"A": 1200, "B": 100}


def test_a_tenant_with_two_skus_has_an_account_for_each() -> None:
    result = settle([use("A", 1), use("A", 2, 1), use("A", 3, sku="m-batch", tail_tokens=1)], WARMER)
    assert {cell: account.charge_pico for cell, account in result.by_tenant_and_sku.items()} == {
        ("A", "m"): 1200 + 100,
        ("A", "m-batch"): 400 + 4,
    }
    assert result.charges_pico == {"A": 1704}


class TestCountsWithoutBlocks:
    COUNTS = use("B", 2, 0, blocks=[], cached_tokens=50, written_tokens=10, tail_tokens=3, pool="shared")

    @pytest.mark.parametrize(
        ("policy", "charge", "kept"),
        [
            ({"kind": "beneficiary"}, 50 + 120 + 30, 0),
            (WARMER, 50 + 120 + 30, 0),  # nobody knows who filled: the tenant that hit gets it
            (SHAPLEY, 50 + 120 + 30, 0),
            ({"kind": "waterfall", "provider_bps": 2000, "warmer_bps": 8000}, 200 + 90, 90),
            ({"kind": "retain"}, 200 + 450, 450),
        ],
    )
    def test_the_saving_goes_to_who_hit(self, policy: dict[str, object], charge: int, kept: int) -> None:
        result = settle([self.COUNTS], policy)
        assert result.charges_pico == {"B": charge}
        assert result.provider_retained_pico == kept
        assert result.known == {"exact": 0, "inferred": 450, "unattributed": 0}

    @pytest.mark.parametrize(("unattributed", "charge"), [("beneficiary", 200), ("provider", 650)])
    def test_without_a_pool_the_policys_default_applies(self, unattributed: str, charge: int) -> None:
        result = settle([{**self.COUNTS, "pool": ""}], {**SHAPLEY, "unattributed": unattributed})
        assert result.charges_pico == {"B": charge}
        assert result.known == {"exact": 0, "inferred": 0, "unattributed": 450}

    def test_exact_and_inferred_are_told_apart(self) -> None:
        result = settle([use("A", 1), use("B", 2, 1), self.COUNTS | {"event_id": "counts"}], {"kind": "beneficiary"})
        assert result.known == {"exact": 900, "inferred": 450, "unattributed": 0}
        assert (result.by_tenant["B"].exact_pico, result.by_tenant["B"].inferred_pico) == (900, 450)


class TestCap:
    HITS: ClassVar = [use("B", at, 1) for at in (2, 3, 4)]

    @pytest.mark.parametrize(
        ("policy", "warmer", "hitter"),
        [
            # B's three hits save 2,700; writing cost A 1,200, of which 200 are premium.
            ({"warmer_bps": 10000}, 2700, 0),
            ({"warmer_bps": 10000, "warmer_cap_bps": 10000}, 1200, 1500),
            ({"warmer_bps": 10000, "warmer_cap_bps": 10000, "recover_premium": True}, 1200, 1500),
            ({"warmer_bps": 10000, "warmer_cap_bps": 5000}, 600, 2100),
            # The premium is recovered even where the cap is below it.
            ({"warmer_bps": 10000, "warmer_cap_bps": 0, "recover_premium": True}, 200, 2500),
            # What the cap cuts goes to who hit, never to the provider.
            ({"provider_bps": 5000, "warmer_bps": 5000, "warmer_cap_bps": 5000}, 600, 750),
        ],
    )
    def test_what_the_cap_cuts_goes_back_to_who_hit(self, policy: dict[str, object], warmer: int, hitter: int) -> None:
        result = settle([use("A", 1), *self.HITS], {"kind": "waterfall", **policy})
        assert result.credits_pico == {"A": warmer, "B": hitter}

    @pytest.mark.parametrize(("self_hits", "own"), [("keep", 900), ("share", 450)])
    def test_self_hits(self, self_hits: str, own: int) -> None:
        split = {"kind": "waterfall", "provider_bps": 5000, "beneficiary_bps": 5000, "self_hits": self_hits}
        result = settle([use("A", 1), use("A", 2, 1)], split)
        assert result.credits_pico == {"A": own}
        assert result.provider_retained_pico == 900 - own


class TestStorage:
    # A fills 100 tokens at 0 s; A hits once and B three times; the price is 7 a token-hour.
    EVENTS: ClassVar = [use("A", 0), use("A", 10, 1), use("B", 20, 1), use("B", 30, 1), use("B", 3600, 1)]

    @pytest.mark.parametrize(
        ("storage", "ttl_s", "until", "costs"),
        [
            ("creator", None, 7200, {"A": 1400, "B": 0}),  # still there at the period's end
            ("creator", None, None, {"A": 700, "B": 0}),  # known until its last use
            ("shared", None, 7200, {"A": 350, "B": 1050}),  # by hits
            ("shared", 3600, 99999, {"A": 350, "B": 1050}),  # gone an hour after its last use
        ],
    )
    def test_borne_by(self, storage: str, ttl_s: int | None, until: int | None, costs: dict[str, int]) -> None:
        result = settle(self.EVENTS, {"kind": "beneficiary", "storage": storage}, ttl_s, until)
        assert {tenant: account.storage_pico for tenant, account in result.by_tenant.items()} == costs

    def test_a_block_that_nobody_hit_is_its_creators(self) -> None:
        result = settle([use("A", 0)], {"kind": "beneficiary", "storage": "shared"}, until=3600)
        assert result.by_tenant["A"].storage_pico == 700

    def test_until_eviction(self) -> None:
        gone: dict[str, object] = {"kind": "evict", "ts": 1800, "model": "m", "blocks": ["P"]}
        assert settle([use("A", 0), gone], {"kind": "beneficiary"}, until=9999).by_tenant["A"].storage_pico == 350


def test_named_tenants_share_equally_whoever_else_was_there() -> None:
    policy = {"kind": "pool", "weight": "equal", "tenants": ["A", "Z"], "recover_premium": False}
    result = settle([use("A", 1), use("B", 2, 1)], policy)
    assert result.credits_pico == {"A": 450, "B": 0, "Z": 450}
    assert result.charges_pico == {"A": 750, "B": 1000, "Z": -450}


def test_pools_do_not_pay_each_other() -> None:
    events = [use("A", 1, pool="x"), use("B", 2, 1, pool="x"), use("C", 3, pool="y")]
    result = settle(events, {"kind": "pool", "weight": "list_spend", "recover_premium": False})
    assert result.credits_pico == {"A": 450, "B": 450, "C": 0}


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([use("A", 1, sku="unknown")], "no rates for SKU 'unknown'"),
        ([use("A", 1), use("A", 1, tail_tokens=1)], "came twice with different bodies"),
    ],
)
def test_what_cannot_be_settled_is_refused(events: list[dict[str, object]], message: str) -> None:
    with pytest.raises(CacheUseError, match=message):
        settle(events, SHAPLEY)


def test_the_same_event_counts_once() -> None:
    assert settle([use("A", 1), use("A", 1)], SHAPLEY).charges_pico == {"A": 1200}
    # An id belongs to its tenant.
    assert settle([use("A", 1, event_id="1"), use("B", 2, event_id="1")], SHAPLEY).charges_pico == {
        "A": 1200,
        "B": 1200,
    }
