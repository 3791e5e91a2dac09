"""POST /v1/traces: what real exporters send, every status, partial success, retries, and the real process with a real broker."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from taximeter.embedded.ports import free_port
from taximeter_schemas import wire
from tests.integration.test_ingest import SECONDS_MAX, Ingest, await_answer
from tests.topic_reader import read_topic

RECORDED = Path(__file__).parents[1] / "recorded"
JSON = {"content-type": "application/json"}
PROTOBUF = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
TRACE = "5b8efff798038103d269b633813fc60c"


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    service = Ingest(tmp_path)
    yield service
    service.producer.close()


def trace_request(*spans: dict[str, Any], tenant: str | None = "acme") -> bytes:
    resource = {"service.name": "ask"} | ({"taximeter.tenant": tenant} if tenant else {})
    group = {"resource": {"attributes": as_attributes(resource)}, "scopeSpans": [{"spans": list(spans)}]}
    return json.dumps({"resourceSpans": [group]}).encode()


def chat(span_id: str, **attributes: str | int) -> dict[str, Any]:
    said: dict[str, str | int] = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    said |= {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 2, **attributes}
    return {
        "traceId": TRACE,
        "spanId": span_id,
        "startTimeUnixNano": "1795500000000000000",
        "endTimeUnixNano": "1795500001000000000",
        "attributes": as_attributes(said),
    }


def as_attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = {str: "stringValue", int: "intValue"}
    return [{"key": name, "value": {kinds[type(value)]: value}} for name, value in values.items()]


def export(ingest: Ingest, body: bytes, headers: dict[str, str] = JSON) -> httpx.Response:
    return ingest.request("POST", "/v1/traces", body, headers)


def counted(ingest: Ingest) -> dict[str, int]:
    lines = ingest.request("GET", "/metrics").text.splitlines()
    shown = [line for line in lines if line.startswith("taximeter_ingest_spans_total{")]
    return {line.split('"')[1]: int(float(line.split()[-1])) for line in shown if not line.endswith(" 0.0")}


def test_what_two_exporters_sent_is_one_turn(ingest: Ingest) -> None:
    first = export(ingest, (RECORDED / "otlp_turn.pb.gz").read_bytes(), PROTOBUF)
    assert (first.status_code, first.headers["content-type"]) == (200, "application/x-protobuf")
    assert not ExportTraceServiceResponse.FromString(first.content).HasField("partial_success")
    assert counted(ingest) == {"accepted": 3, "ignored": 3, "repeated": 1}
    again = export(ingest, (RECORDED / "otlp_turn.json").read_bytes())  # the same spans from the other exporter
    assert (again.status_code, again.json()) == (200, {})
    assert counted(ingest) == {"accepted": 3, "duplicate": 3, "ignored": 6, "repeated": 2}


def test_a_request_without_tenant_is_rejected_with_partial_success(ingest: Ingest) -> None:
    server = {
        "traceId": TRACE,
        "spanId": "00000000000000aa",
        "attributes": as_attributes({"http.request.method": "GET"}),
    }
    spans = [chat("0000000000000001"), chat("0000000000000002", **{"tenant.id": "acme"}), server]
    response = export(ingest, trace_request(*spans, tenant=None))
    assert response.status_code == 200
    partial = response.json()["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "span 0000000000000001: it has no tenant: set taximeter.tenant or tenant.id" in partial["errorMessage"]
    assert counted(ingest) == {"accepted": 1, "rejected": 1, "ignored": 1}


def test_protobuf_says_so_too(ingest: Ingest) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest.FromString(gzip.decompress((RECORDED / "otlp_turn.pb.gz").read_bytes()))
    for group in request.resource_spans:
        del group.resource.attributes[:]
    response = export(ingest, request.SerializeToString(), {"content-type": "application/x-protobuf"})
    partial = ExportTraceServiceResponse.FromString(response.content).partial_success
    assert (response.status_code, partial.rejected_spans) == (200, 3)
    assert "it has no tenant" in partial.error_message


def test_many_reasons_are_cut_short(ingest: Ingest) -> None:
    response = export(ingest, trace_request(*(chat(f"{number:016x}") for number in range(1, 31)), tenant=None))
    partial = response.json()["partialSuccess"]
    assert partial["rejectedSpans"] == "30"
    assert partial["errorMessage"].endswith("; and 20 more")


def test_names_of_attributes_can_be_set(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path, otlp_tenant_attributes="customer, team", otlp_feature_attributes="app")
    tagged = chat("0000000000000001", customer="globex", app="search")
    assert export(ingest, trace_request(tagged, tenant=None)).json() == {}
    refused = export(ingest, trace_request(chat("0000000000000002")))
    assert "set customer or team" in refused.json()["partialSuccess"]["errorMessage"]
    ingest.producer.close()


REFUSED = [
    (b"{", JSON, 400, "malformed_body"),
    (b"\xff\xff", {"content-type": "application/x-protobuf"}, 400, "malformed_body"),
    (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
    (b"{}", JSON | {"content-encoding": "br"}, 415, "unsupported_encoding"),
    (b"{}", JSON | {"content-encoding": "gzip"}, 400, "malformed_body"),
    (gzip.compress(b"{}", mtime=0)[:-3], JSON | {"content-encoding": "gzip"}, 400, "malformed_body"),
    (gzip.compress(b" " * 5_001, mtime=0), JSON | {"content-encoding": "gzip"}, 413, "body_too_large"),
    (b" " * 5_001, JSON, 413, "body_too_large"),
]


@pytest.mark.parametrize(("body", "headers", "status", "code"), REFUSED, ids=lambda value: str(value)[:24])
def test_a_body_that_cannot_be_read(
    tmp_path: Path, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    ingest = Ingest(tmp_path, otlp_body_bytes_max=5_000)
    response = export(ingest, body, headers)
    assert response.status_code == status
    assert code.encode() in response.content  # a google.rpc.Status in the request's encoding
    ingest.producer.close()


def test_without_the_extra_protobuf_is_refused_and_json_is_taken(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "taximeter_producers.adapters.otlp_protobuf", raising=False)
    monkeypatch.delattr("taximeter_producers.adapters.otlp_protobuf", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.trace.v1.trace_service_pb2", None)
    refused = export(ingest, (RECORDED / "otlp_turn.pb.gz").read_bytes(), PROTOBUF)
    assert refused.status_code == 415
    assert b"pip install 'taximeter[otel]'" in refused.content
    assert export(ingest, (RECORDED / "otlp_turn.json").read_bytes()).json() == {}


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path, ingest_token="secret")
    refused = export(ingest, trace_request(chat("0000000000000001")))
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert export(ingest, trace_request(), JSON | {"authorization": "Bearer secret"}).status_code == 200
    ingest.producer.close()


def test_a_full_spool_asks_the_exporter_to_come_again(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path, spool_bytes_max=3_000)
    response = export(ingest, trace_request(*(chat(f"{number:016x}") for number in range(1, 31))))
    assert response.status_code == 503  # OTLP: retryable
    assert int(response.headers["retry-after"]) > 0
    ingest.producer.close()


def test_the_process_takes_an_export_to_the_broker(bootstrap_servers: str, tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "TAXIMETER_INGEST_PORT": str(port),
        "TAXIMETER_STATE_DIR": str(tmp_path),
    }
    with (tmp_path / "ingest.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "taximeter_producers.ingest"], env=environment, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS_MAX, trust_env=False) as client:
                await_answer(client)
                body = (RECORDED / "otlp_turn.pb.gz").read_bytes()
                for _retry in range(2):
                    assert client.post("/v1/traces", content=body, headers=PROTOBUF).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS_MAX) == 0
        finally:
            process.kill()
            process.wait()
    # Others share the topic, and some of them send garbage.
    values = [message.value() or b"" for message in read_topic(bootstrap_servers, "usage.events.v1")]
    arrived = [wire.decode(value) for value in values if b'"source":"opentelemetry"' in value]
    turn = [event for event in arrived if event.source == "opentelemetry" and event.data.feature == "recorded"]
    assert sorted(event.data.hop for event in turn) == [0, 1, 2]
    assert all(event.id.startswith(event.data.root_request_id or "-") for event in turn)
