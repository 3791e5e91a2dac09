"""Prepaid and promotional credits: which grants pay, in which order. Pure; amounts in pico-units of one currency."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

_NEVER = datetime.max.replace(tzinfo=UTC)
_ALWAYS = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Grant:
    """A sum that a tenant may draw from `effective_at` until `expires_at` (not included; None: it does not expire)."""

    id: str
    balance_pico: int
    priority: int = 50
    kind: Literal["promotional", "paid"] = "paid"
    effective_at: datetime = _ALWAYS
    expires_at: datetime | None = None

    @property
    def turn(self) -> tuple[int, datetime, bool, datetime, str]:
        """Sorts grants in the order in which they pay: low priority number first, then what expires soonest, then
        promotional before paid, then the oldest, then by id."""
        return (self.priority, self.expires_at or _NEVER, self.kind == "paid", self.effective_at, self.id)

    def open_at(self, moment: datetime) -> bool:
        """Whether it may be drawn at that moment."""
        return self.effective_at <= moment < (self.expires_at or _NEVER)


@dataclass(frozen=True, slots=True)
class Draw:
    """What each grant paid (only those that paid), what nobody paid, and the grants as they are afterwards."""

    drawn_pico: dict[str, int]
    unpaid_pico: int
    grants: tuple[Grant, ...]


def draw(grants: Iterable[Grant], amount_pico: int, moment: datetime) -> Draw:
    """Pay an amount from the grants that are open at that moment. What was drawn and what is unpaid add up to it.

    Raises ValueError for a negative amount: a credit note makes a new grant, it does not refill an old one.
    """
    if amount_pico < 0:
        raise ValueError(f"{amount_pico} cannot be drawn")
    drawn: dict[str, int] = {}
    after: list[Grant] = []
    left = amount_pico
    for grant in sorted(grants, key=lambda grant: grant.turn):
        part = min(left, grant.balance_pico) if grant.open_at(moment) else 0
        if part:
            drawn[grant.id] = part
        left -= part
        after.append(replace(grant, balance_pico=grant.balance_pico - part))
    return Draw(drawn, left, tuple(after))
