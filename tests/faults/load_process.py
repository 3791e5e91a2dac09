"""A producer as a process of its own, to be killed or starved: `python -m tests.faults.load_process`.

It hands over seeded events one after the other and writes a journal to its standard output, one JSON line each: what was
acknowledged, what failed, when the spool was full. What a pipe has taken survives kill -9, and needs no disk.
"""

import argparse
import json
import random
import sys
import threading
import time
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path

from taximeter_producers import Safe, SpoolFullError, UsageProducer
from tests.faults.load import Events

_writing = threading.Lock()


def note(**line: object) -> None:
    """Write one line of the journal at once."""
    with _writing:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Hand over `count` events, again and again while the spool is full, then stay until killed or told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", required=True)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--spool-bytes-max", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--tenants", required=True)
    parser.add_argument("--now", type=datetime.fromisoformat, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    events = Events(tuple(options.tenants.split(",")), options.now, random.Random(options.seed))
    producer = UsageProducer(
        bootstrap_servers=options.servers,
        producer_id=options.name,
        spool_dir=options.spool,
        spool_bytes_max=options.spool_bytes_max,
    )
    for number in range(options.count):
        hand_over(producer, number, events.event().as_json())
    note(event="all taken")
    sys.stdin.read()
    producer.close(60)
    note(event="closed")


def hand_over(producer: UsageProducer, number: int, event: dict[str, object]) -> None:
    """Until it is taken. One whose future fails is the caller's to send again; the journal says so."""
    while True:
        try:
            outcome = producer.submit(event)
            break
        except SpoolFullError:
            note(event="full", number=number, spool_bytes=producer.state().spool_bytes)
            time.sleep(0.05)

    def done(future: "Future[Safe]") -> None:
        error = future.exception()
        if error is None:
            note(event="safe", number=number, where=str(future.result()))
        else:
            note(event="failed", number=number, error=type(error).__name__)

    outcome.add_done_callback(done)


if __name__ == "__main__":
    main()
