"""Usage that came after its invoice: what a period would cost now, less what was invoiced for it, at its own prices.

The period is computed again from all events that are there now, under what was declared when it was invoiced. What is owed
beyond the invoice is a line of the next one; what is owed back is a credit note. A finalized invoice itself never changes.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import CreditNoteRow, InvoiceRow
from taximeter_billing.computing import Extra, compute
from taximeter_billing.declarations.state import Group, State, state_of
from taximeter_billing.domain.adjusting import Adjustment
from taximeter_billing.ledger import instances
from taximeter_billing.seeing import Seen, look
from taximeter_billing.warehouse import ANY_TIME, UsageReader
from taximeter_schemas.tenants import Tenant

TRUE_UP = "true_up"
_ANY = datetime.max.replace(tzinfo=UTC)


Sets = tuple[str, str, str]
"""The hashes of what a period was computed from: the tenant's events, its pool's, and those that say how long blocks were kept
(empty where keeping them has no price)."""
_SETS = ("event_set_hash", "pool_event_set_hash", "storage_event_set_hash")


@dataclass(frozen=True, slots=True)
class Billed:
    """What a finalized invoice and everything after it has charged for its period, and over which events.

    `revised`: something after it was charged beside an invoice that was voided since, so the sum may be off with no new event.
    """

    invoice: InvoiceRow
    owed_pico: int
    sets: Sets
    revised: bool = False


@dataclass(frozen=True, slots=True)
class Late:
    """By tenant: lines that its next invoice carries, and lines that it is owed back (amounts below 0)."""

    charges: dict[str, list[Adjustment]] = field(default_factory=lambda: defaultdict(list))
    refunds: dict[str, list[Adjustment]] = field(default_factory=lambda: defaultdict(list))
    blocked: dict[str, str] = field(default_factory=dict)


def find_late(book: Engine, reader: UsageReader, label: str, tenants: Collection[str]) -> Late:
    """Look again at the invoiced months before `label`."""
    late = Late()
    with Session(book, expire_on_commit=False) as session:
        billed = billed_before(session, label, tenants)
        for period in sorted({one.invoice.period for one in billed}):
            of_period = [one for one in billed if one.invoice.period == period]
            _find_in(session, reader, period, of_period, late)
    return late


def first_month(label: str) -> str:
    """The earliest month whose late usage is looked for: a year back. What lies before is settled for good."""
    return f"{int(label[:4]) - 1}{label[4:]}"


def billed_before(session: Session, label: str, tenants: Collection[str]) -> list[Billed]:
    """What was finally invoiced for the months before, credit notes and true-ups on other invoices included."""
    statement = select(InvoiceRow).where(InvoiceRow.status == "final", InvoiceRow.period >= first_month(label))
    rows = [row for row in session.scalars(statement.order_by(InvoiceRow.period)) if row.tenant in tenants]
    documents = {row.number: json.loads(row.document) for row in rows}
    later: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    said = [(row.tenant, documents[row.number]["lines"]) for row in rows]
    notes = select(CreditNoteRow).where(CreditNoteRow.status == "final").order_by(CreditNoteRow.id)
    said += [(note.tenant, json.loads(note.document)["lines"]) for note in session.scalars(notes)]
    for tenant, lines in said:
        for line in lines:
            if line.get("kind") == TRUE_UP:
                later[tenant, line["receipt"]["detail"]["period"]].append(line)
    return [_billed(row, documents[row.number], later[row.tenant, row.period]) for row in rows if row.period < label]


def _billed(row: InvoiceRow, document: Mapping[str, Any], later: list[dict[str, Any]]) -> Billed:
    inputs = document["inputs"]
    owed = int(document.get("owed_pico", document["net_pico"]))
    sets = _sets(inputs)
    for line in sorted(later, key=lambda line: str(line["receipt"]["detail"]["seen_until"])):
        owed += int(line["net_pico"])
        sets = _sets(line["receipt"]["detail"])
    revised = any(line["receipt"]["detail"]["invoice"] != row.number for line in later)
    return Billed(row, owed, sets, revised)


def _sets(said: Mapping[str, Any]) -> Sets:
    own, pool, stored = (str(said.get(name, "")) for name in _SETS)
    return own, pool, stored


def look_again(session: Session, reader: UsageReader, line: Mapping[str, Any]) -> Adjustment:
    """Derive a true-up line of an invoice again, from the events that were there when it was made."""
    detail = line["receipt"]["detail"]
    number, until = detail["invoice"], datetime.fromisoformat(detail["seen_until"])
    row = session.scalars(select(InvoiceRow).where(InvoiceRow.number == number)).one()
    one = Billed(row, int(detail["owed_before_pico"]), ("", "", ""))
    late = Late()
    state = state_of(session, row)
    group = state.by_tenant().get(row.tenant)
    if group is not None:
        _look_at(one, state, group, reader, until, late)
    found = [*late.charges[row.tenant], *late.refunds[row.tenant]]
    return found[0] if found else Adjustment(TRUE_UP, number, late.blocked.get(row.tenant, "nothing is late"), 0)


def _find_in(session: Session, reader: UsageReader, period: str, billed: list[Billed], late: Late) -> None:
    """Tenants of one period; a query for all of them says which have other events than were billed."""
    states: dict[tuple[int, datetime], tuple[State, dict[str, Group]]] = {}
    tenants: dict[str, Tenant] = {}
    for one in billed:
        made = _made(one.invoice)
        if made not in states:
            state = state_of(session, one.invoice)
            states[made] = (state, state.by_tenant())
        group = states[made][1].get(one.invoice.tenant)
        tenants |= {tenant.id: tenant for tenant in (group.tenants if group else ())}
    cards = {card.name: card for state, _groups in states.values() for card in state.cards}
    seen = look(reader, tenants.values(), period, cards=cards.values())
    for one in billed:
        state, groups = states[_made(one.invoice)]
        group = groups.get(one.invoice.tenant)
        if group is not None and (one.revised or _hashes(seen, group, one.invoice.tenant) != one.sets):
            _look_at(one, state, group, reader, ANY_TIME, late)


def _made(row: InvoiceRow) -> tuple[int, datetime]:
    """Invoices with the same were computed from the same declarations."""
    return row.declared_through, row.drafted_at if not row.declared_through else _ANY


def _hashes(seen: Seen, group: Group, tenant: str) -> Sets:
    return seen.sets[tenant].hash, seen.pool_set(group)[1], seen.storage_set(group)[1]


def _look_at(one: Billed, state: State, group: Group, reader: UsageReader, until: datetime, late: Late) -> None:
    """What the period would cost with all events that were inserted until then."""
    row = one.invoice
    seen = look(reader, group.tenants, row.period, until, cards=state.cards)
    # The same grants as then, since they cut the period into spans; what they pay is no part of what is owed.
    granted = instances(state.grants.get(row.tenant, []), seen.periods[row.tenant].end)
    extra = Extra({row.tenant: tuple(grant for _, grant in granted)})
    computed = compute(reader, state, group, {row.tenant}, seen, extra)
    if (reason := computed.blocked.get(row.tenant)) is not None:
        late.blocked[row.tenant] = f"late usage of {row.period} cannot be computed: {reason}"
        return
    invoice = computed.invoices.get(row.tenant)
    now_owed = invoice.owed_pico if invoice else 0
    delta = now_owed - one.owed_pico
    if not delta:
        return
    sets = dict(zip(_SETS, _hashes(seen, group, row.tenant), strict=True))
    newest = seen.until(group)
    detail = {
        "period": row.period,
        "invoice": row.number or "",
        "owed_before_pico": str(one.owed_pico),
        "owed_now_pico": str(now_owed),
        **{name: digest for name, digest in sets.items() if digest},
        "seen_until": (newest or until).astimezone(UTC).isoformat(),
    }
    line = Adjustment(TRUE_UP, row.number or "", f"late usage of {row.period}, invoice {row.number}", delta, detail)
    (late.charges if delta > 0 else late.refunds)[row.tenant].append(line)
