"""Where requests that are in no hurry wait until their budget has room again. Pure, but for the events they wait on.

The room is bounded, and fair between tenants: when it is full, a newcomer takes the place of the newest request of the
tenant that holds the most, unless that would be its own. Requests of one scope go in the order in which they came.
"""

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field


class QueueFullError(Exception):
    """There is no place for another request of this tenant."""


class DisplacedError(Exception):
    """A tenant with fewer requests waiting needed the place."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A place in the room. `news` is set when it is worth trying: it has come to the front, or its budgets have changed."""

    tenant: str
    line: Hashable
    news: asyncio.Event = field(default_factory=asyncio.Event)
    displaced: bool = False


class WaitingRoom:
    """All requests of one gateway that wait, at most `places`, and `tenant_places` of one tenant."""

    def __init__(self, places: int, tenant_places: int) -> None:
        self._places = places
        self._tenant_places = tenant_places
        self._lines: dict[Hashable, deque[Ticket]] = {}
        self._of_tenant: dict[str, list[Ticket]] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    def enter(self, tenant: str, line: Hashable) -> Ticket:
        """Take a place at the end of that line. Raises QueueFullError."""
        held = self._of_tenant.get(tenant, [])
        if len(held) >= self._tenant_places:
            raise QueueFullError
        if self._count >= self._places:
            largest = max(self._of_tenant.values(), key=len, default=[])
            if len(largest) <= len(held) + 1:
                raise QueueFullError
            newest = largest[-1]
            newest.displaced = True
            newest.news.set()
            self.leave(newest)
        ticket = Ticket(tenant, line)
        self._of_tenant.setdefault(tenant, []).append(ticket)
        self._lines.setdefault(line, deque()).append(ticket)
        self._count += 1
        return ticket

    def is_first(self, ticket: Ticket) -> bool:
        """Whether it is this request's turn to try. Raises DisplacedError."""
        if ticket.displaced:
            raise DisplacedError
        return self._lines[ticket.line][0] is ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the place up: admitted, out of time, or gone. The next in line may try. Leaving twice does nothing."""
        line = self._lines.get(ticket.line)
        if line is None or ticket not in line:
            return
        line.remove(ticket)
        self._of_tenant[ticket.tenant].remove(ticket)
        self._count -= 1
        if line:
            line[0].news.set()
        else:
            del self._lines[ticket.line]
        if not self._of_tenant[ticket.tenant]:
            del self._of_tenant[ticket.tenant]

    def tell(self, tenant: str) -> None:
        """The tenant's budgets have changed: whoever is first in one of its lines tries again."""
        for ticket in self._of_tenant.get(tenant, ()):
            ticket.news.set()
