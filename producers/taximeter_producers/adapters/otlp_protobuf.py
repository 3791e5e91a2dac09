"""OTLP's trace request in protobuf. Needs the `otel` extra."""

from collections.abc import Iterable

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from taximeter_producers.adapters.span import AttributeValue, Span
from taximeter_producers.errors import SpanError


def spans_from_protobuf(body: bytes) -> list[Span]:
    """The spans of an ExportTraceServiceRequest. Raises SpanError when it is none."""
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise SpanError(f"not a trace request of OTLP: {error}") from None
    return [
        Span(
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_span_id=span.parent_span_id.hex(),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            failed=span.status.code == Status.STATUS_CODE_ERROR,
            attributes=_plain(span.attributes),
            resource=resource,
        )
        for group in request.resource_spans
        for resource in [_plain(group.resource.attributes)]
        for scope in group.scope_spans
        for span in scope.spans
    ]


def answer_in_protobuf(rejected: int, message: str) -> bytes:
    """An ExportTraceServiceResponse."""
    partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message) if message else None
    return bytes(ExportTraceServiceResponse(partial_success=partial).SerializeToString())


def _plain(attributes: Iterable[KeyValue]) -> dict[str, AttributeValue]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> AttributeValue:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "array_value":
            return tuple(_value(inner) for inner in value.array_value.values)
        case _:
            return None  # Bytes and maps are nothing that is read here.
