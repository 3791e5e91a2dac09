"""Parks a tenant's invoicing, for every period, while reconciliation finds something about its usage, and says why.

What is found is kept finding by finding. One that a later look no longer sees is dropped; one that somebody waived, with a
reason, no longer counts; a tenant about whom none stands is free again. Each of these steps is in the audit log.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

from sqlalchemy import ColumnElement, Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import AuditRow, FindingRow, ParkedRow, writing
from taximeter_billing.errors import NotFoundError

EVERY_PERIOD = "*"
"""Stands for the period where a tenant is parked whatever the month."""

FINDINGS_MAX = 500
"""Findings kept for one tenant; more would tell nothing more."""

_SHOWN = 3
_ACTOR = "reconcile"


@dataclass(frozen=True, slots=True)
class Parking:
    """What one look changed: who was parked and why, and who is free again."""

    parked: dict[str, str] = field(default_factory=dict)
    freed: list[str] = field(default_factory=list)


def concerns(period: str) -> ColumnElement[bool]:
    """Whether a parked row holds that period."""
    return ParkedRow.period.in_((period, EVERY_PERIOD))


def held(book: Engine, tenant: str) -> str | None:
    """Why the tenant's invoicing is parked whatever the month, or None."""
    with Session(book) as session:
        row = session.get(ParkedRow, (tenant, EVERY_PERIOD))
        return None if row is None else row.reason


def record_findings(
    book: Engine, findings: Mapping[str, Sequence[str]], now: datetime, *, looked_at: Collection[str] | None = None
) -> Parking:
    """Take what a reconciliation found, by tenant. `looked_at`: the tenants it can speak for, None for all.

    A tenant that it looked at and found nothing about is free again. Doing it twice changes nothing.
    """
    changes = Parking()
    with writing(book) as session:
        known: dict[str, list[FindingRow]] = {tenant: [] for tenant in findings}
        for row in session.scalars(select(FindingRow)):
            if looked_at is None or row.tenant in looked_at or row.tenant in findings:
                known.setdefault(row.tenant, []).append(row)
        for tenant, rows in sorted(known.items()):
            spoken_for = looked_at is None or tenant in looked_at
            standing = _merge(session, tenant, rows, findings.get(tenant, ()), now, drop=spoken_for)
            _settle(session, tenant, standing, now, _ACTOR, changes)
    return changes


def list_findings(book: Engine, tenant: str | None = None) -> list[FindingRow]:
    """What stands, waived findings included, by tenant and time."""
    statement = select(FindingRow).order_by(FindingRow.tenant, FindingRow.found_at, FindingRow.finding)
    with Session(book, expire_on_commit=False) as session:
        return list(session.scalars(statement if tenant is None else statement.where(FindingRow.tenant == tenant)))


def waive(book: Engine, tenant: str, because: str, actor: str, now: datetime) -> list[str]:
    """Let a tenant's invoicing go on in spite of what stands now; what is found later parks it again. Returns what was waived.

    Raises NotFoundError when nothing stands about that tenant.
    """
    with writing(book) as session:
        rows = list(session.scalars(select(FindingRow).where(FindingRow.tenant == tenant)))
        standing = [row for row in rows if row.waived_at is None]
        if not standing:
            raise NotFoundError(f"nothing stands about a tenant called {tenant!r}")
        for row in standing:
            row.waived_at, row.waived_by, row.waived_because = now, actor, because
        waived = [row.finding for row in standing]
        _note(session, now, actor, "waive", tenant, {"findings": waived[:_SHOWN], "because": because})
        _settle(session, tenant, [], now, actor, Parking())
    return waived


def _merge(
    session: Session, tenant: str, rows: list[FindingRow], found: Sequence[str], now: datetime, *, drop: bool
) -> list[str]:
    """Bring the rows to what was found, and return those that count."""
    by_digest = {row.digest: row for row in rows}
    seen = set()
    for text in list(dict.fromkeys(found))[:FINDINGS_MAX]:
        digest = sha256(text.encode()).hexdigest()
        seen.add(digest)
        row = by_digest.get(digest)
        if row is None:
            row = by_digest[digest] = FindingRow(tenant=tenant, digest=digest, finding=text, found_at=now, seen_at=now)
            session.add(row)
        row.seen_at = now
    for digest in [digest for digest in by_digest if drop and digest not in seen]:
        session.delete(by_digest.pop(digest))
    return [row.finding for row in by_digest.values() if row.waived_at is None]


def _settle(session: Session, tenant: str, standing: list[str], now: datetime, actor: str, changes: Parking) -> None:
    parked = session.get(ParkedRow, (tenant, EVERY_PERIOD))
    if not standing:
        if parked is not None:
            session.delete(parked)
            _note(session, now, actor, "unpark", tenant, {})
            changes.freed.append(tenant)
        return
    reason = _reason(standing)
    if parked is None:
        session.add(ParkedRow(tenant=tenant, period=EVERY_PERIOD, reason=reason, parked_at=now))
        _note(session, now, actor, "park", tenant, {"reason": reason})
    else:
        parked.reason = reason
    changes.parked[tenant] = reason


def _reason(standing: list[str]) -> str:
    more = len(standing) - _SHOWN
    rest = f"; and {more} more" if more > 0 else ""
    return f"reconciliation found: {'; '.join(standing[:_SHOWN])}{rest}"


def _note(session: Session, now: datetime, actor: str, action: str, tenant: str, after: dict[str, object]) -> None:
    session.add(AuditRow(at=now, actor=actor, action=action, kind="invoicing", key=tenant, before=None, after=after))
