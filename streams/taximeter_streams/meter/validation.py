"""What the meter accepts: decodes one message and names the reason when it does not count. Pure."""

import re
from collections.abc import Container
from dataclasses import dataclass

from taximeter_schemas import late_ratings, wire
from taximeter_schemas.rejections import (
    EVENT_AGE_SECONDS_MAX,
    EVENT_BYTES_MAX,
    EVENT_FUTURE_SECONDS_MAX,
    RejectionReason,
)

_MISSING_TAG = re.compile(r"missing required field `(tenant|feature|model)`|at `\$\.data\.(tenant|feature|model)`")
_ABSURD = re.compile(
    r"Expected `int` (?:<|>)=? ?.*at `\$\.data\.tokens|[Ii]nteger value out of range.*|Number out of range.*"
)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a message does not count."""

    reason: RejectionReason
    detail: str


def examine(
    payload: bytes, arrived_at_ms: int, tenants: Container[str]
) -> tuple[wire.UsageEvent | None, Rejection | None]:
    """The decoded event, and the reason when it is refused (a refused event may be decoded all the same).

    The event's own time is judged against its arrival, so that a replay years later decides alike.
    """
    if len(payload) > EVENT_BYTES_MAX:
        return None, Rejection(RejectionReason.TOO_LARGE, f"{len(payload)} bytes; at most {EVENT_BYTES_MAX}")
    try:
        event = wire.decode(payload)
    except wire.WireError as error:
        # What was counted long ago may be rated now, so a late rating has no age.
        late = late_ratings.decode(payload)
        return (late, None) if late else (None, Rejection(_reason(error), str(error)))
    tenant = event.data.tenant
    if tenant not in tenants:
        return event, Rejection(RejectionReason.UNKNOWN_TENANT, f"no tenant is called {tenant!r}")
    age_seconds = arrived_at_ms / 1000 - event.time.timestamp()
    if age_seconds > EVENT_AGE_SECONDS_MAX:
        return event, Rejection(RejectionReason.TIME_OUT_OF_RANGE, f"{age_seconds:.0f} s old")
    if -age_seconds > EVENT_FUTURE_SECONDS_MAX:
        return event, Rejection(RejectionReason.TIME_OUT_OF_RANGE, f"{-age_seconds:.0f} s ahead")
    return event, None


def _reason(error: wire.WireError) -> RejectionReason:
    if error.kind == "malformed":
        return RejectionReason.MALFORMED_JSON
    if error.kind == "inconsistent":
        return RejectionReason.INCONSISTENT
    if _MISSING_TAG.search(str(error)):
        return RejectionReason.MISSING_TAG
    if _ABSURD.search(str(error)):
        return RejectionReason.ABSURD_TOKENS
    return RejectionReason.INVALID_EVENT
