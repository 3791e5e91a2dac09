"""POST /v1/traces: OTLP over HTTP, JSON or protobuf, plain or gzip. GenAI spans become usage events.

https://opentelemetry.io/docs/specs/otlp/#otlphttp: 200 with what was rejected and why; 4xx is not sent again; 503 is.
"""

import zlib
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter

from taximeter_producers.adapters.otlp_json import answer_in_json, spans_from_json, status_in_json, status_in_protobuf
from taximeter_producers.adapters.span import Span
from taximeter_producers.adapters.spans import Reading, TagNames, read_spans
from taximeter_producers.adapters.turns import Turns
from taximeter_producers.errors import SpanError
from taximeter_producers.ingest.bodies import BodyError
from taximeter_producers.ingest.intake import Intake, Status
from taximeter_producers.ingest.requests import authorize, read_body
from taximeter_producers.ingest.settings import IngestSettings

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
REASONS_SHOWN = 10
_GZIP = 16 + zlib.MAX_WBITS


def add_otlp(app: FastAPI, settings: IngestSettings, intake: Intake, registry: CollectorRegistry) -> None:
    """Add the route. Its events go the way of all others, through the same intake."""
    names = TagNames(
        tenant=_names(settings.otlp_tenant_attributes),
        feature=_names(settings.otlp_feature_attributes),
        model=_names(settings.otlp_model_attributes),
    )
    turns = Turns()
    counted = Counter("taximeter_ingest_spans", "Spans by what became of them", ["status"], registry=registry)

    @app.post("/v1/traces")
    async def post_traces(request: Request) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            return await answer(request, media_type)
        except BodyError as error:
            return _refusal(error, media_type)

    async def answer(request: Request, media_type: str) -> Response:
        authorize(request, settings)
        packed = await read_body(request, settings.otlp_body_bytes_max)
        body = _unpacked(packed, request.headers.get("content-encoding", ""), settings.otlp_body_bytes_max)
        reading = read_spans(_spans(body, media_type), names, turns)
        results = await intake.take([event.to_json() for event in reading.events])
        for result in results:
            if result.status is Status.INVALID:
                reading.rejected.append(f"span {result.id}: {result.error}")
            else:
                counted.labels(result.status).inc()
        counted.labels("rejected").inc(len(reading.rejected))
        counted.labels("ignored").inc(reading.ignored)
        counted.labels("repeated").inc(reading.repeated)
        return _answer(reading, media_type)


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name for part in listed.split(",") if (name := part.strip()))


def _unpacked(body: bytes, encoding: str, bytes_max: int) -> bytes:
    if encoding.strip().lower() in ("", "identity"):
        return body
    if encoding.strip().lower() != "gzip":
        raise BodyError(415, "unsupported_encoding", "send the body plain or with Content-Encoding: gzip")
    unpacking = zlib.decompressobj(_GZIP)
    try:
        plain = unpacking.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise BodyError(400, "malformed_body", f"the body is not gzip: {error}") from None
    if len(plain) > bytes_max:
        raise BodyError(413, "body_too_large", f"a body has at most {bytes_max} bytes unpacked; send smaller batches")
    if not unpacking.eof:
        raise BodyError(400, "malformed_body", "the body is not whole gzip")
    return plain


def _spans(body: bytes, media_type: str) -> list[Span]:
    try:
        if media_type == JSON:
            return spans_from_json(body)
        if media_type == PROTOBUF:
            return _protobuf_reader()(body)
    except SpanError as error:
        raise BodyError(400, "malformed_body", str(error)) from None
    raise BodyError(415, "unsupported_media_type", f"send {PROTOBUF} or {JSON}")


def _answer(reading: Reading, media_type: str) -> Response:
    rejected = len(reading.rejected)
    message = "; ".join(reading.rejected[:REASONS_SHOWN])
    if rejected > REASONS_SHOWN:
        message += f"; and {rejected - REASONS_SHOWN} more"
    if media_type == PROTOBUF:
        from taximeter_producers.adapters.otlp_protobuf import answer_in_protobuf

        return Response(answer_in_protobuf(rejected, message), media_type=PROTOBUF)
    return Response(answer_in_json(rejected, message), media_type=JSON)


def _protobuf_reader() -> Callable[[bytes], list[Span]]:
    try:
        from taximeter_producers.adapters.otlp_protobuf import spans_from_protobuf
    except ModuleNotFoundError:
        needed = f"{PROTOBUF} needs pip install 'taximeter[otel]' where ingest runs; or send {JSON}"
        raise BodyError(415, "unsupported_media_type", needed) from None
    return spans_from_protobuf


def _refusal(error: BodyError, media_type: str) -> Response:
    """The error as OTLP has it: a google.rpc.Status in the encoding of the request."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    text = f"{error.code}: {error}"
    if media_type == PROTOBUF:
        return Response(status_in_protobuf(text), error.status, headers, PROTOBUF)
    return Response(status_in_json(text), error.status, headers, JSON)
