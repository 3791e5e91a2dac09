"""Folds a batch of messages into the columns of usage_log, one row a message, and into what else must be sent. Pure.

Everything is decided from the arguments: the messages, what is declared, what was counted before. Columns are built as whole
lists, one comprehension each, because a row object per event would cost more than decoding it.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from taximeter_schemas import wire
from taximeter_schemas.late_ratings import RATED_LATER, STILL_UNRATED, LateRating
from taximeter_schemas.rating import Unrated
from taximeter_schemas.rejections import RejectionReason
from taximeter_streams.meter.dedupe import Counted
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.validation import Rejection, examine

ABSENT_IDENTITY = bytes(16)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BLANK = wire.UsageEvent(
    id="-", source="-", time=_EPOCH, data=wire.UsageData(tenant="-", feature="-", model="-", tokens=wire.Tokens())
)


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it came: its offset, when it arrived (ms since the epoch), and its bytes."""

    offset: int
    arrived_at_ms: int
    payload: bytes


@dataclass(slots=True)
class Examined:
    """One message and what became of it."""

    message: Received
    event: wire.UsageEvent | None = None
    identity: bytes = ABSENT_IDENTITY
    body: bytes = ABSENT_IDENTITY
    disposition: str = "rejected"
    reason: str = ""
    detail: str = ""
    list_pico: int = 0
    metered_pico: int = 0
    currency: str = ""
    rate_card: str = ""


@dataclass(slots=True)
class Folded:
    """A batch, folded: rows in offset order."""

    rows: list[Examined] = field(default_factory=list)

    @property
    def rejected(self) -> list[Examined]:
        """The rows to publish to usage.rejected.v1."""
        return [row for row in self.rows if row.disposition == "rejected"]

    def counted(self, log: bytes) -> list[tuple[bytes, Counted]]:
        """The identities to mark once the insert has succeeded."""
        return [
            (row.identity, Counted(row.body, log, row.message.offset))
            for row in self.rows
            if row.disposition in {"rated", "unrated"}
        ]


def examine_all(messages: Sequence[Received], tenants: Container[str]) -> list[Examined]:
    """Decode and validate each message; identities and bodies are hashed for what could be decoded."""
    rows = []
    for message in messages:
        event, rejection = examine(message.payload, message.arrived_at_ms, tenants)
        row = Examined(message, event)
        if event is not None:
            row.identity = wire.identity_hash(event)
            row.body = wire.body_hash(event)
        if rejection is not None:
            _reject(row, rejection)
        else:
            row.disposition = "accepted"
        rows.append(row)
    return rows


def fold(rows: list[Examined], known: Mapping[bytes, Counted], log: bytes, pricing: Pricing) -> Folded:
    """Decide each examined row: duplicate, conflict, rated or unrated. `known` holds what was counted before this batch.

    An identity that was counted at this very offset of this log (`log` names its partition) is the row itself, read again.
    """
    seen: dict[bytes, bytes] = {}
    for row in rows:
        if row.disposition != "accepted" or row.event is None:
            continue
        before = known.get(row.identity)
        itself = before is not None and before.log == log and before.offset == row.message.offset
        counted_body = None if before is None or itself else before.body
        counted_body = counted_body or seen.get(row.identity)
        if counted_body is None:
            seen[row.identity] = row.body
            _rate(row, row.event, pricing)
        elif counted_body == row.body:
            row.disposition = "duplicate"
        else:
            _reject(
                row,
                Rejection(RejectionReason.CONFLICT, "the same tenant, source and id were counted with another body"),
            )
        if type(row.event) is LateRating:
            _settle_late(row)
    return Folded(rows)


def _settle_late(row: Examined) -> None:
    """A late rating rates what was counted without a price, once. Whatever else becomes of it, it is a repetition."""
    if row.disposition == "rated":
        row.reason = RATED_LATER
    else:
        row.reason = STILL_UNRATED if row.disposition == "unrated" else RATED_LATER
        row.disposition, row.detail = "duplicate", ""


def _reject(row: Examined, rejection: Rejection) -> None:
    row.disposition, row.reason, row.detail = "rejected", str(rejection.reason), rejection.detail


def _rate(row: Examined, event: wire.UsageEvent, pricing: Pricing) -> None:
    result = pricing.rate(event)
    if isinstance(result, Unrated):
        row.disposition, row.reason = "unrated", result.reason
        return
    row.disposition = "rated"
    row.list_pico, row.metered_pico = result.list_pico, result.metered_pico
    row.currency, row.rate_card = result.currency, result.rate_card
