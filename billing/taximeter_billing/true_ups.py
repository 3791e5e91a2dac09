"""Usage that came after its invoice: what a period would cost now, less what was invoiced for it, at its own prices.

The period is computed again from all events that are there now, under what was declared when it was invoiced. What is owed
beyond the invoice is a line of the next one; what is owed back is a credit note. A finalized invoice itself never changes.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import CreditNoteRow, InvoiceRow
from taximeter_billing.computing import Computed, Extra, compute, look
from taximeter_billing.declarations.state import Group, State, read_state
from taximeter_billing.domain.adjusting import Adjustment
from taximeter_billing.ledger import instances
from taximeter_billing.warehouse import UsageReader

MONTHS_MAX = 12
"""How many invoiced months before a period are looked at again."""

TRUE_UP = "true_up"


@dataclass(frozen=True, slots=True)
class Billed:
    """What a finalized invoice and everything after it has charged for its period, and over which events."""

    invoice: InvoiceRow
    owed_pico: int
    event_set_hash: str
    pool_event_set_hash: str


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


def billed_before(session: Session, label: str, tenants: Collection[str]) -> list[Billed]:
    """What was finally invoiced for the months before, credit notes and true-ups on other invoices included."""
    rows = [
        row
        for row in session.scalars(select(InvoiceRow).where(InvoiceRow.status == "final").order_by(InvoiceRow.period))
        if row.tenant in tenants
    ]
    documents = {row.number: json.loads(row.document) for row in rows}
    later: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for line in documents[row.number]["lines"]:
            if line.get("kind") == TRUE_UP:
                later[line["receipt"]["detail"]["invoice"]].append(line)
    for note in session.scalars(
        select(CreditNoteRow).where(CreditNoteRow.status == "final").order_by(CreditNoteRow.id)
    ):
        later[note.invoice] += [line for line in json.loads(note.document)["lines"] if line["kind"] == TRUE_UP]
    months = sorted({row.period for row in rows if row.period < label})[-MONTHS_MAX:]
    return [_billed(row, documents[row.number], later[row.number or ""]) for row in rows if row.period in months]


def _billed(row: InvoiceRow, document: Mapping[str, Any], later: Iterable[Mapping[str, Any]]) -> Billed:
    inputs = document["inputs"]
    owed = int(document.get("owed_pico", document["net_pico"]))
    own, pool = inputs["event_set_hash"], inputs["pool_event_set_hash"]
    for line in sorted(later, key=lambda line: str(line["receipt"]["detail"]["seen_until"])):
        owed += int(line["net_pico"])
        own, pool = line["receipt"]["detail"]["event_set_hash"], line["receipt"]["detail"]["pool_event_set_hash"]
    return Billed(row, owed, own, pool)


def _find_in(session: Session, reader: UsageReader, period: str, billed: list[Billed], late: Late) -> None:
    states: dict[datetime, State] = {}
    for one in billed:
        row = one.invoice
        state = states.get(row.drafted_at)
        if state is None:
            state = states[row.drafted_at] = read_state(session, as_of=row.drafted_at)
        group = next((group for group in state.groups() if any(t.id == row.tenant for t in group.tenants)), None)
        if group is None:
            continue
        seen = look(reader, group.tenants, period)
        digest = 0
        for tenant in group.tenants:
            digest ^= seen.sets[tenant.id].digest
        pool = f"{digest:032x}"
        if (seen.sets[row.tenant].hash, pool) == (one.event_set_hash, one.pool_event_set_hash):
            continue
        # The same grants as then, since they cut the period into spans; what they pay is no part of what is owed.
        granted = state.grants.get(row.tenant, [])
        before = seen.periods[row.tenant].end
        extra = Extra({row.tenant: tuple(grant for _, grant in instances(granted, before))})
        computed = compute(reader, state, group, {row.tenant}, seen, extra)
        _note(one, computed, group, seen.sets[row.tenant].hash, pool, str(seen.until(group)), late)


def _note(one: Billed, computed: Computed, group: Group, own: str, pool: str, until: str, late: Late) -> None:
    row = one.invoice
    if (reason := computed.blocked.get(row.tenant)) is not None:
        late.blocked[row.tenant] = f"late usage of {row.period} cannot be computed: {reason}"
        return
    invoice = computed.invoices.get(row.tenant)
    now_owed = invoice.owed_pico if invoice else 0
    delta = now_owed - one.owed_pico
    if not delta:
        return
    detail = {
        "period": row.period,
        "invoice": row.number or "",
        "owed_before_pico": str(one.owed_pico),
        "owed_now_pico": str(now_owed),
        "event_set_hash": own,
        "pool_event_set_hash": pool,
        "seen_until": until,
    }
    line = Adjustment(TRUE_UP, row.number or "", f"late usage of {row.period}, invoice {row.number}", delta, detail)
    (late.charges if delta > 0 else late.refunds)[row.tenant].append(line)
