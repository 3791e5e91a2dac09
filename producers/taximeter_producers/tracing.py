"""Traces of our own, by OpenTelemetry: off unless an address for them is set, and nothing of it is imported or paid for then.

A usage event carries its place in its request's trace as the CloudEvents extension `traceparent`, through the spool and the
log, so that a meter far away and much later can add what became of it. Spans go out by OTLP/HTTP from a thread of their own;
when the collector is away they are dropped, and nothing waits for it. They use no `gen_ai` names: read back by
`POST /v1/traces`, a request would be counted a second time.
"""

import re
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from taximeter_producers.errors import TracingError
from taximeter_schemas.rejections import EVENT_BYTES_MAX
from taximeter_schemas.settings import TraceSettings

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, SpanKind

TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
"""https://www.w3.org/TR/trace-context/#traceparent-header: trace, span, and flags, of which the lowest bit says "sampled"."""
_WITHIN = re.compile(rb'"traceparent"\s*:\s*"([0-9a-f-]{55})"')
QUEUE_SPANS_MAX = 8_192
"""More spans than this do not wait for the collector; what is over is dropped."""
EXPORT_SECONDS_MAX, STOP_SECONDS_MAX = 5.0, 3.0
Attributes = Mapping[str, str | int | float | bool]


class Tracing:
    """Makes spans, and sends them. `stop` sends what is left."""

    def __init__(self, service: str, settings: TraceSettings) -> None:
        """Raises TracingError where OpenTelemetry is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ImportError as error:
            raise TracingError("TAXIMETER_TRACES_ENDPOINT is set, which needs the extra taximeter[otel]") from error
        sampler = ParentBased(TraceIdRatioBased(settings.traces_ratio))
        resource = Resource.create({"service.name": f"taximeter-{service}"})
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter(settings.traces_endpoint, timeout=EXPORT_SECONDS_MAX)
        self._provider.add_span_processor(
            BatchSpanProcessor(self._exporter, max_queue_size=QUEUE_SPANS_MAX, schedule_delay_millis=1_000)
        )
        self._tracer = self._provider.get_tracer("taximeter")

    def begin(
        self,
        name: str,
        kind: "SpanKind",
        parent: "str | Span | None",
        attributes: Attributes,
        *,
        links: "Iterable[Link]" = (),
        at_ns: int | None = None,
    ) -> "Span":
        """A span under a parent: a `traceparent` (one that is not valid is none), a span of this process, or nothing.

        `at_ns` is in nanoseconds since the epoch; now, where it is left out.
        """
        from opentelemetry import trace
        from opentelemetry.context import Context

        above = _remote(parent) if isinstance(parent, str) else parent
        context = Context() if above is None else trace.set_span_in_context(above, Context())
        return self._tracer.start_span(name, context, kind, dict(attributes), list(links), at_ns)

    def stop(self) -> None:
        """Send what is left, and end. A collector that does not answer is given a few seconds."""
        stopping = threading.Thread(target=self._provider.shutdown, name="traces-stop", daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS_MAX)
        if stopping.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]


def start_tracing(service: str, settings: TraceSettings) -> Tracing | None:
    """Tracing, where an address for traces is set. Raises TracingError where OpenTelemetry is not installed."""
    return Tracing(service, settings) if settings.traces_endpoint else None


def traceparent_of(span: "Span") -> str:
    """The span's place, as it travels in headers and in events."""
    place = span.get_span_context()
    return f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"


def traceparent_within(payload: bytes) -> str:
    """The `traceparent` that an event's JSON names; empty where there is none."""
    if b'"traceparent"' not in payload:
        return ""
    match = _WITHIN.search(payload)
    return match.group(1).decode() if match else ""


def is_sampled(traceparent: str) -> bool:
    """Whether it is valid, and its trace is kept."""
    match = TRACEPARENT.fullmatch(traceparent)
    return match is not None and int(match.group(3), 16) & 1 == 1


def with_traceparent(payload: bytes, traceparent: str) -> bytes:
    """An event's JSON with that extension attribute. What is not valid, or would make it too long, is left out."""
    if TRACEPARENT.fullmatch(traceparent) is None or len(payload) + 80 > EVENT_BYTES_MAX:
        return payload
    return payload[:-1] + b',"traceparent":"' + traceparent.encode() + b'"}'


def _remote(traceparent: str) -> "Span | None":
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    match = TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    return NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags)))
