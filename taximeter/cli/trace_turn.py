"""A turn as a tree: one request of a user, and the requests to models that were made for it. Pure.

A hop is a request with its retries and fallbacks (attempts). A hop hangs below the hop whose request its events name as
parent; where none is named, below the turn itself.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class TracedEvent:
    """A row of the query `trace_root`. Amounts are pico-units of `currency`, which is empty without a price."""

    tenant: str
    root_request_id: str
    request_id: str
    hop: int
    attempt: int
    source: str
    event_id: str
    time: datetime
    feature: str
    operation: str
    model: str
    adapter: str
    outcome: str
    disposition: str
    reason: str
    uncached_input: int
    cache_read_gpu: int
    cache_read_cpu: int
    cache_read_disk: int
    cache_read_provider: int
    cache_write_5m: int
    cache_write_1h: int
    output: int
    reasoning: int
    currency: str
    rate_card: str
    list_pico: int
    metered_pico: int
    total_ms: float | None
    parent_request_id: str

    @property
    def is_priced(self) -> bool:
        """Whether it has a price."""
        return self.disposition == "rated"

    @property
    def is_counted(self) -> bool:
        """Whether its tokens count; those of a rejected event do not."""
        return self.disposition != "rejected"

    @property
    def cached(self) -> int:
        """Input tokens read from a cache, whichever it was."""
        return self.cache_read_gpu + self.cache_read_cpu + self.cache_read_disk + self.cache_read_provider

    @property
    def input(self) -> int:
        """All input tokens."""
        return self.uncached_input + self.cached + self.cache_write_5m + self.cache_write_1h


@dataclass(slots=True)
class Hop:
    """A request with its attempts, in their order, and the hops below it."""

    number: int
    events: list[TracedEvent]
    below: list["Hop"] = field(default_factory=list)

    def walk(self) -> Iterator["Hop"]:
        """This hop and all below it."""
        yield self
        for hop in self.below:
            yield from hop.walk()


@dataclass(frozen=True, slots=True)
class Turn:
    """All hops of one turn of one tenant."""

    root_request_id: str
    tenant: str
    hops: tuple[Hop, ...]

    @property
    def events(self) -> list[TracedEvent]:
        """Every event of it, hop by hop."""
        return [event for top in self.hops for hop in top.walk() for event in hop.events]


def turns_of(root_request_id: str, events: Sequence[TracedEvent]) -> list[Turn]:
    """The turns of that name, one for each tenant that has one. Events of another root are left out."""
    by_tenant: dict[str, list[TracedEvent]] = defaultdict(list)
    for event in events:
        if (event.root_request_id or event.request_id) == root_request_id:
            by_tenant[event.tenant].append(event)
    return [Turn(root_request_id, tenant, _tree(found)) for tenant, found in sorted(by_tenant.items())]


def roots_of(request_id: str, events: Sequence[TracedEvent]) -> list[str]:
    """The turns that a request of that id belongs to."""
    return sorted({event.root_request_id for event in events if event.request_id == request_id} - {""})


def cost_pico(events: Iterable[TracedEvent]) -> dict[str, int]:
    """What the events cost with cache prices, by currency: amounts of different currencies are never added."""
    sums: dict[str, int] = defaultdict(int)
    for event in events:
        if event.is_priced:
            sums[event.currency] += event.metered_pico
    return dict(sorted(sums.items()))


def unpriced(events: Iterable[TracedEvent]) -> int:
    """How many events count and have no price yet."""
    return sum(event.is_counted and not event.is_priced for event in events)


def _tree(events: list[TracedEvent]) -> tuple[Hop, ...]:
    numbered: dict[int, list[TracedEvent]] = defaultdict(list)
    for event in sorted(events, key=lambda one: (one.hop, one.attempt, one.time, one.event_id)):
        numbered[event.hop].append(event)
    hops = {number: Hop(number, found) for number, found in numbered.items()}
    hop_of = {event.request_id: event.hop for event in events if event.request_id}
    tops = []
    for number, hop in sorted(hops.items()):
        above = next((hop_of[one.parent_request_id] for one in hop.events if one.parent_request_id in hop_of), None)
        # A parent came before its children, so a ring cannot be closed.
        if above is not None and above < number:
            hops[above].below.append(hop)
        else:
            tops.append(hop)
    return tuple(tops)
