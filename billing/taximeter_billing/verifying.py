"""Derives an invoice again from the raw events and compares the bytes.

The events are those that were there when it was made (by when they were inserted), the declarations those that held then.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter_billing.book import InvoiceRow
from taximeter_billing.computing import Extra, compute
from taximeter_billing.declarations.state import Group, State, state_of
from taximeter_billing.domain.adjusting import Adjustment
from taximeter_billing.domain.credits import Grant
from taximeter_billing.domain.invoice import CODE_VERSION
from taximeter_billing.ledger import instances
from taximeter_billing.lifecycle import find_invoice
from taximeter_billing.seeing import look
from taximeter_billing.true_ups import TRUE_UP, look_again
from taximeter_billing.warehouse import BEFORE_ANY, UsageReader

DIFFERENCES_MAX = 20


@dataclass(frozen=True, slots=True)
class Verification:
    """An invoice, the hash of what it derives to now, and what differs (by place in the document), nothing when it is proven."""

    invoice: InvoiceRow
    events: int
    derived_sha256: str
    differences: list[str]

    @property
    def proven(self) -> bool:
        """Whether the very bytes came out again."""
        return not self.differences


def verify_invoice(book: Engine, reader: UsageReader, reference: str) -> Verification:
    """Verify one invoice. Raises NotFoundError."""
    row = find_invoice(book, reference)
    document = json.loads(row.document)
    inputs = document["inputs"]
    if sha256(row.document.encode()).hexdigest() != row.document_sha256:
        return _differs(row, inputs["events"], "", "the kept document is not what its receipt says")
    if inputs["code_version"] != CODE_VERSION:
        return _differs(row, inputs["events"], "", f"made by rules {inputs['code_version']}; these are {CODE_VERSION}")
    with Session(book, expire_on_commit=False) as session:
        state = state_of(session, row)
        late = [look_again(session, reader, line) for line in document["lines"] if line["kind"] == TRUE_UP]
    group = state.by_tenant().get(row.tenant)
    if group is None:
        return _differs(row, 0, "", f"tenant {row.tenant} was not declared when it was made")
    derived = _derive(reader, state, group, row, inputs, late)
    if not derived.startswith("{"):
        return _differs(row, inputs["events"], "", derived)
    found = list(_differences(document, json.loads(derived), ""))[:DIFFERENCES_MAX] if derived != row.document else []
    return Verification(row, inputs["events"], sha256(derived.encode()).hexdigest(), found)


def _derive(
    reader: UsageReader,
    state: State,
    group: Group,
    row: InvoiceRow,
    inputs: Mapping[str, Any],
    late: list[Adjustment],
) -> str:
    """The document that comes out now, or in words why none does."""
    until = datetime.fromisoformat(inputs["inserted_until"]) if inputs["inserted_until"] else BEFORE_ANY
    seen = look(reader, group.tenants, row.period, until, cards=state.cards)
    begun = instances(state.grants.get(row.tenant, []), seen.periods[row.tenant].end)
    grants = tuple(_with_balance(grant, inputs["grants"]) for _, grant in begun if grant.id in inputs["grants"])
    computed = compute(reader, state, group, {row.tenant}, seen, Extra({row.tenant: grants}, {row.tenant: late}))
    if (reason := computed.blocked.get(row.tenant)) is not None:
        return reason
    invoice = computed.invoices.get(row.tenant)
    return invoice.document if invoice else "{}"


def _with_balance(grant: Grant, balances: Mapping[str, str]) -> Grant:
    return Grant(grant.id, int(balances[grant.id]), grant.priority, grant.kind, grant.effective_at, grant.expires_at)


def _differs(row: InvoiceRow, events: int, digest: str, what: str) -> Verification:
    return Verification(row, events, digest, [what])


def _differences(kept: Any, derived: Any, place: str) -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(derived, dict):
        for name in sorted(kept.keys() | derived.keys()):
            yield from _differences(kept.get(name), derived.get(name), f"{place}.{name}" if place else name)
    elif isinstance(kept, list) and isinstance(derived, list) and len(kept) == len(derived):
        for index, (one, other) in enumerate(zip(kept, derived, strict=True)):
            yield from _differences(one, other, f"{place}[{index}]")
    elif kept != derived:
        yield f"{place}: {_short(kept)} on the invoice, {_short(derived)} derived"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    return "nothing" if value is None else repr(value) if not isinstance(value, dict) else "a mapping"
