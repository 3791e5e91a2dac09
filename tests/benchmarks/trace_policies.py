"""Who pays what under each cache policy, on a recorded trace: `python -m tests.benchmarks.trace_policies`.

Reads mooncake_conversation.jsonl in the folder that TAXIMETER_TRACES names. The trace has no tenants, so its requests are drawn
over 50 of them, a few large and a long tail, ten in each of five cache pools; a prompt's leading blocks hit when its pool has
seen them before. Input is settled by the plain engine, pool by pool, and everything is checked to the pico-unit before it is
printed as markdown.
"""

import argparse
import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taximeter_billing.domain.savings import SavingsResult, savings_for_period
from taximeter_schemas.cache_policies import load_cache_policy
from taximeter_schemas.cache_uses import CacheUse, SkuRates
from taximeter_schemas.money import from_pico

TENANTS, POOLS, BLOCK_TOKENS, SHOWN = 50, 5, 512, 10
SKU = "kimi"
RATES = {SKU: SkuRates(p=3_000_000, r=300_000, w=3_750_000)}
"""3 a million tokens, a tenth of it from cache, a quarter more to fill a block."""
POLICIES: Mapping[str, dict[str, Any]] = {
    "retain": {"kind": "retain"},
    "beneficiary": {"kind": "beneficiary"},
    "warmer, capped": {"kind": "warmer", "warmer_cap_bps": 9_000},
    "pool, list spend": {"kind": "pool", "weight": "list_spend"},
    "pool, input tokens": {"kind": "pool", "weight": "input_tokens"},
    "pool, cached tokens": {"kind": "pool", "weight": "cached_tokens"},
    "pool, equal": {"kind": "pool", "weight": "equal"},
    "waterfall 10/60/10/20": {
        "kind": "waterfall",
        "provider_bps": 1_000,
        "beneficiary_bps": 6_000,
        "warmer_bps": 1_000,
        "pool_bps": 2_000,
        "pool_weight": "list_spend",
        "warmer_cap_bps": 10_000,
        "recover_premium": True,
    },
    "shapley_tenant": {"kind": "shapley_tenant"},
    "shapley_use": {"kind": "shapley_use"},
}


def read_uses(lines: Iterator[str], seed: int) -> dict[str, list[CacheUse]]:
    """The trace's prompts as uses, by cache pool."""
    dice = random.Random(seed)
    names = [f"t{number:02d}" for number in range(1, TENANTS + 1)]
    weights = [1 / (place + 1) for place in range(TENANTS)]
    seen: dict[str, set[str]] = defaultdict(set)
    uses: dict[str, list[CacheUse]] = defaultdict(list)
    for number, line in enumerate(lines):
        row = json.loads(line)
        place = dice.choices(range(TENANTS), weights)[0]
        pool = f"pool-{place % POOLS + 1}"
        whole = min(row["input_length"] // BLOCK_TOKENS, len(row["hash_ids"]))
        blocks = [str(block) for block in row["hash_ids"][:whole]]
        hits = next((depth for depth, block in enumerate(blocks) if block not in seen[pool]), len(blocks))
        seen[pool].update(blocks)
        uses[pool].append(
            CacheUse(
                event_id=f"{number:06d}",
                tenant=names[place],
                ts=row["timestamp"] // 1000,
                sku=SKU,
                pool=pool,
                blocks=tuple((block, BLOCK_TOKENS) for block in blocks),
                hit_blocks=hits,
                tail_tokens=row["input_length"] - whole * BLOCK_TOKENS,
            )
        )
    return uses


def settle(uses: Mapping[str, list[CacheUse]], stated: Mapping[str, Any]) -> list[SavingsResult]:
    """Each pool by the policy. An AssertionError says that something was made or lost."""
    results = []
    for pool, own in sorted(uses.items()):
        body = dict(stated)
        if body.get("weight") == "equal":
            body["tenants"] = sorted({use.tenant for use in own})
        result = savings_for_period(own, RATES, load_cache_policy(body, RATES), pool)
        metered = sum(account.metered_pico for account in result.by_tenant.values())
        assert sum(result.charges_pico.values()) == metered + result.provider_retained_pico, (pool, stated)
        results.append(result)
    return results


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = os.environ.get("TAXIMETER_TRACES")
    if not folder:
        sys.exit("TAXIMETER_TRACES names no folder of traces")
    with (Path(folder) / "mooncake_conversation.jsonl").open(encoding="utf-8") as lines:
        uses = read_uses(lines, options.seed)
    paid: dict[str, dict[str, int]] = {}
    sums: dict[str, tuple[int, int, int, int]] = {}
    listed: dict[str, int] = {}
    for name, stated in POLICIES.items():
        print(f"settling {name}", file=sys.stderr)
        results = settle(uses, stated)
        accounts = {tenant: account for result in results for tenant, account in result.by_tenant.items()}
        listed = {tenant: account.list_pico + account.write_premium_pico for tenant, account in accounts.items()}
        paid[name] = {tenant: charge for result in results for tenant, charge in result.charges_pico.items()}
        sums[name] = (
            sum(listed.values()),
            sum(account.metered_pico for account in accounts.values()),
            sum(result.provider_retained_pico for result in results),
            sum(paid[name].values()),
        )
    _print(uses, listed, paid, sums)


def _print(
    uses: Mapping[str, list[CacheUse]],
    listed: Mapping[str, int],
    paid: Mapping[str, Mapping[str, int]],
    sums: Mapping[str, tuple[int, int, int, int]],
) -> None:
    everything = [use for own in uses.values() for use in own]
    hits = sum(use.hit_blocks for use in everything)
    blocks = sum(len(use.blocks) for use in everything)
    print(f"{len(everything):,} requests, {len(listed)} tenants, {len(uses)} pools, {blocks:,} blocks, {hits:,} hit\n")
    biggest = sorted(listed, key=lambda tenant: -listed[tenant])
    print("| policy | " + " | ".join(biggest[:SHOWN]) + " | other tenants |")
    print("|---" * (SHOWN + 2) + "|")
    for name, amounts in {"without a cache": listed, **paid}.items():
        shown = [f"{_usd(amounts[tenant])}" for tenant in biggest[:SHOWN]]
        print(f"| {name} | {' | '.join(shown)} | {_usd(sum(amounts[tenant] for tenant in biggest[SHOWN:]))} |")
    print("\n| policy | list and write premium | metered | kept by the provider | charged | charged - metered - kept |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, (whole, metered, kept, charged) in sums.items():
        row = " | ".join(f"{from_pico(amount):f}" for amount in (whole, metered, kept, charged))
        print(f"| {name} | {row} | {charged - metered - kept} |")


def _usd(amount_pico: int) -> str:
    return f"{from_pico(amount_pico):.4f}"


if __name__ == "__main__":
    main()
