"""Takes raw events: validates each, hands the good ones to the producer, and says what became of each once it is safe."""

import asyncio
from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ValidationError

from taximeter_producers.errors import UndeliverableError
from taximeter_producers.ingest.bodies import event_id
from taximeter_producers.ingest.recent import RecentEvents, mark_of
from taximeter_producers.producer import UsageProducer, describe
from taximeter_producers.tracing import traceparent_within
from taximeter_schemas import UsageEvent, wire


class Status(StrEnum):
    """What became of an event. A duplicate is a success: the very same event was taken before."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    INVALID = "invalid"


class Result(BaseModel):
    """The answer for one event, in the order of the request. `error` says why it is invalid."""

    id: str | None
    status: Status
    error: str | None = None


class Intake:
    """Stands between HTTP and the producer."""

    def __init__(self, producer: UsageProducer, event_bytes_max: int) -> None:
        self._producer = producer
        self._event_bytes_max = event_bytes_max
        self._recent = RecentEvents()

    async def take(self, raw_events: Sequence[bytes]) -> list[Result]:
        """One result an event, when all good ones are on the broker or in the spool.

        Raises SpoolError (SpoolFullError) and ProducerClosedError; some events may have been taken then, and the same
        request may be sent again.
        """
        outcomes = await asyncio.gather(*(self._take_one(raw) for raw in raw_events), return_exceptions=True)
        results = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            results.append(outcome)
        return results

    async def _take_one(self, raw: bytes) -> Result:
        if len(raw) > self._event_bytes_max:
            return _invalid(raw, f"the event has {len(raw)} bytes; {self._event_bytes_max} is the limit")
        try:
            event = UsageEvent.model_validate_json(raw)
        except ValidationError as error:
            return _invalid(raw, describe(error))
        mark = mark_of(wire.decode(raw))
        if self._recent.holds(mark):
            return Result(id=event.id, status=Status.DUPLICATE)
        try:
            await self._producer.emit_async(event, traceparent=traceparent_within(raw))
        except UndeliverableError as error:
            return _invalid(raw, str(error))
        self._recent.add(mark)
        return Result(id=event.id, status=Status.ACCEPTED)


def status_of(results: Sequence[Result]) -> int:
    """202 when every event was taken, 400 when none was and something is wrong, 200 when there is some of both."""
    invalid = sum(result.status is Status.INVALID for result in results)
    if not invalid:
        return 202
    return 400 if invalid == len(results) else 200


def _invalid(raw: bytes, error: str) -> Result:
    return Result(id=event_id(raw), status=Status.INVALID, error=error)
