"""A block of usage_log rows in ClickHouse's Native format, ready to be sent: folded once by the meter's own pure code."""

from clickhouse_connect.driver.client import Client

from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.folding import Received, examine_all, fold
from taximeter_streams.meter.pricing import Pricing
from tests.benchmarks import traffic


def ready_block(client: Client, count: int) -> bytes:
    """That many rated rows, as the engine itself writes them."""
    now = traffic.utc_now()
    snapshot = ControlSnapshot()
    for record in traffic.declarations(now):
        snapshot = snapshot.apply(record)
    arrived_ms = int(now.timestamp() * 1000)
    made = traffic.events(count, 7, now)
    rows = examine_all([Received(at, arrived_ms, payload) for at, (_, payload) in enumerate(made)], snapshot.tenants)
    columns = dict(build_columns(fold(rows, {}, b"", Pricing(snapshot)), "limit", 0))
    columns["inserted_at"] = [now] * count
    client.command("CREATE TABLE ready AS usage_log")
    client.insert("ready", list(columns.values()), column_names=list(columns), column_oriented=True)
    return client.raw_query("SELECT * FROM ready", fmt="Native", settings={"max_block_size": count})
