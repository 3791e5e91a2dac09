"""The checks that need the warehouse alone: each compares two things that were written by different hands."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from clickhouse_connect.driver.client import Client

from taximeter.reconcile.findings import Check, Conservation, Finding
from taximeter.reconcile.scope import Pace, Progress, Scope
from taximeter_sql import query

_WORKERS = (
    "SELECT uniqExact(worker_id) FROM usage_log WHERE worker_id != '' AND arrived_at >= {since:DateTime64(6, 'UTC')}"
)

GAPS_MAX = 10_000
"""More gaps than this are not listed; a producer with so many has another trouble."""


def check_offsets(
    client: Client, scope: Scope, ends: Mapping[int, int] | None = None, log_id: str | None = None
) -> Check:
    """Every message of the log is one row: no offset is missing or twice. `ends` are the log's end offsets, where known."""
    findings = []
    messages = 0
    reached: dict[int, int] = {}
    since = scope.parameters["since"]
    for log, partition, rows, offsets, first, last in client.query(
        query("reconcile_offsets"), parameters={"since": since}
    ).result_rows:
        messages += rows
        subject = f"log {log}, partition {partition}"
        if rows != offsets:
            findings.append(Finding(subject, f"{rows - offsets} offsets are stored more than once"))
        if last - first + 1 != offsets:
            place = {"log_id": log, "partition": partition, "since": since}
            gaps = client.query(query("reconcile_offset_gaps"), parameters=place).result_rows
            findings += [Finding(subject, f"misses offsets {_span(*gap)}") for gap in gaps]
        if log == log_id:
            reached[partition] = last + 1
    for partition, end in sorted((ends or {}).items()):
        if (stored := reached.get(partition, 0)) < end and not (scope.since and partition not in reached):
            findings.append(Finding(f"partition {partition}", f"the log ends at {end}, the warehouse at {stored}"))
    return Check("exactly once", f"{messages:,} messages of the log, each one row", tuple(findings))


def await_meter(
    client: Client,
    ends: Mapping[int, int],
    log_id: str,
    pace: Pace,
    progress: Progress,
) -> None:
    """Wait until the meter has reached where the log ended, but not for ever: then `check_offsets` says how far behind it is."""
    deadline = time.monotonic() + pace.behind_seconds_max
    while True:
        rows = client.query(query("reconcile_reached"), parameters={"log_id": log_id}).result_rows
        reached = {int(partition): int(end) for partition, end in rows}
        behind = sum(max(0, end - reached.get(partition, 0)) for partition, end in ends.items())
        if not behind or time.monotonic() > deadline:
            return
        progress(f"the meter is {behind:,} messages behind the end of the log; waiting")
        time.sleep(min(0.5, pace.pause_seconds))


def check_identities(client: Client, scope: Scope) -> Check:
    """No event was counted twice."""
    rows = client.query(query("reconcile_identities"), parameters=scope.parameters).result_rows
    findings = tuple(
        Finding(f"{source} {event}", f"counted {count} times", tenant) for tenant, source, event, count in rows
    )
    return Check("exactly once", "identities (tenant, source, id), each counted once", findings)


def check_sequences(
    client: Client, scope: Scope, pace: Pace, progress: Progress, catch_up: Callable[[], None] = lambda: None
) -> Check:
    """No producer's numbers have a gap.

    Events of one producer overtake each other, so a gap counts when it is still there after a pause, and once the meter has
    reached where the log ended after that (`catch_up` waits for it).
    """
    workers = client.query(_WORKERS, parameters=scope.parameters).result_rows[0][0]
    gaps = _gaps(client, scope)
    if gaps:
        progress(f"{len(gaps)} gaps in producers' numbers, looking again")
        time.sleep(pace.pause_seconds)
        catch_up()
        gaps &= _gaps(client, scope)
    findings = []
    for worker, first, last in sorted(gaps):
        parameters = {"worker_id": worker, "first": first, "last": last}
        stored, tenants = client.query(query("reconcile_producer"), parameters=parameters).result_rows[0]
        if stored < last - first + 1:  # with `since`, a number may have arrived before
            findings.append(Finding(f"producer {worker}", f"misses {_span(first, last)}", None, tuple(tenants)))
    return Check("nothing lost", f"running numbers of {workers} producers", tuple(findings))


def _gaps(client: Client, scope: Scope) -> set[tuple[str, int, int]]:
    rows = client.query(query("reconcile_sequences"), parameters=scope.parameters).result_rows
    return {(str(worker), int(first), int(last)) for worker, first, last in rows[:GAPS_MAX]}


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def check_conservation(client: Client, scope: Scope) -> tuple[Check, list[Conservation]]:
    """produced = rated + unrated + duplicate + rejected for each tenant and hour of arrival."""
    findings = []
    totals: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    cells = 0
    for tenant, hour, produced, rated, unrated, duplicate, rejected, _rolled in client.query(
        query("reconcile_conservation"), parameters=scope.parameters
    ).result_rows:
        cells += 1
        if produced != rated + unrated + duplicate + rejected:
            findings.append(
                Finding(f"{tenant}, {hour:%Y-%m-%d %H}:00", "the parts do not add up to what was produced", tenant)
            )
        for place, value in enumerate((produced, rated, unrated, duplicate, rejected)):
            totals[tenant][place] += value
    compared = f"produced = stored + duplicate + rejected, {cells} tenant-hours"
    mended = client.query(query("reconcile_mended"), parameters=scope.parameters).result_rows
    by_tenant: dict[str, list[int]] = {tenant: list(map(int, counts)) for tenant, *counts in mended}
    tenants = []
    for tenant, (produced, rated, unrated, duplicate, rejected) in sorted(totals.items()):
        later, in_vain, settled, replayed = by_tenant.get(tenant, [0, 0, 0, 0])
        tenants.append(
            Conservation(
                tenant or "(unknown)",
                produced - later - in_vain,
                rated - later + settled,
                unrated - settled,
                duplicate - in_vain,
                rejected,
                settled,
                replayed,
            )
        )
    return Check("conservation", compared, tuple(findings)), tenants
