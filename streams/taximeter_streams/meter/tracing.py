"""The spans of a batch, where traces are asked for: around any way to fold, without a line in the loop.

A batch is one span, with its steps below it. For each of its events whose request is traced (128 a batch at most), a span in that
request's own trace says when it was counted and where it stands in the log; batch and event name each other by links.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice

from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from taximeter_producers.tracing import Tracing, is_sampled, traceparent_within
from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_streams.meter.batch import Arrivals, Batch, Folding, Place
from taximeter_streams.meter.dedupe import DedupeIndex, KnownIdentities
from taximeter_streams.meter.folding import Examined
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.warehouse import Warehouse

EVENTS_MAX = 128
"""As many links as OpenTelemetry keeps of one span."""
_LOG = {"messaging.system": "kafka", "messaging.destination.name": USAGE_EVENTS.name}


class TracedFolding:
    """Folds as another does, and begins the batch's span."""

    def __init__(self, folding: Folding, tracing: Tracing) -> None:
        self._folding = folding
        self._tracing = tracing

    def fold(self, arrivals: Arrivals, place: Place, index: KnownIdentities, pricing: Pricing) -> Batch:
        """See Folding."""
        began_at = time.time_ns()
        batch = self._folding.fold(arrivals, place, index, pricing)
        return TracedBatch(batch, arrivals, place, self._tracing, began_at)


class TracedBatch:
    """A folded batch whose steps are spans. One that is given up was never counted, and its span is not sent."""

    def __init__(self, batch: Batch, arrivals: Arrivals, place: Place, tracing: Tracing, began_at: int) -> None:
        self._batch = batch
        self._tracing = tracing
        where = {**_LOG, "messaging.destination.partition.id": str(place.partition), "taximeter.log_id": place.log_id}
        offsets = {"taximeter.offset.first": arrivals.first, "taximeter.offset.last": arrivals.last}
        size = {"messaging.batch.message_count": len(arrivals)}
        events = list(islice(_traced(arrivals), EVENTS_MAX))
        self._events = [
            tracing.begin(
                f"process {USAGE_EVENTS.name}",
                SpanKind.CONSUMER,
                traceparent,
                {**where, "messaging.kafka.offset": offset},
                at_ns=arrived_at_ms * 1_000_000,
            )
            for offset, arrived_at_ms, traceparent in events
        ]
        links = [Link(event.get_span_context()) for event in self._events]
        self._span = tracing.begin(
            "meter batch", SpanKind.CONSUMER, None, {**where, **offsets, **size}, links=links, at_ns=began_at
        )
        for event in self._events:
            event.add_link(self._span.get_span_context())
        self._folded_from_to = began_at, time.time_ns()

    @property
    def rejected(self) -> list[Examined]:
        """See Batch."""
        return self._batch.rejected

    def counts(self) -> dict[tuple[str, str], int]:
        """See Batch. The loop asks when all is done: the batch's span ends."""
        counts = self._batch.counts()
        self._span.set_attributes({f"taximeter.{'/'.join(filter(None, key))}": count for key, count in counts.items()})
        self._span.end()
        return counts

    def insert(self, warehouse: Warehouse) -> None:
        """See Batch."""
        with self._step("insert"):
            self._batch.insert(warehouse)

    def counted(self) -> tuple[list[bytes], list[bytes]]:
        """See Batch."""
        return self._batch.counted()

    def mark(self, index: DedupeIndex) -> None:
        """See Batch. From here on its events count."""
        for event in self._events:
            event.end()
        began_at, ended_at = self._folded_from_to
        self._tracing.begin("fold", SpanKind.INTERNAL, self._span, {}, at_ns=began_at).end(ended_at)
        with self._step("mark"):
            self._batch.mark(index)

    def spend(self, rated_at: datetime) -> list[tuple[str, bytes]]:
        """See Batch."""
        with self._step("spend"):
            return self._batch.spend(rated_at)

    @contextmanager
    def _step(self, name: str) -> Iterator[Span]:
        span = self._tracing.begin(name, SpanKind.INTERNAL, self._span, {})
        try:
            yield span
        except Exception as error:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            span.end()


def _traced(arrivals: Arrivals) -> Iterator[tuple[int, int, str]]:
    """Offset, time of arrival in ms, and `traceparent` of the events whose trace is kept."""
    for at, payload in enumerate(arrivals.payloads):
        traceparent = traceparent_within(payload)
        if traceparent and is_sampled(traceparent):
            yield arrivals.offsets[at], arrivals.arrived_at_ms[at], traceparent
