"""How long the savings of a big period take: `python -m tests.benchmarks.savings_close` (10 million events, 1 million blocks).

Makes the events inside ClickHouse's engine, then settles them under each policy through `UsageFold`, as closing does, each in a
fresh engine and a fresh process of ours; what keeping blocks in cache costs is settled by itself, by creator and by hits. Memory
is the peak of each process (VmHWM). All at once takes about 15 minutes; `--only` settles one.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from clickhouse_connect.driver.client import Client

from taximeter_billing.domain.storage_lines import LOOKBACK, storage_month
from taximeter_billing.folding import UsageFold
from taximeter_billing.warehouse import TenantSpan
from taximeter_schemas.cache_policies import load_cache_policy
from taximeter_schemas.rate_cards import RateCard
from taximeter_sql import connect, migrate
from tests.face_process import FaceProcess

START, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
TENANTS = [f"tenant-{number:03d}" for number in range(500)]
BLOCKS_AN_EVENT = 5
PART_EVENTS = 1_000_000
POLICIES: dict[str, dict[str, object]] = {
    "retain": {"kind": "retain"},
    "beneficiary": {"kind": "beneficiary"},
    "warmer, capped": {"kind": "warmer", "warmer_cap_bps": 9_000},
    "pool by list spend": {"kind": "pool", "weight": "list_spend"},
    "waterfall 10/30/40/20": {
        "kind": "waterfall", "provider_bps": 1_000, "beneficiary_bps": 3_000, "warmer_bps": 4_000, "pool_bps": 2_000,
        "pool_weight": "list_spend", "warmer_cap_bps": 7_000, "self_hits": "share",
    },
    "shapley_tenant": {"kind": "shapley_tenant"},
    "shapley_use": {"kind": "shapley_use"},
    "storage by creator": {"kind": "retain", "ttl_seconds": 3_600},
    "storage by hits": {"kind": "retain", "ttl_seconds": 3_600, "storage": "shared"},
}  # fmt: skip
CARD = RateCard.model_validate(
    {
        "id": "default", "version": 1, "effective_from": START, "recorded_at": START,
        "prices": [{"model": "m", "uncached_input": 1_250_000, "cache_read_gpu": 125_000, "output": 5_000_000,
                    "cache_storage": 1_000_000}],
    }
)  # fmt: skip

# A document is a chain of five blocks, the first shared by ten documents; one event in eight fills from somewhere on.
_EVENTS = """INSERT INTO usage_log (disposition, arrived_at, tenant, feature, model, operation, service_tier, rate_card, source,
    event_id, time, uncached_input, cache_read_gpu, output, pool, block_size, hit_blocks, blocks, partition, offset)
SELECT 'rated', toDateTime('2026-11-01 00:00:00', 'UTC'), concat('tenant-', leftPad(toString(dice % 500), 3, '0')),
    ['chat', 'search', 'agent'][dice % 3 + 1], 'm', 'chat', 'standard', 'default@1', 'svc', toString(number),
    toDateTime64('2026-11-01 00:00:00', 6, 'UTC') + number * 0.2, (5 - hit) * 32 + 7, hit * 32, 100,
    concat('pool-', toString(document % 20)), 32, hit,
    arrayConcat([lower(hex(sipHash128('root', intDiv(document, 10))))],
        arrayMap(depth -> lower(hex(sipHash128(document, depth))), range(1, 5))), 0, number
FROM
(
    SELECT number, sipHash64(number) AS dice, dice % {documents:UInt64} AS document,
        if(number < {documents:UInt64}, 0, if(intDiv(dice, 7) % 8 = 0, intDiv(dice, 11) % 5, 5)) AS hit
    FROM numbers({first:UInt64}, {count:UInt64})
)"""

_COUNTED = "SELECT count(), (SELECT uniqExact(arrayJoin(blocks)) FROM usage_events) FROM usage_events"


def fill(client: Client, events: int, blocks: int) -> None:
    """Make the events, a million at a time."""
    documents = max(1, int(blocks / (BLOCKS_AN_EVENT - 1 + 0.1)))
    for first in range(0, events, PART_EVENTS):
        count = min(PART_EVENTS, events - first)
        client.command(_EVENTS, parameters={"documents": documents, "first": first, "count": count})
        print(f"made {first + count:,} of {events:,} events", file=sys.stderr)


def settle(url: str, engine: int, name: str, events: int) -> str:
    """Settle under one policy, as closing does; its row of the table."""
    client = connect(url)
    policy = load_cache_policy(POLICIES[name], {})
    began, engine_cpu, own_cpu = time.monotonic(), cpu_seconds(engine), time.process_time()
    if policy.ttl_seconds is None:
        fold = UsageFold(client, [TenantSpan(tenant, START, END) for tenant in TENANTS], [CARD])
        used = fold.gathered(TENANTS)
        result = fold.savings(policy, "bench")
        metered = sum(account.metered_pico for account in result.by_tenant.values())
        whole = sum(result.charges_pico.values()) == metered + result.provider_retained_pico
        whole &= sum(one.events for spans in used.cells.values() for one in spans.values()) == events
    else:
        fold = UsageFold(client, [TenantSpan(tenant, START - LOOKBACK, END) for tenant in TENANTS], [CARD])
        stored = fold.stored(policy, storage_month("2026-11"))
        whole = stored.events == events and sum(stored.kept.values()).denominator == 1
    seconds = time.monotonic() - began
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    cpu = f"{cpu_seconds(engine) - engine_cpu:.1f} | {time.process_time() - own_cpu:.1f}"
    return f"| {name} | {seconds:.1f} | {cpu} | {peak_mb(engine)} | {own} | {'yes' if whole else 'NO'} |"


def main() -> None:
    """Print a table in markdown: a row for each policy, one after the other, each in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--only", choices=sorted(POLICIES), action="append", help="this policy only; may be repeated")
    parser.add_argument("--settle", nargs=2, metavar=("URL", "ENGINE_PID"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.settle:
        print(settle(options.settle[0], int(options.settle[1]), options.only[0], options.events), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        face = FaceProcess(Path(folder))
        face.start()
        try:
            client = connect(face.url("savings"))
            migrate(client)
            fill(client, options.events, options.blocks)
            events, blocks = client.query(_COUNTED).result_rows[0]
            print(f"\n{events:,} events, {blocks:,} distinct blocks, {len(TENANTS)} tenants, 20 pools\n")
            print(
                "| policy | seconds | engine CPU s | our CPU s | engine peak MB | our peak MB | nothing made or lost |"
            )
            print("|---|---|---|---|---|---|---|", flush=True)
            chosen = [name for name in POLICIES if options.only is None or name in options.only]
            for number, name in enumerate(chosen, start=1):
                print(f"settling {name} ({number} of {len(chosen)})", file=sys.stderr)
                face.stop()
                face.start()  # a peak of memory and caches of its own
                own = [sys.executable, "-m", "tests.benchmarks.savings_close", "--events", str(events), "--only", name]
                subprocess.run([*own, "--settle", face.url("savings"), str(face.pid)], check=True)
        finally:
            face.stop()


def cpu_seconds(pid: int | None) -> float:
    """What a process has used of all cores."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int | None) -> int:
    """The most memory that a process has held, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    main()
