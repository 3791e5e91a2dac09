"""GenAI spans become usage events: whose usage counts, and once; tags; hops; what is rejected and why."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taximeter_producers.adapters.otlp_json import spans_from_json, status_in_protobuf
from taximeter_producers.adapters.otlp_protobuf import spans_from_protobuf
from taximeter_producers.adapters.span import AttributeValue, Span
from taximeter_producers.adapters.spans import Reading, TagNames, read_spans
from taximeter_producers.adapters.turns import HOP_MAX, Turns
from taximeter_producers.errors import SpanError
from taximeter_producers.producer import encode_event
from taximeter_schemas.events import Operation, Outcome, ServiceTier, UsageEvent

RECORDED = Path(__file__).parents[1] / "recorded"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SECOND = 10**9
USAGE: dict[str, AttributeValue] = {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 20}
TAGS: dict[str, AttributeValue] = {"taximeter.tenant": "acme", "service.name": "ask"}


def span(number: int, operation: str | None = "chat", parent: int = 0, start: int | None = None, **more: Any) -> Span:
    """A request of a second; `more` are attributes with _ for the dot, None takes one away."""
    given: dict[str, AttributeValue] = {"gen_ai.operation.name": operation, "gen_ai.request.model": "m", **USAGE}
    given |= {name.replace("__", "."): value for name, value in more.items()}
    began = (start if start is not None else number) * SECOND
    attributes = {name: value for name, value in given.items() if value is not None}
    above = f"{parent:016x}" if parent else ""
    return Span(TRACE, f"{number:016x}", above, began, began + SECOND, False, attributes, TAGS)


def read(*spans: Span, names: TagNames | None = None, turns: Turns | None = None) -> Reading:
    return read_spans(spans, names or TagNames(), turns or Turns())


def only(reading: Reading) -> UsageEvent:
    assert reading.rejected == []
    (event,) = reading.events
    encode_event(event)
    return event


def test_a_recorded_turn_counts_each_request_once() -> None:
    turn = spans_from_json((RECORDED / "otlp_turn.json").read_bytes())
    assert turn == spans_from_protobuf(gzip.decompress((RECORDED / "otlp_turn.pb.gz").read_bytes()))
    reading = read(*turn)
    assert reading.rejected == []
    # Ignored: the agent's sum, the server's span, and a chat that was refused and used nothing. Repeated: Anthropic's SDK
    # and the instrumentation around it both made a span for one request.
    assert (len(turn), reading.ignored, reading.repeated) == (7, 3, 1)
    embedding, chat, message = reading.events
    assert [event.data.hop for event in reading.events] == [0, 1, 2]
    assert {event.data.root_request_id for event in reading.events} == {turn[0].trace_id}
    assert (embedding.data.operation, embedding.data.model) == (Operation.EMBEDDING, "text-embedding-3-small")
    assert embedding.data.tokens.uncached_input == 8
    assert (chat.data.tokens.uncached_input, chat.data.tokens.cache_read.provider) == (86, 1920)
    assert (chat.data.tokens.output, chat.data.tokens.reasoning) == (300, 64)
    assert message.data.outcome is Outcome.LENGTH
    assert message.data.tokens.model_dump(by_alias=True)["cache_write"] == {"5m": 148, "1h": 100}
    assert (message.data.tokens.uncached_input, message.data.tokens.cache_read.provider) == (2048, 1800)
    assert all((event.data.tenant, event.data.feature) == ("acme", "recorded") for event in reading.events)


def test_an_event_names_its_span_and_its_times() -> None:
    event = only(read(span(5, gen_ai__response__time_to_first_chunk=0.25, gen_ai__response__model="m-2026")))
    assert event.id == event.data.request_id == f"{TRACE}-0000000000000005"
    assert (event.source, event.time.isoformat()) == ("opentelemetry", "1970-01-01T00:00:06+00:00")
    assert (event.data.timing.total_ms, event.data.timing.ttft_ms) == (1000.0, 250.0)
    assert event.data.attributes == {"service.name": "ask", "gen_ai.response.model": "m-2026"}


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("chat", Operation.CHAT),
        ("generate_content", Operation.CHAT),
        ("text_completion", Operation.COMPLETION),
        ("embeddings", Operation.EMBEDDING),
        ("rerank", Operation.RERANK),
    ],
)
def test_requests_to_a_model(operation: str, expected: Operation) -> None:
    assert only(read(span(1, operation))).data.operation is expected


@pytest.mark.parametrize(
    "ignored",
    [
        span(1, "invoke_agent"),  # its usage is a sum over the spans below
        span(1, "invoke_workflow"),
        span(1, "execute_tool"),
        span(1, "a_new_one", gen_ai__usage__input_tokens=None, gen_ai__usage__output_tokens=None),
        Span(TRACE, "0000000000000001", "", 1, 2, False, {"http.request.method": "GET"}),  # not GenAI: no tenant needed
    ],
)
def test_spans_without_usage_of_their_own_are_ignored(ignored: Span) -> None:
    reading = read(ignored)
    assert (reading.events, reading.rejected, reading.ignored) == ([], [], 1)


REJECTED: list[tuple[dict[str, Any], str]] = [
    ({"operation": "a_new_one"}, "'a_new_one' is not known, so its usage may be a sum"),
    ({"operation": None}, "it has usage but no gen_ai.operation.name"),
    ({"gen_ai__usage__input_tokens": None}, "attributes has no gen_ai.usage.input_tokens"),
    ({"gen_ai__usage__input_tokens": "100"}, "gen_ai.usage.input_tokens is not a number of tokens: '100'"),
    ({"gen_ai__usage__output_tokens": -1}, "gen_ai.usage.output_tokens is not a number of tokens: -1"),
    ({"gen_ai__usage__cache_read__input_tokens": 101}, "101 tokens were read from or written to a cache, of 100"),
    ({"gen_ai__usage__reasoning__output_tokens": 21}, "21 tokens of reasoning, of 20"),
    ({"gen_ai__request__model": None}, "it has no model: set gen_ai.request.model or gen_ai.response.model"),
    ({"gen_ai__request__model": "a model"}, "model: String should match pattern"),
    ({"taximeter__feature": 7}, "its feature is not a text: 7"),
    ({"taximeter__hop": 1001}, "taximeter.hop is not a whole number from 0 to 1000"),
    ({"taximeter__root_request_id": "a b"}, "root_request_id: String should match"),
]


@pytest.mark.parametrize(("more", "reason"), REJECTED)
def test_a_request_that_cannot_be_counted_is_rejected_with_the_reason(more: dict[str, Any], reason: str) -> None:
    reading = read(span(1, **{"operation": "chat"} | more))
    assert reading.events == []
    (rejected,) = reading.rejected
    assert rejected.startswith("span 0000000000000001: ")
    assert reason in rejected


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (replace(span(1), resource={"service.name": "ask"}), "it has no tenant: set taximeter.tenant or tenant.id"),
        (replace(span(1), trace_id="0" * 32), "its trace id is not valid"),
        (replace(span(1), span_id="12"), "its span id is not valid"),
        (replace(span(1), end_ns=5), "it ended before it began"),
        (replace(span(1), end_ns=10**30), "it cannot be a usage event"),
    ],
)
def test_a_span_that_is_not_whole_is_rejected(changed: Span, reason: str) -> None:
    reading = read(changed)
    assert (reading.events, len(reading.rejected)) == ([], 1)
    assert reason in reading.rejected[0]


def test_tags_come_from_the_span_before_the_resource_by_names_that_can_be_set() -> None:
    tagged = span(1, taximeter__tenant="globex", taximeter__feature="search", customer="initech", team="x")
    event = only(read(tagged))
    assert (event.data.tenant, event.data.feature) == ("globex", "search")
    names = TagNames(tenant=("customer", "taximeter.tenant"), feature=("team",), model=("gen_ai.response.model",))
    event = only(
        read(replace(tagged, attributes={**tagged.attributes, "gen_ai.response.model": "m-2026"}), names=names)
    )
    assert (event.data.tenant, event.data.feature, event.data.model) == ("initech", "x", "m-2026")


@pytest.mark.parametrize(
    ("more", "failed", "outcome"),
    [
        ({}, False, Outcome.COMPLETED),
        ({"gen_ai__response__finish_reasons": ("stop", "length")}, False, Outcome.LENGTH),
        ({"anthropic__message__stop_reason": "max_tokens"}, False, Outcome.LENGTH),
        ({"error__type": "500"}, True, Outcome.ERROR),
        ({"error__type": "timeout"}, False, Outcome.ERROR),
        ({"error__type": "asyncio.CancelledError"}, True, Outcome.ABORTED),
        ({}, True, Outcome.ERROR),
        ({"error__type": "RateLimitError"}, True, Outcome.REFUSED),  # but it says that it used something
    ],
)
def test_outcomes(more: dict[str, Any], failed: bool, outcome: Outcome) -> None:
    event = only(read(replace(span(1, **more), failed=failed)))
    assert event.data.outcome is outcome
    assert event.data.tokens.output == 20


@pytest.mark.parametrize(
    ("error", "counted"), [("timeout", True), ("503", True), ("404", False), ("BadRequestError", False)]
)
def test_a_failure_without_usage_used_nothing_and_a_refusal_is_no_event(error: str, counted: bool) -> None:
    failed = span(1, error__type=error, gen_ai__usage__input_tokens=None, gen_ai__usage__output_tokens=None)
    reading = read(failed)
    assert (len(reading.events), reading.ignored, reading.rejected) == (int(counted), int(not counted), [])
    assert all(event.data.tokens.model_dump(exclude_defaults=True) == {} for event in reading.events)


def test_names_of_earlier_conventions() -> None:
    old = span(
        1, None, llm__request__type="chat", gen_ai__usage__input_tokens=None, gen_ai__usage__output_tokens=None,
        gen_ai__usage__prompt_tokens=9, gen_ai__usage__completion_tokens=3, gen_ai__system="vllm",
        gen_ai__usage__cache_read_input_tokens=4, gen_ai__openai__response__service_tier="priority",
    )  # fmt: skip
    event = only(read(old))
    assert (event.data.tokens.uncached_input, event.data.tokens.cache_read.gpu, event.data.tokens.output) == (5, 4, 3)
    assert event.data.service_tier is ServiceTier.PRIORITY


def test_hops_follow_time_and_the_nearest_request_above_is_the_parent() -> None:
    # agent(1) > chat(2) > tool(3) > embeddings(4); agent(1) > chat(5)
    turn = [
        span(5, parent=1, start=9),
        span(4, "embeddings", parent=3, start=4),
        span(3, "execute_tool", parent=2, start=3),
        span(2, parent=1, start=2),
        span(1, "invoke_agent", start=1),
    ]
    first, inner, last = read(*turn).events
    assert [event.data.hop for event in (first, inner, last)] == [0, 1, 2]
    assert inner.data.attributes["parent_request_id"] == first.data.request_id
    assert "parent_request_id" not in first.data.attributes | last.data.attributes
    assert {event.data.root_request_id for event in (first, inner, last)} == {TRACE}


def test_hops_go_on_when_a_trace_is_exported_in_pieces_and_a_retry_says_the_same() -> None:
    turns = Turns()
    once = read(span(1), turns=turns).events + read(span(2), turns=turns).events
    assert [event.data.hop for event in once] == [0, 1]
    assert read(span(1), span(2), turns=turns).events == once


def test_hops_and_the_root_can_be_stated() -> None:
    event = only(read(span(1, taximeter__hop=3, taximeter__attempt=1, taximeter__root_request_id="turn-7")))
    assert (event.data.hop, event.data.attempt, event.data.root_request_id) == (3, 1, "turn-7")


def test_two_spans_about_one_request_count_once_also_in_two_exports() -> None:
    outer, inner = (span(number, gen_ai__response__id="chatcmpl-1", start=number) for number in (1, 2))
    detailed = replace(inner, attributes={**inner.attributes, "gen_ai.usage.cache_read.input_tokens": 60})
    reading = read(outer, detailed)
    assert only(reading).data.tokens.cache_read.provider == 60
    assert reading.repeated == 1
    turns = Turns()
    assert len(read(outer, turns=turns).events) == 1
    assert read(detailed, turns=turns).repeated == 1
    assert len(read(outer, turns=turns).events) == 1  # a retry of the one that counts
    other = replace(inner, attributes={**inner.attributes, "gen_ai.usage.output_tokens": 21})
    assert len(read(outer, other).events) == 2  # a server that gives one id to all: the counts tell them apart


def test_a_ring_of_parents_ends() -> None:
    assert (
        len(read(span(1, parent=2), span(2, "execute_tool", parent=3), span(3, "execute_tool", parent=2)).events) == 1
    )


def test_turns_are_bounded() -> None:
    turns = Turns(traces_max=2)
    assert [turns.hop("a", "1"), turns.hop("a", "2"), turns.hop("b", "1"), turns.hop("c", "1")] == [0, 1, 0, 0]
    assert turns.hop("a", "2") == 0  # forgotten
    few = Turns(spans_max=3)
    assert [few.hop("a", "1"), few.hop("a", "2"), few.hop("b", "1"), few.hop("b", "2"), few.hop("a", "2")] == [
        0,
        1,
        0,
        1,
        0,
    ]
    for number in range(HOP_MAX + 5):
        assert turns.hop("c", f"s{number}") == min(number + 1, HOP_MAX)
        assert turns.counts("c", number, "x")
    assert turns.counts("c", "one too many", "x") and turns.counts("c", "one too many", "y")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"7", b"[]", b"\xff", b'{"resourceSpans": 1}', b"[" * 100_000,
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"endTimeUnixNano": "soon"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"key": "a", "value": {"intValue": "x"}}]}]}]}]}',
    ],
)  # fmt: skip
def test_json_that_is_no_trace_request(body: bytes) -> None:
    with pytest.raises(SpanError, match="not a trace request of OTLP/JSON"):
        spans_from_json(body)


def test_protobuf_that_is_no_trace_request() -> None:
    with pytest.raises(SpanError, match="not a trace request of OTLP"):
        spans_from_protobuf(b"\xff\xff\xff")
    assert spans_from_protobuf(b"") == []


def test_every_kind_of_attribute_is_read() -> None:
    values = [
        {"stringValue": "a"}, {"boolValue": False}, {"intValue": "-7"}, {"intValue": 7}, {"doubleValue": 1.5},
        {"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": "1"}]}}, {"kvlistValue": {"values": []}}, {}, None,
    ]  # fmt: skip
    attributes = [{"key": str(number), "value": value} for number, value in enumerate(values)]
    body = {
        "resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": attributes, "status": {"code": 2}, "new": 1}]}]}]
    }
    (only_span,) = spans_from_json(json.dumps(body).encode())
    assert list(only_span.attributes.values()) == ["a", False, -7, 7, 1.5, ("a", 1), None, None, None]
    assert only_span.failed


def test_a_status_in_protobuf_reads_back() -> None:
    for length in (0, 1, 127, 128, 1_999, 5_000):
        status = status_in_protobuf("x" * length)
        assert status[:2] == b"\x08\x03"
        # A varint of two bytes before the text.
        assert (status[3] & 0x7F) + (status[4] << 7) == len(status) - 5 == min(length, 2_000)


attribute_values = st.none() | st.text(max_size=9) | st.booleans() | st.integers(-3, 300) | st.floats() | st.integers()
names = st.sampled_from(
    [*USAGE, "gen_ai.operation.name", "gen_ai.request.model", "gen_ai.usage.cache_read.input_tokens", "error.type",
     "gen_ai.response.id", "gen_ai.response.finish_reasons", "gen_ai.response.time_to_first_chunk", "taximeter.hop",
     "taximeter.tenant", "gen_ai.conversation.id", "anthropic.usage.cache_creation.ephemeral_1h_input_tokens"]
)  # fmt: skip


@given(st.lists(st.dictionaries(names, attribute_values, max_size=9), max_size=4), st.booleans())
@settings(max_examples=100)
def test_whatever_a_span_says_every_span_is_accounted_for(said: list[dict[str, Any]], failed: bool) -> None:
    spans = [
        replace(span(number + 1), failed=failed, attributes={**span(1).attributes, **attributes})
        for number, attributes in enumerate(said)
    ]
    reading = read(*spans)
    assert len(reading.events) + len(reading.rejected) + reading.ignored + reading.repeated == len(spans)
    for event in reading.events:
        encode_event(event)
