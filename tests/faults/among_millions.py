"""`python -m tests.faults.among_millions`: poison among millions of events, on the way that production takes (the kernel).

The log is filled beforehand, so that the meter works in its largest batches, and is killed once on its way. Then every offset is
looked at: those of the poison are rejected with a reason and all others are rated; counts, tokens and money are as reckoned
from the events themselves. Exits 1 and says what differs where they are not. Needs java and mvn (Apache Kafka).
"""

import argparse
import secrets
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

import msgspec
from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer

from taximeter_producers.control import publish
from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_sql import connect, migrate
from tests.benchmarks import processes, traffic
from tests.benchmarks.preloaded import CACHE
from tests.benchmarks.progress import note
from tests.benchmarks.stand import Candidate, Stand
from tests.faults.test_odd_events import POISON

PARTITIONS = 4
SECONDS_MAX = 480.0
_FRESH, _CACHED, _OUTPUT = 2_500_000, 250_000, 10_000_000
"""Pico-units a token, as `traffic.declarations` has them."""


@dataclass
class Expected:
    """What was put into the log: where its poison stands, and what all else comes to."""

    ends: list[int] = field(default_factory=lambda: [0] * PARTITIONS)
    poison: set[tuple[int, int]] = field(default_factory=set)
    fresh: int = 0
    cached: int = 0
    output: int = 0

    @property
    def metered_pico(self) -> int:
        return self.fresh * _FRESH + self.cached * _CACHED + self.output * _OUTPUT

    def place(self, partition: int) -> tuple[int, int]:
        """The next place in the partition."""
        self.ends[partition] += 1
        return partition, self.ends[partition] - 1


def fill(servers: str, events: int, every: int) -> Expected:
    """Put that many good events into the log, and a poisonous one after each so many."""
    now, expected = traffic.utc_now(), Expected()
    publish(servers, traffic.declarations(now))
    producer = Producer(
        {
            "bootstrap.servers": servers, "compression.type": "lz4", "linger.ms": 50, "batch.size": 1_000_000,
            "batch.num.messages": 10_000, "queue.buffering.max.messages": 500_000, "message.max.bytes": 1_048_000,
            "enable.idempotence": True,
        }
    )  # fmt: skip
    for number, (event_id, payload) in enumerate(traffic.events(events, 1, now)):
        partition = number % PARTITIONS
        tokens = msgspec.json.decode(payload)["data"]["tokens"]
        expected.fresh += tokens["uncached_input"]
        expected.cached += tokens["cache_read"]["gpu"]
        expected.output += tokens["output"]
        expected.place(partition)
        producer.produce(USAGE_EVENTS.name, payload, event_id.encode(), partition=partition)
        if number % every == every // 2:
            kind = number // every % (len(POISON) + 1)
            bad = POISON[kind][0] if kind < len(POISON) else payload.replace(b'"tenant":"tenant-', b'"tenant":"nobody-')
            partition = (number // every) % PARTITIONS
            expected.poison.add(expected.place(partition))
            producer.produce(USAGE_EVENTS.name, bad, event_id.encode(), partition=partition)
        if number % 5_000 == 0:
            while len(producer) > 200_000:
                producer.poll(0.05)
            producer.poll(0)
        if number % 200_000 == 0:
            note(f"{number:,} of {events:,} events are in the log")
    if producer.flush(120):
        raise RuntimeError("the broker did not take the events")
    return expected


def differences(client: Client, expected: Expected, events: int) -> list[str]:
    """What is not as it should be."""
    found = []

    def same(what: str, query: str, *wanted: object) -> None:
        (row,) = client.query(query).result_rows
        if tuple(row) != wanted:
            found.append(f"{what}: {row}, and not {wanted}")

    same("rows, and places", "SELECT count(), uniqExact(partition, offset) FROM usage_log", *[sum(expected.ends)] * 2)
    sums = "sum(uncached_input), sum(cache_read_gpu), sum(output), toString(sum(toInt128(metered_pico)))"
    wanted = (events, expected.fresh, expected.cached, expected.output, str(expected.metered_pico))
    same("rated rows", f"SELECT count(), {sums} FROM usage_events", *wanted)
    for rollup in ("usage_hourly", "usage_daily"):
        same(rollup, f"SELECT sum(events), {sums} FROM {rollup}", *wanted)
    rejected = client.query("SELECT partition, offset FROM usage_log WHERE disposition = 'rejected'").result_rows
    places = {(int(partition), int(offset)) for partition, offset in rejected}
    if places != expected.poison:
        found.append(f"rejected, not poison: {sorted(places - expected.poison)[:5]}")
        found.append(f"poison, not rejected: {sorted(expected.poison - places)[:5]}")
    return found


def run(folder: Path, events: int, every: int) -> list[str]:
    """Fill, meter, kill once, compare."""
    with Stand(folder, partitions=PARTITIONS) as stand:
        expected = fill(stand.kafka.bootstrap_servers, events, every)
        database = f"millions_{secrets.token_hex(4)}"
        with connect(stand.face.url(database)) as client:
            migrate(client)
            candidate = Candidate(
                "meter", [sys.executable, "-m", "taximeter_streams.meter"], {"TAXIMETER_METER_KERNEL": "required"}
            )
            child = stand.child(candidate, database, 0)
            child.start()
            try:
                began, killed, rows = time.monotonic(), False, 0
                while rows < sum(expected.ends):
                    time.sleep(1)
                    before, rows = rows, int(client.query("SELECT count() FROM usage_log").result_rows[0][0])
                    note(f"{rows:,} rows ({rows - before:,} in a second)")
                    if not killed and rows > events // 3:
                        child.signal(SIGKILL)
                        child.wait()
                        child.start()
                        killed = True
                    if not child.running or time.monotonic() - began > SECONDS_MAX:
                        raise RuntimeError(f"{rows:,} rows after {SECONDS_MAX:.0f} s:\n{child.log_tail(30)}")
                peak = processes.peak_megabytes(processes.tree(child.pid or 0)[-1])
                reasons = client.query("SELECT reason, count() FROM usage_rejected GROUP BY reason").result_rows
            finally:
                child.stop()
            note(f"{rows:,} rows in {time.monotonic() - began:.0f} s, at most {peak:.0f} MB; rejected: {list(reasons)}")
            return differences(client, expected, events)


def main() -> None:
    """Read the command line, run, say what differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.among_millions", description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="good events (2,000,000)")
    parser.add_argument("--every", type=int, default=5_000, help="after how many of them comes a poisonous one (5,000)")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="millions-") as folder:
        found = run(Path(folder), options.events, options.every)
    print("\n".join(found) or f"exact: {options.events:,} events, a poisonous one after each {options.every:,}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
