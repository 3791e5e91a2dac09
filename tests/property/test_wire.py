"""The hot path's decoder and the pydantic model accept and reject the same bytes."""

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from taximeter_schemas import UsageEvent, wire

TAGS = st.sampled_from(["acme", "a", "A.b:c/d@e+f-g_h", "", "-x", "é", "acme\n", "x" * 128, "x" * 129, " a"])
NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.integers(-2, 12),
    st.sampled_from([10**8, 10**8 + 1, 2**63, 2**64, -(2**63), 10**30]),
    st.sampled_from([0.0, 1.0, 1.5, -0.0, 1e3, 1e400]),
    st.sampled_from([True, False, None, "5", [], {}]),
)
MEASURES = st.one_of(NUMBERS, st.floats(allow_nan=False, allow_infinity=False))
TIMES = st.sampled_from(
    [
        "2026-11-24T08:00:00Z",
        "2026-11-24T08:00:00.123456789+01:00",
        "2026-11-24t08:00:00z",
        "2026-11-24 08:00:00Z",
        "2026-11-24T08:00:00",
        "2026-11-24T08:00Z",
        "2026-11-24",
        "2026-02-29T08:00:00Z",
        "2026-11-24T24:00:00Z",
        "2026-11-24T23:59:60Z",
        "2026-11-24T08:00:00+23:59",
        "0001-01-01T00:00:00+10:00",
        "9999-12-31T23:59:59-10:00",
        "1764000000",
        "",
        1764000000,
        None,
    ]
)


def some(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with any of the fields, and now and then one that nobody knows."""
    return st.fixed_dictionaries({}, optional={**fields, "surprise": st.just(1)})


def mostly(fields: dict[str, st.SearchStrategy[Any]], good: Any) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(good), some(fields), st.sampled_from([None, [], "x", 3]))


TOKENS = mostly(
    {
        "uncached_input": NUMBERS,
        "cache_read": mostly(dict.fromkeys(("gpu", "cpu", "disk", "provider"), NUMBERS), {"gpu": 4}),
        "cache_write": mostly({"5m": NUMBERS, "1h": NUMBERS, "five_minutes": NUMBERS}, {"5m": 1}),
        "output": NUMBERS,
        "reasoning": NUMBERS,
        "total": NUMBERS,
    },
    {"uncached_input": 3, "output": 2},
)
HASHES = st.sampled_from(["0123456789abcdef", "0123456789ABCDEF", "01", "0123456789abcdef\n", 7])
CACHE = mostly(
    {
        "pool": TAGS,
        "block_size": NUMBERS,
        "hit_blocks": NUMBERS,
        "blocks": st.lists(HASHES, max_size=3),
        "attribution": st.sampled_from(["engine", "none", "guess", None]),
    },
    {},
)
DATA = st.fixed_dictionaries(
    {"tenant": TAGS, "feature": TAGS, "model": TAGS, "tokens": TOKENS},
    optional={
        "adapter": st.one_of(TAGS, st.none()),
        "operation": st.sampled_from(["chat", "guess", None, 1]),
        "outcome": st.sampled_from(["completed", "aborted", "lost"]),
        "service_tier": st.sampled_from(["batch", "gold"]),
        "request_id": st.sampled_from(["r-1", "", "a b", None]),
        "hop": NUMBERS,
        "cache": CACHE,
        "timing": mostly({"queue_ms": MEASURES, "total_ms": MEASURES}, {"ttft_ms": 1}),
        "worker": mostly({"id": st.just("w"), "sequence": NUMBERS, "gpu_seconds": MEASURES}, {"id": "w"}),
        "attributes": st.one_of(
            st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
            st.sampled_from([{"k": 1}, {"k" * 65: "v"}, {str(n): "" for n in range(33)}, None]),
        ),
    },
)
EVENTS = st.fixed_dictionaries(
    {"id": st.sampled_from(["e1", "", "a b", "x" * 257]), "source": st.just("svc"), "time": TIMES, "data": DATA},
    optional={
        "specversion": st.sampled_from(["1.0", "0.3", 1.0]),
        "type": st.sampled_from(["taximeter.usage.v1", "other"]),
        "subject": st.one_of(TAGS, st.none()),
        "datacontenttype": st.sampled_from(["application/json", "text/plain", None]),
        "extension": st.just("tolerated"),
    },
)


def accepted_by_pydantic(payload: bytes) -> UsageEvent | None:
    try:
        return UsageEvent.model_validate_json(payload)
    except ValidationError:
        return None


def accepted_by_msgspec(payload: bytes) -> wire.UsageEvent | None:
    try:
        return wire.decode(payload)
    except wire.WireError:
        return None


def assert_same(payload: bytes) -> None:
    seen, fast = accepted_by_pydantic(payload), accepted_by_msgspec(payload)
    assert (seen is None) == (fast is None), payload
    if seen is None or fast is None:
        return
    assert seen.identity == fast.identity
    assert seen.time == fast.time
    # What a producer writes from the model is, to the hot path, the very same body.
    again = wire.decode(seen.to_json())
    assert wire.body_hash(again) == wire.body_hash(fast)
    assert wire.identity_hash(again) == wire.identity_hash(fast)


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_both_decoders_agree_on_structured_events(event: dict[str, Any]) -> None:
    assert_same(json.dumps(event).encode())


TAGGED = {"tenant": "t", "feature": "f", "model": "m", "tokens": {}}
GOOD = json.dumps({"id": "e1", "source": "svc", "time": "2026-11-24T08:00:00Z", "data": TAGGED}).encode()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=2))
@example(0, b"\xef\xbb\xbf")
@example(len(GOOD) - 1, b"}\x00")
@example(9, b"\xff")
@example(9, b"\\ud800")
def test_both_decoders_agree_on_damaged_bytes(position: int, damage: bytes) -> None:
    assert_same(GOOD[:position] + damage + GOOD[position + 1 :])


def test_the_generator_reaches_both_sides() -> None:
    assert accepted_by_pydantic(GOOD) is not None
    assert accepted_by_msgspec(GOOD) is not None


def test_the_time_is_not_part_of_the_body() -> None:
    first, second = (json.loads(GOOD) | {"time": f"2026-11-24T0{hour}:00:00Z"} for hour in (1, 2))
    hashes = {wire.body_hash(wire.decode(json.dumps(event).encode())) for event in (first, second)}
    assert len(hashes) == 1


def test_who_carried_an_event_is_not_part_of_its_body() -> None:
    workers = [None, {"id": "svc:a", "sequence": 7}, {"id": "svc:b", "sequence": 0}]
    events = [json.loads(GOOD) | {"data": TAGGED | ({"worker": worker} if worker else {})} for worker in workers]
    hashes = {wire.body_hash(wire.decode(json.dumps(event).encode())) for event in events}
    assert len(hashes) == 1
    measured = json.loads(GOOD) | {"data": TAGGED | {"worker": {"id": "svc:a", "gpu_seconds": 1.5}}}
    assert wire.body_hash(wire.decode(json.dumps(measured).encode())) not in hashes
