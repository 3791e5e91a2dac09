"""OTLP's trace request in JSON, decoded with msgspec: ids are hex, 64-bit numbers may be texts, unknown fields are ignored.

https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

import re

import msgspec

from taximeter_producers.adapters.span import AttributeValue, Span
from taximeter_producers.errors import SpanError

STATUS_ERROR = 2
_INVALID_ARGUMENT = 3
_STATUS_BYTES_MAX = 2_000
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})*\Z")


class _Value(msgspec.Struct, rename="camel", gc=False):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    array_value: "_Values | None" = None

    def plain(self) -> AttributeValue:
        if self.int_value is not None:
            return int(self.int_value)
        if self.array_value is not None:
            return tuple(value.plain() for value in self.array_value.values)
        for value in (self.string_value, self.bool_value, self.double_value):
            if value is not None:
                return value
        return None


class _Values(msgspec.Struct, gc=False):
    values: list[_Value] = []


class _Attribute(msgspec.Struct, gc=False):
    key: str
    value: _Value | None = None


class _Status(msgspec.Struct, gc=False):
    code: int | str = 0


class _Span(msgspec.Struct, rename="camel", gc=False):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str | None = ""
    start_time_unix_nano: int | str = 0
    end_time_unix_nano: int | str = 0
    attributes: list[_Attribute] = []
    status: _Status | None = None


class _Scope(msgspec.Struct, gc=False):
    spans: list[_Span] = []


class _Resource(msgspec.Struct, gc=False):
    attributes: list[_Attribute] = []


class _ResourceSpans(msgspec.Struct, rename="camel", gc=False):
    resource: _Resource | None = None
    scope_spans: list[_Scope] = []


class _Request(msgspec.Struct, rename="camel", gc=False):
    resource_spans: list[_ResourceSpans] = []


_DECODER = msgspec.json.Decoder(_Request)


def spans_from_json(body: bytes) -> list[Span]:
    """The spans of an ExportTraceServiceRequest in JSON. Raises SpanError when it is none."""
    try:
        request = _DECODER.decode(body)
        return [
            _span(span, resource)
            for group in request.resource_spans
            for resource in [_plain(group.resource.attributes if group.resource else [])]
            for scope in group.scope_spans
            for span in scope.spans
        ]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise SpanError(f"not a trace request of OTLP/JSON: {error}") from None


def answer_in_json(rejected: int, message: str) -> bytes:
    """An ExportTraceServiceResponse."""
    partial = {"partialSuccess": {"rejectedSpans": str(rejected), "errorMessage": message}} if message else {}
    return msgspec.json.encode(partial)


def status_in_json(message: str) -> bytes:
    """A google.rpc.Status that says INVALID_ARGUMENT, in JSON."""
    return msgspec.json.encode({"code": _INVALID_ARGUMENT, "message": message})


def status_in_protobuf(message: str) -> bytes:
    """The same in protobuf, written by hand: field 1 is the code, field 2 the message. Needs no library."""
    text = message.encode()[:_STATUS_BYTES_MAX]
    return bytes((0x08, _INVALID_ARGUMENT, 0x12, len(text) & 0x7F | 0x80, len(text) >> 7)) + text


def _span(span: _Span, resource: dict[str, AttributeValue]) -> Span:
    for name, value in (
        ("traceId", span.trace_id),
        ("spanId", span.span_id),
        ("parentSpanId", span.parent_span_id or ""),
    ):
        if not _HEX.match(value):
            raise SpanError(f"{name} is not hex: {value!r:.40}")
    code = span.status.code if span.status else 0
    return Span(
        trace_id=span.trace_id.lower(),
        span_id=span.span_id.lower(),
        parent_span_id=(span.parent_span_id or "").lower(),
        start_ns=int(span.start_time_unix_nano),
        end_ns=int(span.end_time_unix_nano),
        failed=code in (STATUS_ERROR, "STATUS_CODE_ERROR"),
        attributes=_plain(span.attributes),
        resource=resource,
    )


def _plain(attributes: list[_Attribute]) -> dict[str, AttributeValue]:
    return {attribute.key: attribute.value.plain() if attribute.value else None for attribute in attributes}
