"""`make faults-long MINUTES=30`: rounds of chaos under random seeds until the time is up. `--seed` runs one round again.

Prints a line for each round: its seed, the faults that were drawn, how many events were acknowledged, and the verdict. Ends with
status 1 when any round was not exact.
"""

import argparse
import logging
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import _pytest.outcomes

from taximeter_producers.topics import ensure_topics
from tests.face_process import FaceProcess
from tests.faults.chaos import run_round
from tests.faults.yard import PARTITIONS, empty_log, opened
from tests.kafka_broker import ApacheKafka


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="faults-long", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=10, help="faults in a round")
    parser.add_argument(
        "--broker-seconds-max", type=float, default=60.0, help="how long the broker stays away, at most"
    )
    parser.add_argument("--seed", type=int, help="run the round of this seed alone")
    options = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)  # producers say at length that the broker is away
    began = time.monotonic()
    seeds = random.SystemRandom()
    drawn: Counter[str] = Counter()
    verdicts: list[bool] = []
    acknowledged = 0
    with tempfile.TemporaryDirectory(prefix="taximeter-faults-") as name:
        folder = Path(name)
        with ApacheKafka(folder / "kafka") as kafka:
            ensure_topics(kafka.bootstrap_servers, PARTITIONS, 1)
            face = FaceProcess(folder / "clickhouse")
            face.start()
            while not verdicts or (options.seed is None and time.monotonic() - began < options.minutes * 60):
                seed = seeds.randrange(10**9) if options.seed is None else options.seed
                exact, told, events = one_round(kafka, face, folder / str(seed), seed, options)
                verdicts.append(exact)
                drawn.update(told)
                acknowledged += events
            face.stop()
    minutes = (time.monotonic() - began) / 60
    print(f"{len(verdicts)} rounds in {minutes:.0f} minutes, {acknowledged:,} events acknowledged, "
          f"{sum(drawn.values())} faults; exact: {sum(verdicts)} of {len(verdicts)}")  # fmt: skip
    print(", ".join(f"{fault} {count}" for fault, count in drawn.most_common()))
    sys.exit(0 if all(verdicts) else 1)


def one_round(
    kafka: ApacheKafka, face: FaceProcess, folder: Path, seed: int, options: argparse.Namespace
) -> tuple[bool, list[str], int]:
    """One round in a yard of its own: whether it was exact, what was drawn, how many events were acknowledged."""
    print(f"seed {seed}: ", end="", flush=True)
    began = time.monotonic()
    with opened(kafka.bootstrap_servers, face, folder, seed) as yard:
        if seed % 2:
            yard.budgets()
        told: list[str] = []
        try:
            found, told = run_round(yard, kafka, options.steps, options.broker_seconds_max)
        except (Exception, _pytest.outcomes.Failed):  # noqa: BLE001 - whatever it is, the round was not exact
            found = [traceback.format_exc(), yard.logs()]
        events = len(yard.acknowledged.usages)
    verdict = "exact" if not found else f"NOT EXACT, {len(found)} differences"
    print(f"{verdict}; {events} events, {time.monotonic() - began:.0f} s; {', '.join(told)}", flush=True)
    for line in found[:20]:
        print("   ", line, flush=True)
    empty_log(kafka.bootstrap_servers)
    return not found, told, events


if __name__ == "__main__":
    main()
