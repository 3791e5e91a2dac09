"""Caps on single root requests: an agent's whole turn, over all its hops and gateways, costs no more than its cap. Pure.

A turn is short, so its cap needs no word from the meter: what gateways settled is spent, what is granted and not given back
counts in full. A gateway that died leaves its slice charged, to that one turn. So charged <= cap holds after every grant,
whatever is lost, and a turn that was not touched for ROOT_KEPT is forgotten.

Turns are many and messages about them small, so they live in buckets: a few to one document, each bounded.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import blake2b

from pydantic import AwareDatetime, Field

from taximeter_schemas.budgets import AmountPico, Budget, LeaseClose, LeaseGrant, LeaseRequest, Message
from taximeter_streams.budgets.ledger import LEASE_REMEMBERED, LeaseTerms, grant_of

BUCKETS = 256
"""Documents that the turns of one tenant are spread over."""
ROOTS_MAX = 500
"""Turns in one bucket; the one that was quiet for longest makes room."""
ROOT_KEPT = timedelta(hours=6)


class RootLease(Message):
    """A slice of a turn's caps, by budget id."""

    granted_pico: dict[str, AmountPico]
    granted_at: AwareDatetime


class Turn(Message):
    """One root request: what is spent under each cap, slices that are out, and when it was last heard of.

    `closed` remembers slices that came back, so that a request that comes twice is not granted twice.
    """

    spent_pico: dict[str, AmountPico] = Field(default_factory=dict)
    leases: dict[str, RootLease] = Field(default_factory=dict)
    closed: dict[str, AwareDatetime] = Field(default_factory=dict)
    touched_at: AwareDatetime

    def charged_pico(self, budget_id: str) -> int:
        """What counts against the cap."""
        out = sum(lease.granted_pico.get(budget_id, 0) for lease in self.leases.values())
        return self.spent_pico.get(budget_id, 0) + out


class RootBucket(Message):
    """Some turns of one tenant, by root request id; the one touched last stands last."""

    tenant: str
    turns: dict[str, Turn] = Field(default_factory=dict)


def bucket_key(tenant: str, root_request_id: str) -> bytes:
    """Where a turn is kept, beside the tenant's own document. No tenant's name holds a zero byte."""
    number = int.from_bytes(blake2b(root_request_id.encode(), digest_size=2).digest()) % BUCKETS
    return f"{tenant}\0roots/{number}".encode()


def request(
    bucket: RootBucket, caps: Sequence[Budget], terms: LeaseTerms, asked: LeaseRequest, now: datetime
) -> tuple[RootBucket, LeaseGrant]:
    """Grant a slice of every named cap, or nothing. Repeating it grants the same again."""
    root = asked.root_request_id or ""
    turn = bucket.turns.get(root) or Turn(touched_at=now)
    known = turn.leases.get(asked.lease_id)
    until = now + terms.lease_timeout
    held_until = until + terms.settle_timeout
    if known is not None:
        granted = grant_of(asked, known.granted_pico, known.granted_at, until, held_until)
        return _with_turn(bucket, root, turn, now), _telling(granted, turn)
    is_stale = asked.lease_id in turn.closed or asked.requested_at + LEASE_REMEMBERED <= now
    amounts = dict.fromkeys(asked.amounts_pico, 0) if is_stale else _slices(turn, caps, terms, asked)
    if not any(amounts.values()):
        return bucket, _telling(grant_of(asked, amounts, now, now, now), turn)
    lease = RootLease(granted_pico=amounts, granted_at=now)
    leased = turn.model_copy(update={"leases": {**turn.leases, asked.lease_id: lease}})
    return _with_turn(bucket, root, leased, now), _telling(grant_of(asked, amounts, now, until, held_until), turn)


def close(bucket: RootBucket, closing: LeaseClose, now: datetime) -> RootBucket:
    """A slice comes back: what it settled is spent, the rest may be granted again."""
    root = closing.root_request_id or ""
    turn = bucket.turns.get(root)
    if turn is None or closing.lease_id not in turn.leases:
        return bucket
    leases = dict(turn.leases)
    lease = leases.pop(closing.lease_id)
    spent = {
        budget_id: turn.spent_pico.get(budget_id, 0) + closing.settled_pico.get(budget_id, 0)
        for budget_id in {**turn.spent_pico, **lease.granted_pico}
    }
    kept = {lease_id: at for lease_id, at in turn.closed.items() if at + LEASE_REMEMBERED > now}
    changed = {"leases": leases, "spent_pico": spent, "closed": {**kept, closing.lease_id: now}}
    return _with_turn(bucket, root, turn.model_copy(update=changed), now)


def _slices(turn: Turn, caps: Sequence[Budget], terms: LeaseTerms, asked: LeaseRequest) -> dict[str, int]:
    declared = {cap.id: cap for cap in caps}
    nothing = dict.fromkeys(asked.amounts_pico, 0)
    amounts = {}
    for budget_id, asked_pico in asked.amounts_pico.items():
        cap = declared.get(budget_id)
        if cap is None:
            return nothing
        left = max(0, cap.limit_pico - turn.charged_pico(budget_id))
        needed_pico = min(asked_pico, asked.needed_pico.get(budget_id, asked_pico))
        amounts[budget_id] = min(asked_pico, left, max(left // terms.slice_divisor, needed_pico))
        if asked_pico and not amounts[budget_id]:
            return nothing
    return amounts


def _telling(grant: LeaseGrant, turn: Turn) -> LeaseGrant:
    spent = {budget_id: turn.spent_pico.get(budget_id, 0) for budget_id in grant.amounts_pico}
    return grant.model_copy(update={"spent_pico": spent})


def _with_turn(bucket: RootBucket, root: str, turn: Turn, now: datetime) -> RootBucket:
    turns = {name: other for name, other in bucket.turns.items() if name != root and other.touched_at + ROOT_KEPT > now}
    turns[root] = turn.model_copy(update={"touched_at": now})
    kept = dict(list(turns.items())[-ROOTS_MAX:])
    return bucket.model_copy(update={"turns": kept})
