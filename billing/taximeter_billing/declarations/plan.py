"""What applying would change. Pure: the book's state and the declarations in, a plan out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from taximeter_billing.declarations.declared import Declared
from taximeter_billing.errors import FrozenError
from taximeter_schemas.control import ControlKind
from taximeter_schemas.rate_cards import RateCard

Current = Mapping[tuple[ControlKind, str], dict[str, Any]]

# These stay, whatever the file says now: events were priced with a card, and invoices were paid from a grant; a file holds no
# top-ups.
_PERMANENT = {ControlKind.RATE_CARD, ControlKind.COST_CARD, ControlKind.CREDIT_GRANT, ControlKind.TOP_UP}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to create, change or delete."""

    action: Literal["create", "change", "delete"]
    kind: ControlKind
    key: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @property
    def fields(self) -> list[str]:
        """The names of the fields that differ."""
        before, after = self.before or {}, self.after or {}
        return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes, in the order in which they are applied, and how much stays as it is."""

    changes: tuple[Change, ...]
    unchanged: int

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.changes


def make_plan(current: Current, declared: Iterable[Declared], *, prune: bool = False) -> Plan:
    """Compare. With `prune`, what the file does not hold is deleted, but rate cards, cost cards and grants.

    Raises FrozenError when a published version of a rate card or cache policy differs.
    """
    changes: list[Change] = []
    unchanged = 0
    wanted: set[tuple[ControlKind, str]] = set()
    for thing in declared:
        place = (thing.kind, thing.key)
        wanted.add(place)
        before = current.get(place)
        if before is None:
            changes.append(Change("create", thing.kind, thing.key, None, thing.body))
        elif _same(thing.kind, before, thing.body):
            unchanged += 1
        elif thing.kind in _PERMANENT:
            raise FrozenError(_frozen(thing))
        elif thing.kind is ControlKind.CACHE_POLICY and thing.body["version"] <= before["version"]:
            raise FrozenError(
                f"cache policy {thing.key}@{before['version']} is published and cannot change; declare version"
                f" {before['version'] + 1}"
            )
        else:
            changes.append(Change("change", thing.kind, thing.key, before, thing.body))
    for place, before in current.items() if prune else ():
        if place not in wanted and place[0] not in _PERMANENT:
            changes.append(Change("delete", place[0], place[1], before, None))
    return Plan(tuple(changes), unchanged)


def _frozen(thing: Declared) -> str:
    if thing.kind is ControlKind.CREDIT_GRANT:
        return f"credit {thing.key} is granted and cannot change; declare another grant beside it"
    kind = "cost card" if thing.kind is ControlKind.COST_CARD else "rate card"
    return f"{kind} {thing.key} is published and cannot change; declare a new version of it with a later effective_from"


def _same(kind: ControlKind, before: dict[str, Any], after: dict[str, Any]) -> bool:
    if kind in {ControlKind.RATE_CARD, ControlKind.COST_CARD}:
        # By what they say: when it became known is the book's business, and a field that is new has its default in older rows.
        return RateCard.model_validate(before).sha256 == RateCard.model_validate(after).sha256
    return before == after
