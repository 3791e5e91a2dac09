"""The producers SDK: what one `emit` costs its caller, and how many events a second it sustains with delivery confirmed."""

import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taximeter_producers import UsageProducer
from taximeter_producers.errors import SpoolFullError
from taximeter_schemas import UsageEvent, wire
from tests.benchmarks import traffic


@dataclass(frozen=True, slots=True)
class Emitted:
    """One run: microseconds of the caller for an event, events a second until all were confirmed, CPU of all threads."""

    emit_us: float
    rate: float
    cpu_us: float
    refused: int


def emit(
    bootstrap_servers: str,
    spool_dir: Path,
    events: Sequence[UsageEvent | wire.UsageEvent],
    number: int,
    many: bool = False,
) -> Emitted:
    """Emit them all as fast as it goes, one by one or a thousand a call, wait until the broker has confirmed each, and reckon."""
    with UsageProducer(
        bootstrap_servers=bootstrap_servers, producer_id=f"bench-{number}", spool_dir=spool_dir
    ) as producer:
        producer.submit(events[0]).result(60)  # the topic is known and the connection stands
        refused, spent = 0, []
        began, cpu = time.perf_counter(), _cpu_seconds()
        for first in range(0, len(events), 1_000):
            chunk = events[first : first + 1_000]
            while producer.state().unsafe > 80_000:
                time.sleep(0.001)
            started = time.perf_counter()
            if many:
                producer.emit_many(chunk)
            for event in () if many else chunk:
                try:
                    producer.emit(event)
                except SpoolFullError:
                    refused += 1
            spent.append((time.perf_counter() - started) / len(chunk))
        unsafe = producer.flush(120)
        seconds, used = time.perf_counter() - began, _cpu_seconds() - cpu
        if unsafe:
            raise RuntimeError(f"{unsafe} events were not confirmed")
    return Emitted(statistics.median(spent) * 1e6, len(events) / seconds, used / len(events) * 1e6, refused)


def models(count: int) -> list[UsageEvent]:
    """Events as a service makes them: without a worker, whose number the producer gives."""
    made = []
    for _, payload in traffic.events(count, 3, traffic.utc_now()):
        event = UsageEvent.model_validate_json(payload)
        made.append(event.model_copy(update={"data": event.data.model_copy(update={"worker": None})}))
    return made


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
