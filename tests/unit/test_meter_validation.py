"""What the meter accepts, and the reason for each refusal."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taximeter_schemas.rejections import EVENT_BYTES_MAX, RejectionReason
from taximeter_streams.meter.validation import examine
from tests.usage_events import usage

TIME = datetime(2026, 11, 24, 8, tzinfo=UTC)  # of the event that `usage` makes
TENANTS = {"acme"}
TOKENS = {"uncached_input": 3, "output": 2}


def without(tag: str) -> dict[str, Any]:
    event = usage("a")
    del event["data"][tag]
    return event


def examined(payload: bytes, arrived_at: datetime = TIME) -> tuple[bool, RejectionReason | None]:
    """Whether it was decoded, and why it is refused."""
    event, rejection = examine(payload, int(arrived_at.timestamp() * 1000), TENANTS)
    return event is not None, rejection.reason if rejection else None


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", RejectionReason.MALFORMED_JSON),  # a tombstone
        (b"{", RejectionReason.MALFORMED_JSON),
        (b"\xff\xfe", RejectionReason.MALFORMED_JSON),
        (b'{"id": "\xff"}', RejectionReason.MALFORMED_JSON),  # not UTF-8 within a string
        (b'{"x":' + b"[" * 100_000, RejectionReason.MALFORMED_JSON),  # deeper than any parser goes
        (b"[]", RejectionReason.INVALID_EVENT),
        (b"{}", RejectionReason.INVALID_EVENT),
        (usage("a", hop=-1), RejectionReason.INVALID_EVENT),
        (usage("a", invented=1), RejectionReason.INVALID_EVENT),
        (usage("a", tokens={"output": -1}), RejectionReason.ABSURD_TOKENS),
        (usage("a", tokens={"output": 1.5}), RejectionReason.INVALID_EVENT),
        (usage("a") | {"id": ""}, RejectionReason.INVALID_EVENT),
        (usage("a") | {"time": "2026-11-24T08:00:00"}, RejectionReason.INVALID_EVENT),  # no offset
        (usage("a") | {"specversion": "0.3"}, RejectionReason.INVALID_EVENT),
        (without("tenant"), RejectionReason.MISSING_TAG),
        (without("feature"), RejectionReason.MISSING_TAG),
        (without("model"), RejectionReason.MISSING_TAG),
        (usage("a", tenant=""), RejectionReason.MISSING_TAG),
        (usage("a", feature=None), RejectionReason.MISSING_TAG),
        (without("tokens"), RejectionReason.INVALID_EVENT),  # a field, but no tag
        (usage("a", tokens={"output": 100_000_001}), RejectionReason.ABSURD_TOKENS),
        (usage("a", tokens={"cache_read": {"gpu": 10**12}}), RejectionReason.ABSURD_TOKENS),
        (usage("a", tokens={"output": 10**30}), RejectionReason.ABSURD_TOKENS),  # larger than any machine word
        (usage("a", tokens=TOKENS | {"reasoning": 3}), RejectionReason.INCONSISTENT),  # more than the output
        (usage("a", tokens=TOKENS | {"total": 6}), RejectionReason.INCONSISTENT),
        (usage("a") | {"subject": "globex"}, RejectionReason.INCONSISTENT),
        (b"{" + b" " * EVENT_BYTES_MAX, RejectionReason.TOO_LARGE),  # refused unread
    ],
)
def test_what_cannot_be_decoded_has_a_reason(payload: bytes | dict[str, Any], reason: RejectionReason) -> None:
    encoded = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    assert examined(encoded) == (False, reason)


@pytest.mark.parametrize(
    ("event", "arrived_at", "reason"),
    [
        (usage("a"), TIME, None),
        (usage("a", tokens=TOKENS | {"reasoning": 2, "total": 5}), TIME, None),
        (usage("a") | {"traceparent": "00-1-2-3"}, TIME, None),  # an extension of the envelope
        (usage("a", tenant="nobody"), TIME, RejectionReason.UNKNOWN_TENANT),
        (usage("a"), TIME + timedelta(days=35), None),  # the oldest that counts
        (usage("a"), TIME + timedelta(days=35, milliseconds=1), RejectionReason.TIME_OUT_OF_RANGE),
        (usage("a"), TIME - timedelta(days=1), None),  # the furthest ahead
        (usage("a"), TIME - timedelta(days=1, milliseconds=1), RejectionReason.TIME_OUT_OF_RANGE),
    ],
)
def test_what_is_decoded_is_judged_by_tenant_and_time(
    event: dict[str, Any], arrived_at: datetime, reason: RejectionReason | None
) -> None:
    assert examined(json.dumps(event).encode(), arrived_at) == (True, reason)
