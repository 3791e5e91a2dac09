"""Applies a plan: the book and its audit log in one transaction, then the control topic.

The records wait in an outbox that is written with the change itself, so a crash in between is repaired by whoever comes next.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from taximeter_billing.book import AuditRow, DeclaredRow, InvoiceRow, OutboxRow, writing
from taximeter_billing.declarations.declared import Declared
from taximeter_billing.declarations.plan import Change, Plan, make_plan
from taximeter_billing.declarations.reading import read_file
from taximeter_billing.errors import FrozenError
from taximeter_schemas.control import ControlKind, ControlRecord

BILLING_ONLY = {ControlKind.PLAN, ControlKind.CONTRACT, ControlKind.CREDIT_GRANT, ControlKind.COST_CARD}
"""Kept in the book and never published: what was agreed, and what things cost us, is nobody else's business."""

_FOR_GOOD = {"currency", "time_zone"}

Publish = Callable[[Iterable[ControlRecord]], int]


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done: the plan, and how many control records the log acknowledged."""

    plan: Plan
    published: int


def plan_file(book: Engine, path: Path, *, prune: bool = False) -> Plan:
    """What applying the file would change. Raises DeclarationError or FrozenError."""
    with Session(book) as session:
        return plan_changes(session, read_file(path), prune=prune)


def plan_changes(session: Session, declared: list[Declared], *, prune: bool = False) -> Plan:
    """What declaring these would change. Raises FrozenError, also for another currency or time zone of a tenant that was
    invoiced: what was agreed is in that currency, and in another zone its months would overlap, or leave hours out."""
    plan = make_plan(current(session), declared, prune=prune)
    moved = {
        change.key: change.after
        for change in plan.changes
        if change.kind is ControlKind.TENANT and change.after and _FOR_GOOD & set(change.fields)
    }
    invoiced = select(InvoiceRow).where(InvoiceRow.status == "final", InvoiceRow.tenant.in_(list(moved)))
    for row in session.scalars(invoiced.order_by(InvoiceRow.id)) if moved else ():
        held = {"currency": row.currency, "time_zone": json.loads(row.document)["period"]["time_zone"]}
        for name, said in held.items():
            if (wanted := moved[row.tenant][name]) != said:
                raise FrozenError(
                    f"tenant {row.tenant} was invoiced ({row.number}) with the {name} {said}, so it cannot become {wanted};"
                    " declare another tenant"
                )
    return plan


def apply_declarations(
    book: Engine, declared: list[Declared], actor: str, now: datetime, publish: Publish, *, prune: bool = False
) -> Applied:
    """Bring the book to what is declared, and tell the log. Doing it again changes nothing. Raises FrozenError."""
    with writing(book) as session:
        plan = plan_changes(session, declared, prune=prune)
        for change in plan.changes:
            record_change(session, change, actor, now)
    return Applied(plan, send_outbox(book, publish))


def current(
    session: Session, as_of: datetime | None = None, through: int | None = None
) -> dict[tuple[ControlKind, str], dict[str, Any]]:
    """What the book holds now: the latest version of everything that was declared and not deleted since.

    Or what it held at a time (`as_of`), or after its first `through` entries.
    """
    latest: dict[tuple[ControlKind, str], dict[str, Any] | None] = {}
    statement = select(DeclaredRow).order_by(DeclaredRow.id)
    if as_of is not None:
        statement = statement.where(DeclaredRow.recorded_at <= as_of)
    if through is not None:
        statement = statement.where(DeclaredRow.id <= through)
    for row in session.scalars(statement):
        if row.kind != ControlKind.API_KEY:
            latest[ControlKind(row.kind), row.key] = row.body
    return {place: body for place, body in latest.items() if body is not None}


def record_change(session: Session, change: Change, actor: str, now: datetime) -> None:
    """Write one change: a new version, a line in the audit log, and the record for the log."""
    last = session.scalar(
        select(DeclaredRow.version)
        .where(DeclaredRow.kind == change.kind, DeclaredRow.key == change.key)
        .order_by(DeclaredRow.version.desc())
        .limit(1)
    )
    after = change.after
    if after is not None and change.kind in {ControlKind.RATE_CARD, ControlKind.COST_CARD}:
        after = {**after, "recorded_at": now.isoformat()}
    session.add(DeclaredRow(kind=change.kind, key=change.key, version=(last or 0) + 1, body=after, recorded_at=now))
    session.add(
        AuditRow(
            at=now,
            actor=actor,
            action=change.action,
            kind=change.kind,
            key=change.key,
            before=change.before,
            after=after,
        )
    )
    if change.kind not in BILLING_ONLY:
        record = ControlRecord(kind=change.kind, id=change.key, body=after, recorded_at=now)
        session.add(OutboxRow(record=record.model_dump_json()))


def send_outbox(book: Engine, publish: Publish) -> int:
    """Publish what waits in the outbox, in order, and empty it of what the log has acknowledged.

    Two processes may send at once. Whichever empties its part second finds rows gone: then older words may lie over newer ones
    in the log, so it says what holds now, until nothing has changed meanwhile.
    """
    with Session(book) as session:
        rows = list(session.scalars(select(OutboxRow).order_by(OutboxRow.id)))
    if not rows:
        return 0
    records = [ControlRecord.model_validate_json(row.record) for row in rows]
    count = publish(records)
    with writing(book) as session:
        gone = session.execute(
            delete(OutboxRow).where(OutboxRow.id.in_([row.id for row in rows])).returning(OutboxRow.id)
        )
        raced = len(gone.all()) < len(rows)
    said: list[ControlRecord] = []
    while raced and (now := _present(book, {record.key for record in records})) != said:
        count += publish(now)
        said = now
    return count


def _present(book: Engine, keys: set[str]) -> list[ControlRecord]:
    return [record for record in _everything(book) if record.key in keys]


def _everything(book: Engine) -> list[ControlRecord]:
    """The last word on everything that was ever declared, deletions included."""
    with Session(book) as session:
        rows = list(session.scalars(select(DeclaredRow).order_by(DeclaredRow.id)))
    latest = {(row.kind, row.key): row for row in rows if row.kind not in BILLING_ONLY}
    return [
        ControlRecord(kind=ControlKind(row.kind), id=row.key, body=row.body, recorded_at=row.recorded_at)
        for row in latest.values()
    ]


def republish(book: Engine, publish: Publish) -> int:
    """Publish everything that the book holds: a log that was emptied knows nothing. Doing it again changes nothing."""
    records = _everything(book)
    return publish(records) if records else 0
