"""The spans of one request, where traces are asked for: the gateway's own, and one for each attempt at the model server.

The attempt's place goes to the model server and into its usage event, so what vLLM and the meter say stands below it.
"""

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from taximeter_inference.gateway.events import RequestFacts
from taximeter_inference.gateway.http_server import Request
from taximeter_producers.tracing import Tracing, traceparent_of
from taximeter_schemas.wire import UsageEvent


class RequestTrace:
    """One request, under its client's trace where it names one."""

    def __init__(self, tracing: Tracing, request: Request) -> None:
        self._tracing = tracing
        parent = next((value for name, value in request.headers if name == b"traceparent"), b"").decode("latin-1")
        attributes = {"http.request.method": request.method, "url.path": request.path}
        self._span = tracing.begin(f"{request.method} {request.path}", SpanKind.SERVER, parent, attributes)

    def attempt(self, facts: RequestFacts) -> "AttemptTrace":
        """Begin an attempt; the request's own span learns whose it is."""
        tags = {
            "taximeter.tenant": facts.tenant,
            "taximeter.feature": facts.tags.feature,
            "taximeter.model": facts.model,
        }
        self._span.set_attributes(tags)
        own = {"taximeter.event_id": facts.request_id, "taximeter.root_request_id": facts.root_request_id}
        number = {"taximeter.attempt": facts.tags.attempt}
        return AttemptTrace(
            self._tracing.begin(f"ask {facts.model}", SpanKind.CLIENT, self._span, {**tags, **own, **number})
        )

    def end(self, status: int, code: str) -> None:
        """The request was answered. `code` names why it was refused."""
        self._span.set_attribute("http.response.status_code", status)
        if code:
            self._span.set_attribute("error.type", code)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class AttemptTrace:
    """One attempt, from its admission to its usage event."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.traceparent = traceparent_of(span)

    def used(self, event: UsageEvent, cost_pico: int) -> None:
        """The event that came of it, and what it costs by the gateway's reckoning."""
        data, read = event.data, event.data.tokens.cache_read
        self._span.set_attributes(
            {
                "taximeter.outcome": data.outcome,
                "taximeter.tokens.uncached_input": data.tokens.uncached_input,
                "taximeter.tokens.cache_read": read.gpu + read.cpu + read.disk + read.provider,
                "taximeter.tokens.output": data.tokens.output,
                "taximeter.cost_pico": cost_pico,
            }
        )

    def end(self) -> None:
        """Nothing more comes of it."""
        self._span.end()
