"""How long closing a month takes: 1,000 tenants with 100 lines each, on the embedded warehouse and SQLite.

`python -m tests.benchmarks.closing_bench [TENANTS] [EVENTS_PER_LINE]` prints wall and processor seconds of a first close, of one
that finds everything drafted, and of finalizing.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from taximeter_billing.book import open_book
from taximeter_billing.closing import Closed, close_period, finalize_period
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.warehouse import UsageReader
from taximeter_sql import connect, migrate
from tests.face_process import FaceProcess

PERIOD = "2026-11"
NOW = datetime(2026, 12, 5, tzinfo=UTC)
FEATURES = 10
MODELS = 10
TENANTS_PER_POOL = 10
_PICO = {"uncached": 500_000, "cached": 50_000, "output": 1_500_000}
_ROWS_PER_INSERT = 50_000


def declared(tenants: int) -> dict[str, Any]:
    """Tenants in pools of ten, one in five with a contract, on one card."""
    names = [f"t{number:04d}" for number in range(tenants)]
    prices = [
        {"model": f"m{number}", "uncached_input": "0.50", "cache_read_gpu": "0.05", "output": "1.50"}
        for number in range(MODELS)
    ]
    pools = [names[first : first + TENANTS_PER_POOL] for first in range(0, tenants, TENANTS_PER_POOL)]
    return {
        "rate_cards": [{"id": "default", "version": 1, "effective_from": "2026-01-01T00:00:00Z", "prices": prices}],
        "cache_pools": [{"id": f"p{number}", "tenants": members} for number, members in enumerate(pools)],
        "tenants": [{"id": name} for name in names],
        "plans": [{"id": "pro", "discounts": [{"id": "ten", "percent": "10"}], "minimum": {"amount": "1"}}],
        "contracts": [
            {"id": f"c-{name}", "tenant": name, "plan": "pro", "starts": "2026-01-01T00:00:00Z"} for name in names[::5]
        ],
    }


def rows(tenants: int, events_per_line: int) -> Iterator[dict[str, Any]]:
    """Events of every feature and model of every tenant, half of their input from the cache."""
    start = datetime(2026, 11, 2, tzinfo=UTC)
    for tenant in range(tenants):
        for line in range(FEATURES * MODELS):
            for event in range(events_per_line):
                name = f"e{line}-{event}"
                read, uncached, output = 128, 128 + line, 50
                listed = (read + uncached) * _PICO["uncached"] + output * _PICO["output"]
                yield {
                    "log_id": "bench",
                    "offset": (tenant * FEATURES * MODELS + line) * events_per_line + event,
                    "arrived_at": start,
                    "inserted_at": start,
                    "disposition": "rated",
                    "tenant": f"t{tenant:04d}",
                    "feature": f"f{line % FEATURES}",
                    "model": f"m{line // FEATURES}",
                    "operation": "chat",
                    "service_tier": "standard",
                    "source": "bench",
                    "event_id": name,
                    "time": start + timedelta(seconds=line * 60 + event),
                    "uncached_input": uncached,
                    "cache_read_gpu": read,
                    "output": output,
                    "pool": f"p{tenant // TENANTS_PER_POOL}",
                    "currency": "USD",
                    "rate_card": "default@1",
                    "list_pico": listed,
                    "metered_pico": listed - read * (_PICO["uncached"] - _PICO["cached"]),
                    "identity": md5(f"t{tenant}/{name}".encode()).digest(),
                    "body": md5(name.encode()).digest(),
                }


def fill(client: Client, tenants: int, events_per_line: int) -> int:
    """Write all rows; returns how many."""
    batch: list[list[Any]] = []
    names: list[str] = []
    count = 0
    for row in rows(tenants, events_per_line):
        names = list(row)
        batch.append(list(row.values()))
        count += 1
        if len(batch) == _ROWS_PER_INSERT:
            client.insert("usage_log", batch, column_names=names)
            batch = []
    if batch:
        client.insert("usage_log", batch, column_names=names)
    return count


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print wall and processor seconds of a block."""
    wall, processor = time.monotonic(), time.process_time()
    yield
    print(
        f"{what}: {time.monotonic() - wall:.1f} s, {time.process_time() - processor:.1f} s of it on this process's processor"
    )


def measure(book: Engine, client: Client, show: Callable[[str, int, int], None]) -> Closed:
    """Close twice and finalize."""
    reader = UsageReader(client)
    with timed("close"):
        closed = close_period(book, reader, PERIOD, NOW, progress=show)
    with timed("close again"):
        again = close_period(book, reader, PERIOD, NOW)
    with timed("finalize"):
        final = finalize_period(book, PERIOD, "INV", NOW)
    print(
        f"{len(closed.drafted)} drafted, {len(again.unchanged)} unchanged, {len(final)} final, {len(closed.parked)} parked"
    )
    return closed


def main() -> None:
    """Fill a book and a warehouse in a folder of its own, and measure."""
    tenants = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    events_per_line = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        face = FaceProcess(Path(folder))
        face.start()
        book = open_book(f"sqlite:///{folder}/book.db")
        try:
            client = connect(face.url("bench"))
            migrate(client)
            with timed("declare"):
                apply_declarations(
                    book, read_mapping(declared(tenants)), "bench", NOW, lambda records: len(list(records))
                )
            with timed("fill"):
                print(f"{fill(client, tenants, events_per_line)} events")
            measure(book, client, lambda _names, done, every: print(f"{done}/{every}", end=" ", flush=True))
            client.close()
        finally:
            book.dispose()
            face.stop()


if __name__ == "__main__":
    main()
