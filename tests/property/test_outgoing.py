"""What a producer takes, and writes, is what the hot path's decoder takes, however the event was made."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taximeter_producers import outgoing
from taximeter_producers.errors import InvalidEventError
from taximeter_producers.outgoing import payload_of
from taximeter_schemas import UsageEvent, wire
from tests.property.test_wire import EVENTS, accepted_by_msgspec, accepted_by_pydantic
from tests.usage_events import usage_event

ODD = st.sampled_from(
    ["", "a", "None", "a\nb", "a\n", "\na", "-", "é", "a b", "x" * 128, "x" * 129, "x" * 257, None, 7]
)
EVENT_TEXTS = ("id", "source", "subject")
DATA_TEXTS = ("tenant", "feature", "model", "adapter", "request_id", "root_request_id", "lease_id")


def assert_written(event: UsageEvent | wire.UsageEvent, expected: wire.UsageEvent) -> None:
    """The bytes are the event's, with and without a producer's mark, and say what CloudEvents asks for."""
    payload = payload_of(event)
    read = wire.decode(payload.body)
    assert (payload.key, payload.has_worker) == (expected.id.encode(), expected.data.worker is not None)
    assert (read.time, read.data.worker, read.subject) == (expected.time, expected.data.worker, expected.subject)
    assert (wire.body_hash(read), wire.identity_hash(read)) == (wire.body_hash(expected), wire.identity_hash(expected))
    assert {"specversion", "type", "id", "source"} <= json.loads(payload.body).keys()
    if not payload.has_worker:
        marked = wire.decode(payload.stamped(b"svc:1f9c2b7e", 41))
        assert marked.data.worker == wire.Worker("svc:1f9c2b7e", 41)
        assert wire.body_hash(marked) == wire.body_hash(expected)


def assert_as_decoded(event: UsageEvent | wire.UsageEvent, struct: wire.UsageEvent) -> None:
    """One that was made unchecked is taken or refused as its bytes would be."""
    expected = accepted_by_msgspec(wire.encode(struct))
    if expected is None:
        with pytest.raises(InvalidEventError):
            payload_of(event)
    else:
        assert_written(event, expected)


@settings(max_examples=200, deadline=None)
@given(EVENTS)
def test_what_both_decoders_accept_is_written_as_it_is(event: dict[str, Any]) -> None:
    encoded = json.dumps(event).encode()
    model, struct = accepted_by_pydantic(encoded), accepted_by_msgspec(encoded)
    if model is not None and struct is not None:
        assert_written(model, struct)
        assert_written(struct, struct)


GOOD = usage_event("e1", adapter="a")


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(EVENT_TEXTS), ODD, max_size=2),
    st.dictionaries(st.sampled_from(DATA_TEXTS), ODD, max_size=3),
    st.dictionaries(st.sampled_from(["pool"]), ODD, max_size=1),
    st.sampled_from([[], ["0" * 16], ["0" * 16, "f" * 64], ["F" * 16], ["0" * 15]]),
    st.one_of(st.none(), ODD),
)
def test_a_copy_that_nobody_checked_is_taken_as_its_bytes_would_be(
    envelope: dict[str, Any], data: dict[str, Any], cache: dict[str, Any], blocks: list[str], worker: Any
) -> None:
    struct = wire.from_model(GOOD)
    cached = {**cache, "blocks": blocks}
    mark = None if worker is None else wire.Worker(worker)
    changed = msgspec.structs.replace(
        struct,
        **envelope,
        data=msgspec.structs.replace(
            struct.data, **data, cache=msgspec.structs.replace(struct.data.cache, **cached), worker=mark
        ),
    )
    assert_as_decoded(changed, changed)
    copied_cache = GOOD.data.cache.model_copy(update=cached)
    copied_data = GOOD.data.model_copy(update={**data, "cache": copied_cache, "worker": mark})
    assert_as_decoded(GOOD.model_copy(update={**envelope, "data": copied_data}), changed)


def test_a_plain_event_needs_no_second_look() -> None:
    """Else each would cost three times as much."""
    for event in (GOOD, usage_event("e2", cache={"blocks": ["0" * 16, "f" * 64], "hit_blocks": 1}, worker={"id": "w"})):
        assert outgoing._plain(event) is not None
        assert outgoing._plain(wire.from_model(event)) is not None
