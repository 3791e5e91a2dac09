"""Usage that its own line does not pay for: events that a later event voids, and what a reservation covers. Pure.

Both stay in the line, which is what the raw events say, and are taken back by an adjustment beside it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from graphlib import CycleError, TopologicalSorter

from taximeter_billing.domain.contracts import Reservation
from taximeter_billing.domain.spans import microseconds
from taximeter_billing.domain.usage import UsageRow

MINUTE_US = 60_000_000
VOID = "void"


@dataclass(frozen=True, slots=True)
class Correction:
    """An event that takes another of its source back; one that amends counts in its place."""

    tenant: str
    source: str
    event_id: str
    corrects: str
    amends: bool


def contradiction(corrections: Sequence[Correction]) -> str | None:
    """Why a tenant's corrections cannot all be meant, or None: events that take back themselves in a circle would all be free,
    and of two that stand in the place of one, both would be paid."""
    voided = {(one.source, one.corrects) for one in corrections if not one.amends}
    circle: TopologicalSorter[tuple[str, str]] = TopologicalSorter()
    amended: dict[tuple[str, str], str] = {}
    for one in sorted(corrections, key=lambda one: (one.source, one.event_id)):
        circle.add((one.source, one.event_id), (one.source, one.corrects))
        if not one.amends or (one.source, one.event_id) in voided:
            continue
        if (other := amended.setdefault((one.source, one.corrects), one.event_id)) != one.event_id:
            return f"event {one.corrects} of {one.source} is amended by {other} and by {one.event_id}: void one of them"
    try:
        circle.prepare()
    except CycleError as error:
        names = " > ".join(event for _source, event in error.args[1])
        return f"events of {error.args[1][0][0]} take back themselves: {names}"
    return None


@dataclass(frozen=True, slots=True)
class Reserved:
    """A reservation and the span (microseconds since the epoch) in which it holds."""

    reservation: Reservation
    start_us: int
    end_us: int

    @staticmethod
    def between(reservation: Reservation, start: datetime, end: datetime) -> "Reserved":
        """The reservation from `start` until `end` (not included)."""
        return Reserved(reservation, microseconds(start), microseconds(end))

    @property
    def minutes(self) -> int:
        """Whole minutes, each that was begun."""
        return -(-(self.end_us - self.start_us) // MINUTE_US)


@dataclass(slots=True)
class Takeback:
    """For one tenant; rows come in order of time, since a reservation is used up in that order."""

    voided: Collection[tuple[str, str]] = ()
    """(source, id) of events that were voided or amended by a later event."""
    reserved: tuple[Reserved, ...] = ()
    _minute: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By reservation: the minute that was seen last, and the tokens used in it."""
    met: set[tuple[str, str]] = field(default_factory=set)
    """Of the voided events, those that were there."""

    def of(self, row: UsageRow) -> Iterator[tuple[str, int, int]]:
        """Parts of the row's metered cost to take back, as (what, numerator, denominator) in pico-units."""
        if (row.source, row.event_id) in self.voided:
            self.met.add((row.source, row.event_id))
            yield VOID, row.metered_pico, 1
            return
        if row.service_tier != "provisioned" or not self.reserved:
            return
        tokens = row.input_tokens + row.output
        for held in self.reserved:
            if held.reservation.model != row.model or not held.start_us <= row.time_us < held.end_us or not tokens:
                continue
            minute, used = self._minute.get(held.reservation.id, (-1, 0))
            if minute != row.time_us // MINUTE_US:
                minute, used = row.time_us // MINUTE_US, 0
            fits = min(tokens, held.reservation.capacity - used)
            self._minute[held.reservation.id] = (minute, used + fits)
            if fits:
                yield f"r:{held.reservation.id}", row.metered_pico * fits, tokens
            return
