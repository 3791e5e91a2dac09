"""Our own traces, in real processes: a client's trace goes on through gateway, model server, usage event and meter batch."""

import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from taximeter_producers.tracing import TRACEPARENT, is_sampled, traceparent_within, with_traceparent
from taximeter_schemas import wire
from taximeter_schemas.rejections import EVENT_BYTES_MAX
from tests.face_process import FaceProcess
from tests.faults.processes import Worker, make_worker
from tests.gateway_stack import PARTITIONS, SECONDS_MAX, Client, GatewayStack, chat_body, declare
from tests.usage_events import usage_event
from tests.waiting import await_true

UNTRACED = """
import sys
import taximeter_inference.gateway.__main__, taximeter_producers.ingest.__main__, taximeter_streams.meter.__main__
ours = ("opentelemetry.sdk", "opentelemetry.exporter", "taximeter_inference.gateway.tracing", "taximeter_streams.meter.tracing")
found = [name for name in sys.modules if name.startswith(ours)]
assert not found, found
"""
Attributes = dict[str, str | int]


@dataclass
class Collector:
    """An OTLP/HTTP collector that keeps what it hears."""

    spans: list[tuple[str, Span]] = field(default_factory=list)

    def __enter__(self) -> "Collector":
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for of_service in asked.resource_spans:
                    service = attributes_of(of_service.resource)["service.name"]
                    collector.spans += [(str(service), span) for of in of_service.scope_spans for span in of.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads them."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def trace(self, trace_id: str) -> dict[str, tuple[str, Span]]:
        """The spans of a trace, by name."""
        return {span.name: (service, span) for service, span in list(self.spans) if span.trace_id.hex() == trace_id}

    def await_trace(self, trace_id: str, count: int) -> dict[str, tuple[str, Span]]:
        """The same, once there are that many."""
        await_true(lambda: len(self.trace(trace_id)) >= count, lambda: f"{count} spans: {self.trace(trace_id)}")
        return self.trace(trace_id)


def attributes_of(of: Span | Resource) -> Attributes:
    """Texts and whole numbers."""
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in of.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def stack(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[GatewayStack]:
    stack = GatewayStack(bootstrap_servers, tmp_path_factory.mktemp("traced"), ["m-json"])
    stack.gateway = stack.another_gateway(stack.gateway_id, stack.upstream.url, TAXIMETER_TRACES_ENDPOINT=collector.url)
    try:
        stack.upstream.start()
        stack.gateway.start()
        yield stack
    finally:
        stack.gateway.child.stop()
        stack.upstream.child.stop()


@pytest.fixture
def meter(
    bootstrap_servers: str, clickhouse: FaceProcess, unique_database: str, tmp_path: Path, collector: Collector
) -> Iterator[Worker]:
    environment = {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
        "TAXIMETER_CLICKHOUSE_URL": clickhouse.url(unique_database),
        "TAXIMETER_METER_GROUP": f"meter-{unique_database}",
        "TAXIMETER_TRACES_ENDPOINT": collector.url,
    }
    worker = make_worker("meter", "taximeter_streams.meter", "TAXIMETER_METER_PORT", tmp_path, environment, 0)
    worker.start()
    yield worker
    worker.child.stop()


def place(sampled: bool = True) -> tuple[str, str, str]:
    """A client's trace, its span, and the header that says so."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-{sampled:02x}"


@pytest.fixture
def client(stack: GatewayStack) -> Client:
    return Client(stack.gateway.url, declare(stack, f"t-{secrets.token_hex(4)}"))


def ask(client: Client, traceparent: str) -> httpx.Response:
    return client.post("/v1/chat/completions", chat_body("m-json", "a b c d", 5), traceparent=traceparent)


def test_a_clients_trace_goes_on_to_the_meters_batch(
    stack: GatewayStack, client: Client, meter: Worker, collector: Collector
) -> None:
    unseen, _, not_sampled = place(sampled=False)
    trace_id, caller, traceparent = place()
    assert ask(client, not_sampled).status_code == 200
    answer = ask(client, traceparent)
    assert answer.status_code == 200
    spans = collector.await_trace(trace_id, 3)
    (gateway, request), (_, attempt), (metering, counted) = (
        spans["POST /v1/chat/completions"], spans["ask m-json"], spans["process usage.events.v1"],
    )  # fmt: skip
    assert (gateway, metering) == ("taximeter-gateway", "taximeter-meter")
    assert (request.parent_span_id.hex(), attempt.parent_span_id) == (caller, request.span_id)
    assert counted.parent_span_id == attempt.span_id
    assert (request.kind, attempt.kind, counted.kind) == (
        Span.SPAN_KIND_SERVER,
        Span.SPAN_KIND_CLIENT,
        Span.SPAN_KIND_CONSUMER,
    )
    assert attributes_of(request)["http.response.status_code"] == 200
    said = attributes_of(attempt)
    assert said["taximeter.event_id"] == answer.headers["x-taximeter-request-id"]
    assert (said["taximeter.tokens.uncached_input"], said["taximeter.tokens.output"]) == (4, 5)
    assert said["taximeter.cost_pico"] == 4 * 1_000_000 + 5 * 4_000_000
    batch = batch_of(collector, counted)
    offset, where = attributes_of(counted)["messaging.kafka.offset"], attributes_of(batch)
    assert int(where["taximeter.offset.first"]) <= int(offset) <= int(where["taximeter.offset.last"])
    assert counted.links[0].span_id == batch.span_id
    steps = {name for name, (_, span) in collector.trace(batch.trace_id.hex()).items() if span.parent_span_id}
    assert steps == {"fold", "insert", "mark", "spend"}
    assert not collector.trace(unseen)


def batch_of(collector: Collector, counted: Span) -> Span:
    """The batch that links to a counted event, once it was heard of."""
    found: list[Span] = []

    def there() -> bool:
        found[:] = [
            span for _, span in list(collector.spans) if any(link.span_id == counted.span_id for link in span.links)
        ]
        return bool(found)

    await_true(there, lambda: f"a batch with a link to {counted.span_id.hex()}")
    assert [span.name for span in found] == ["meter batch"]
    return found[0]


def test_a_refusal_is_said(stack: GatewayStack, client: Client, collector: Collector) -> None:
    trace_id, _, traceparent = place()
    stranger = Client(stack.gateway.url, "sk-unknown")
    assert ask(stranger, traceparent).status_code == 401
    _, refused = collector.await_trace(trace_id, 1)["POST /v1/chat/completions"]
    assert attributes_of(refused)["error.type"] == "invalid_api_key"
    assert refused.status.code == 0  # the client's mistake is no failure of ours


def test_a_collector_that_is_away_holds_nobody_up(stack: GatewayStack, client: Client) -> None:
    alone = stack.another_gateway(
        f"g-{secrets.token_hex(4)}", stack.upstream.url, TAXIMETER_TRACES_ENDPOINT="http://127.0.0.1:9/v1/traces"
    )
    try:
        alone.start()
        await_true(lambda: ask(Client(alone.url, client.key), place()[2]).status_code == 200, lambda: "it answers")
    finally:
        alone.child.stop()
    assert alone.child.exit_status == 0, alone.child.log_tail(30)


def test_off_by_default_nothing_of_it_is_imported() -> None:
    subprocess.run([sys.executable, "-c", UNTRACED], check=True, timeout=SECONDS_MAX)


def test_an_event_carries_its_place_and_stays_the_same_event() -> None:
    event = wire.from_model(usage_event("a"))
    plain, traceparent = wire.encode(event), place()[2]
    marked = with_traceparent(plain, traceparent)
    assert (traceparent_within(marked), traceparent_within(plain)) == (traceparent, "")
    assert wire.decode(marked) == event
    assert wire.body_hash(wire.decode(marked)) == wire.body_hash(event)
    assert with_traceparent(plain, "00-1") == plain
    assert with_traceparent(b"{" + b" " * EVENT_BYTES_MAX + b"}", traceparent)[-2:] == b" }"
    for text, valid, sampled in (
        (traceparent, True, True),
        (traceparent[:-2] + "00", True, False),
        ("00-" + "0" * 32 + traceparent[35:], False, False),  # nobody's trace
        ("ff" + traceparent[2:], False, False),  # no such version
    ):
        assert (TRACEPARENT.fullmatch(text) is not None, is_sampled(text)) == (valid, sampled), text
