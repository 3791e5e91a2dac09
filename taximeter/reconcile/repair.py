"""Repairs rollups from raw rows while traffic goes on: adds to each drifting cell exactly what it lacks, once.

A rollup sums, so a cell is repaired by a row that holds the difference. The difference is taken twice, some seconds apart, and
counts only when neither it nor the raw rows of the cell have changed in between. Before, the last batch of each partition is
inserted again under its own token: a meter that was cut off would do so later, and the rollup would then have it twice. A cell's
difference is one block under a token made of what it repairs, so a repetition, also by another process, adds nothing.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b

from clickhouse_connect.driver.client import Client

from taximeter.reconcile.rollups import Drift, Rollup, look_again
from taximeter.reconcile.scope import Pace, Progress, Scope
from taximeter_sql import query
from taximeter_streams.meter.warehouse import TOKEN_SECONDS_MAX, StoredBatch, Warehouse


@dataclass(frozen=True, slots=True)
class Repairs:
    """Cells that were repaired, and cells that are still being written: those a later run repairs."""

    repaired: tuple[Drift, ...] = ()
    unsettled: tuple[Drift, ...] = ()


def repair(client: Client, drifts: list[Drift], scope: Scope, pace: Pace, progress: Progress) -> Repairs:
    """Bring the rollups of these cells to what the raw rows say. Doing it again, or twice at once, changes nothing more."""
    if not drifts:
        return Repairs()
    # Before the looks: whoever repairs the same drift meanwhile then counts the same, and makes the same token.
    earlier = _repairs_before(client, drifts)
    before = _again(client, drifts, scope)
    _complete_last_batches(client, drifts, progress)
    progress(f"waiting {pace.settle_seconds:.0f} s to see that {len(drifts)} cells are at rest")
    time.sleep(pace.settle_seconds)
    after = _again(client, drifts, scope)
    repaired, unsettled = [], []
    for key, drift in before.items():
        now = after.get(key)
        if now is None:
            continue  # the repeated batch, or the passing of time, mended it
        if now.rows != drift.rows:
            unsettled.append(now)
            continue
        repaired.append(now)
        progress(f"repairing {now.rollup.name}: {now.label} ({len(repaired)} of {len(before)})")
        _add_difference(client, now, earlier.get(key, 0))
    return Repairs(tuple(repaired), tuple(unsettled))


_Key = tuple[str, datetime, str]


def _again(client: Client, drifts: list[Drift], scope: Scope) -> dict[_Key, Drift]:
    by_rollup: dict[str, list[Drift]] = defaultdict(list)
    for drift in drifts:
        by_rollup[drift.rollup.name].append(drift)
    found: dict[_Key, Drift] = {}
    for name, known in by_rollup.items():
        places = {drift.place for drift in known}
        fresh = look_again(client, known, scope)
        found |= {(name, *place): drift for place, drift in fresh.items() if place in places}
    return found


def _complete_last_batches(client: Client, drifts: list[Drift], progress: Progress) -> None:
    """Insert again, under its token, each partition's last batch that holds rows of these tenants: a no-op where it is whole."""
    now = datetime.now(UTC)
    parameters = {
        "tenants": sorted({drift.tenant for drift in drifts}),
        "since_ms": int((now.timestamp() - TOKEN_SECONDS_MAX) * 1000),
    }
    rows = client.query(query("reconcile_last_batches"), parameters=parameters).result_rows
    for log_id, partition, first, last, inserted_at_ms in rows:
        warehouse = Warehouse(client, log_id)
        if warehouse.remembers(StoredBatch(first, last, inserted_at_ms), now):
            progress(f"making sure of the last batch of partition {partition} ({first} to {last})")
            warehouse.insert(warehouse.batch_columns(partition, first))


def _add_difference(client: Client, drift: Drift, repairs_before: int) -> None:
    token = _token(drift, repairs_before)
    rollup = drift.rollup
    bucket: object = drift.bucket.date() if rollup.keys[0] == "day" else drift.bucket
    rows = [[bucket, *row.keys, *row.sums] for row in drift.rows]
    client.insert(rollup.table, rows, column_names=rollup.columns, settings=_under(token))
    noted = [
        rollup.name,
        drift.bucket,
        drift.tenant,
        drift.total("events"),
        _money(rollup, drift),
        token,
        datetime.now(UTC),
    ]
    names = ["rollup", "bucket", "tenant", "events", "metered_pico", "token", "repaired_at"]
    client.insert("rollup_repairs", [noted], column_names=names, settings=_under(token))


def _money(rollup: Rollup, drift: Drift) -> int:
    return drift.total("metered_pico") if "metered_pico" in rollup.sums else 0


def _under(token: str) -> dict[str, object]:
    return {"insert_deduplication_token": token, "insert_deduplicate": 1, "async_insert": 0}


def _repairs_before(client: Client, drifts: list[Drift]) -> dict[_Key, int]:
    parameters = {"tenants": sorted({drift.tenant for drift in drifts})}
    rows = client.query(query("reconcile_repairs"), parameters=parameters, tz_mode="aware").result_rows
    return {(rollup, bucket.astimezone(UTC), tenant): count for rollup, bucket, tenant, count in rows}


def _token(drift: Drift, repairs_before: int) -> str:
    """The same for whoever sees the same drift: the cell, how often it was repaired before, the difference, the raw rows."""
    content = repr([(row.keys, row.sums, row.raw_state) for row in drift.rows])
    digest = blake2b(content.encode(), digest_size=12).hexdigest()
    return f"repair/{drift.rollup.name}/{drift.bucket:%Y%m%dT%H}/{drift.tenant}/{repairs_before}/{digest}"
