"""Topic usage.rejected.v1, key event id: what the meter refused to count, why, and the message itself."""

from enum import StrEnum

from pydantic import AwareDatetime, Field

from taximeter_schemas.budgets import Message


class RejectionReason(StrEnum):
    """Why an event was not counted. Each has a test that sends it."""

    MALFORMED_JSON = "malformed_json"
    INVALID_EVENT = "invalid_event"
    MISSING_TAG = "missing_tag"
    ABSURD_TOKENS = "absurd_tokens"
    INCONSISTENT = "inconsistent"
    TOO_LARGE = "too_large"
    UNKNOWN_TENANT = "unknown_tenant"
    TIME_OUT_OF_RANGE = "time_out_of_range"
    CONFLICT = "conflict"


EVENT_BYTES_MAX = 1_000_000
"""A larger message is rejected unread; Kafka's own default limit is about the same."""

EVENT_AGE_SECONDS_MAX = 35 * 86_400
"""Older events are rejected: past this age the dedupe index cannot promise that they count once."""

EVENT_FUTURE_SECONDS_MAX = 86_400
"""Events from further ahead than a day are rejected: a clock is wrong."""


class RejectedEvent(Message):
    """A rejected message: `payload` is its text, or base64 where it is not UTF-8 (`payload_encoding`).

    It is whole unless it would not fit into a record: then `payload_bytes_cut` bytes are missing at its end, and partition
    and offset say where the whole message stands in usage.events.v1.
    """

    reason: RejectionReason
    detail: str
    partition: int
    offset: int
    arrived_at: AwareDatetime
    rejected_at: AwareDatetime
    tenant: str | None = None
    source: str | None = None
    event_id: str | None = None
    payload: str
    payload_encoding: str = "utf-8"
    payload_bytes_cut: int = Field(0, ge=0)
