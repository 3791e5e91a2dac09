"""The checks that need the warehouse alone: each compares two things that were written by different hands."""

from collections import defaultdict

from clickhouse_connect.driver.client import Client

from taximeter.reconcile.findings import Check, Conservation, Finding
from taximeter_sql import query


def check_offsets(client: Client, ends: dict[int, int] | None = None, log_id: str | None = None) -> Check:
    """Every message of the log is one row: no offset is missing or twice. `ends` are the log's end offsets, where known."""
    findings = []
    messages = 0
    reached: dict[int, int] = {}
    for log, partition, rows, offsets, first, last in client.query(query("reconcile_offsets")).result_rows:
        messages += rows
        subject = f"log {log}, partition {partition}"
        if rows != offsets:
            findings.append(Finding(subject, f"{rows - offsets} offsets are stored more than once"))
        if last - first + 1 != offsets:
            findings.append(
                Finding(subject, f"{last - first + 1 - offsets} offsets between {first} and {last} are missing")
            )
        if log == log_id:
            reached[partition] = last + 1
    for partition, end in sorted((ends or {}).items()):
        if (stored := reached.get(partition, 0)) < end:
            findings.append(Finding(f"partition {partition}", f"the log ends at {end}, the warehouse at {stored}"))
    return Check("exactly once", f"{messages:,} messages of the log, each one row", tuple(findings))


def check_identities(client: Client) -> Check:
    """No event was counted twice."""
    rows = client.query(query("reconcile_identities")).result_rows
    findings = tuple(
        Finding(f"{source} {event}", f"counted {count} times", tenant) for tenant, source, event, count in rows
    )
    return Check("exactly once", "identities (tenant, source, id), each counted once", findings)


def check_sequences(client: Client) -> Check:
    """No producer's numbers have a gap."""
    workers = client.query("SELECT uniqExact(worker_id) FROM usage_log WHERE worker_id != ''").result_rows[0][0]
    findings = []
    for worker, first, last in client.query(query("reconcile_sequences")).result_rows:
        span = str(first) if first == last else f"{first} to {last}"
        findings.append(Finding(f"producer {worker}", f"misses {span}"))
    return Check("nothing lost", f"running numbers of {workers} producers", tuple(findings))


def check_conservation(client: Client) -> tuple[Check, list[Conservation]]:
    """produced = rated + unrated + duplicate + rejected for each tenant and hour, in the rows and in the rollup."""
    findings = []
    totals: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    cells = 0
    for tenant, hour, produced, rated, unrated, duplicate, rejected, rolled in client.query(
        query("reconcile_conservation")
    ).result_rows:
        cells += 1
        if produced != rated + unrated + duplicate + rejected:
            findings.append(
                Finding(f"{tenant}, {hour:%Y-%m-%d %H}:00", "the parts do not add up to what was produced", tenant)
            )
        if produced != rolled:
            findings.append(
                Finding(f"{tenant}, {hour:%Y-%m-%d %H}:00", f"{produced} rows, the rollup says {rolled}", tenant)
            )
        for place, value in enumerate((produced, rated, unrated, duplicate, rejected)):
            totals[tenant][place] += value
    compared = f"produced = stored + duplicate + rejected, {cells} tenant-hours"
    tenants = [Conservation(tenant or "(unknown)", *counts) for tenant, counts in sorted(totals.items())]
    return Check("conservation", compared, tuple(findings)), tenants


def check_rollups(client: Client) -> list[Check]:
    """The hourly and daily rollups agree with the raw rows by count, tokens and sums."""
    checks = []
    for name in ("hourly", "daily"):
        rows = client.query(query(f"reconcile_{name}")).result_rows
        findings = tuple(
            Finding(
                f"{tenant}, {bucket} ({currency})",
                f"{events:+} events, {metered:+} pico metered, {tokens} tokens off",
                tenant,
            )
            for tenant, bucket, currency, events, _list, metered, tokens in rows
        )
        total = client.query(f"SELECT sum(events), count() FROM usage_{name}").result_rows[0]
        checks.append(Check("raw = rollup", f"{total[0]:,} events in the {name} rollup against the raw rows", findings))
    return checks
