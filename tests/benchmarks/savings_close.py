"""How long the savings of a big period take: `python -m tests.benchmarks.savings_close` (10 million events, 1 million blocks).

Makes the events inside ClickHouse's engine, then settles them under each policy through `UsageFold`, as closing does. Memory is
the peak of each process (VmHWM): of the engine, reset after the events are made, and of this one.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from clickhouse_connect.driver.client import Client

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
POLICIES = {
    "beneficiary": {"kind": "beneficiary"},
    "warmer, capped": {"kind": "warmer", "warmer_cap_bps": 9_000},
    "pool by list spend": {"kind": "pool", "weight": "list_spend"},
    "shapley_tenant": {"kind": "shapley_tenant"},
    "shapley_use": {"kind": "shapley_use"},
}
CARD = RateCard.model_validate(
    {
        "id": "default", "version": 1, "effective_from": START, "recorded_at": START,
        "prices": [{"model": "m", "uncached_input": 1_250_000, "cache_read_gpu": 125_000, "output": 5_000_000}],
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


def main() -> None:
    """Print a table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--only", choices=sorted(POLICIES), help="this policy only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        face = FaceProcess(Path(folder))
        face.start()
        try:
            client = connect(face.url("savings"))
            migrate(client)
            fill(client, options.events, options.blocks)
            counted = client.query(_COUNTED).result_rows[0]
            face.stop()
            face.start()  # its peak of memory begins anew
            client = connect(face.url("savings"))
            print(f"\n{counted[0]:,} events, {counted[1]:,} distinct blocks, {len(TENANTS)} tenants, 20 pools\n")
            print(
                "| policy | seconds | engine CPU s | our CPU s | engine peak MB | our peak MB | charged = metered + kept |"
            )
            print("|---|---|---|---|---|---|---|")
            for name, policy in POLICIES.items():
                if options.only not in (None, name):
                    continue
                began, engine, ours = time.monotonic(), cpu_seconds(face.pid), time.process_time()
                fold = UsageFold(client, [TenantSpan(tenant, START, END) for tenant in TENANTS], [CARD])
                used = fold.gathered(TENANTS)
                result = fold.savings(load_cache_policy(policy, {}), "bench")
                seconds = time.monotonic() - began
                metered = sum(account.metered_pico for account in result.by_tenant.values())
                whole = sum(result.charges_pico.values()) == metered + result.provider_retained_pico
                whole &= sum(one.events for spans in used.cells.values() for one in spans.values()) == counted[0]
                own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                cpu = f"{cpu_seconds(face.pid) - engine:.1f} | {time.process_time() - ours:.1f}"
                peaks = f"{peak_mb(face.pid)} | {own}"
                print(f"| {name} | {seconds:.1f} | {cpu} | {peaks} | {'yes' if whole else 'NO'} |", flush=True)
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
