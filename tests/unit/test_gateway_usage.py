"""What comes back from a model server: usage as disjoint tokens, streams on their way, events."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taximeter_inference.gateway.events import Ending, RequestFacts, build_event
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.gateway.stream import StreamFilter, strip_cache_report
from taximeter_inference.gateway.tags import Tags
from taximeter_inference.gateway.usage import (
    CompletionDetails,
    PromptDetails,
    UpstreamUsage,
    disjoint_tokens,
    read_usage,
)
from taximeter_producers.adapters.disjoint import disjoint_tokens as rule
from taximeter_producers.producer import encode_event
from taximeter_schemas import events
from taximeter_schemas.events import Attribution, Operation, Outcome

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
REPORT = {**USAGE, "taximeter_cache": {"block_size": 4, "hit_blocks": 1, "blocks": ["aa", "bb"]}}


@pytest.mark.parametrize(
    ("usage", "expected"),  # uncached, cached, output, reasoning
    [
        ({"prompt_tokens": 9, "completion_tokens": 2}, (9, 0, 2, 0)),
        (USAGE, (5, 4, 2, 0)),
        ({"prompt_tokens": 9, "completion_tokens": None, "prompt_tokens_details": None}, (9, 0, 0, 0)),
        (
            {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
            (0, 3, 0, 0),
        ),  # more cached than there is
        ({"prompt_tokens": -3, "completion_tokens": -1}, (0, 0, 0, 0)),
        ({"completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 3}}, (0, 0, 5, 3)),
        ({"completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 9}}, (0, 0, 5, 5)),
        ({}, (0, 0, 0, 0)),
    ],
)
def test_usage_becomes_disjoint(usage: dict[str, Any], expected: tuple[int, int, int, int]) -> None:
    read = read_usage(json.dumps(usage).encode())
    assert read is not None
    tokens = disjoint_tokens(read)
    assert (tokens.uncached_input, tokens.cache_read.gpu, tokens.output, tokens.reasoning) == expected


COUNTS = st.integers(0, 1_000)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_usage_becomes_disjoint_by_the_adapters_own_rule(cached: int, more: int, reasoning: int, answer: int) -> None:
    usage = UpstreamUsage(
        prompt_tokens=cached + more,
        completion_tokens=reasoning + answer,
        prompt_tokens_details=PromptDetails(cached_tokens=cached),
        completion_tokens_details=CompletionDetails(reasoning_tokens=reasoning),
    )
    by_rule = rule(cached + more, reasoning + answer, cache_read=events.CacheRead(gpu=cached), reasoning=reasoning)
    assert msgspec.to_builtins(disjoint_tokens(usage)) == by_rule.model_dump(by_alias=True)


@pytest.mark.parametrize("raw", [b"", b"7", b'{"prompt_tokens": "9"}', b'{"prompt_tokens": 1.5}'])
def test_what_is_no_usage(raw: bytes) -> None:
    assert read_usage(raw) is None


def chunk(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


CHUNKS = (
    chunk(choices=[{"delta": {"content": "a"}, "finish_reason": None}], usage=REPORT),
    chunk(choices=[{"delta": {"content": "b"}, "finish_reason": "length"}], usage={**USAGE, "completion_tokens": 3}),
    chunk(choices=[], usage={**REPORT, "completion_tokens": 3}),
    b"data: [DONE]\n\n",
)


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
@pytest.mark.parametrize(
    ("wants", "always", "usages"),
    [(False, False, 0), (True, False, 1), (True, True, 3)],
)
def test_a_stream_keeps_usage_for_who_asked(size: int, wants: bool, always: bool, usages: int) -> None:
    passing = StreamFilter(wants, always)
    data = b": comment\n\n" + b"".join(CHUNKS)
    text = b"".join(passing.feed(data[start : start + size]) for start in range(0, len(data), size))
    events = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: ")]
    assert text.startswith(b": comment\n\n")
    assert b"taximeter_cache" not in text
    assert b"[DONE]" not in text  # held back
    assert sum("usage" in event for event in events) == usages
    assert [choice["delta"]["content"] for event in events for choice in event["choices"]] == ["a", "b"]
    assert (passing.done, passing.finish_reason, passing.failed) == (True, "length", False)
    assert passing.usage is not None
    assert passing.usage.completion_tokens == 3


def test_a_stream_that_breaks_off_keeps_its_last_usage_and_blocks() -> None:
    passing = StreamFilter(False, False)
    passing.feed(b"".join(CHUNKS[:2]) + b'data: {"cho')
    assert passing.usage is not None
    assert passing.usage.completion_tokens == 3
    assert passing.usage.taximeter_cache is not None
    assert passing.usage.taximeter_cache.blocks == ["aa", "bb"]
    assert not passing.done


def test_line_ends_and_errors_of_other_servers() -> None:
    passing = StreamFilter(True, False)
    assert passing.feed(CHUNKS[2].replace(b"\n", b"\r\n"))
    assert passing.feed(chunk(error={"message": "boom"}))
    assert passing.feed(b"data: not json\n\n") == b"data: not json\n\n"
    assert passing.failed


def test_a_whole_answer_loses_the_block_report_only() -> None:
    answer = json.dumps({"choices": [{"text": "taximeter_cache"}], "usage": REPORT}).encode()
    assert json.loads(strip_cache_report(answer)) == {"choices": [{"text": "taximeter_cache"}], "usage": USAGE}
    other = b'{ "usage": null }'
    assert strip_cache_report(other) == other


@pytest.mark.parametrize(
    ("usage", "blocks", "hits", "attribution"),
    [
        (REPORT, 2, 1, Attribution.ENGINE),
        (USAGE, 0, 0, Attribution.INFERRED),  # counts without blocks
        ({"prompt_tokens": 9}, 0, 0, Attribution.NONE),
        ({**USAGE, "taximeter_cache": {"block_size": 4, "hit_blocks": 9, "blocks": ["aa"]}}, 1, 1, Attribution.ENGINE),
        ({**USAGE, "taximeter_cache": {"block_size": 0, "blocks": ["aa"]}}, 0, 0, Attribution.INFERRED),
    ],
)
def test_an_event_carries_what_is_known_of_the_cache(
    usage: dict[str, Any], blocks: int, hits: int, attribution: Attribution
) -> None:
    read = read_usage(json.dumps(usage).encode())
    assert read is not None
    event = build_event(facts(), Ending(Outcome.COMPLETED, read, 12.5), PoolKeys(b"s", "1"), datetime.now(UTC))
    cache = event.data.cache
    assert (len(cache.blocks), cache.hit_blocks, cache.attribution) == (blocks, hits, attribution)
    assert encode_event(event)


def test_an_event_names_its_request_its_root_and_who_counted() -> None:
    ending = Ending(Outcome.ABORTED, UpstreamUsage(prompt_tokens=3), 1.0, counted=True)
    event = build_event(facts(pool="tenant:" + "x" * 128), ending, PoolKeys(b"s", "1"), datetime.now(UTC))
    assert (event.id, event.data.request_id, event.data.root_request_id) == ("g:1:1",) * 3
    assert event.data.attributes == {"taximeter.counted": "gateway"}
    assert (event.data.cache.pool or "").startswith("pool:")  # a name that is too long is hashed
    assert encode_event(event)


def facts(pool: str = "tenant:acme") -> RequestFacts:
    return RequestFacts("g:1:1", "taximeter-gateway/g", "acme", pool, "m", Operation.CHAT, Tags("chat"), "lease")
