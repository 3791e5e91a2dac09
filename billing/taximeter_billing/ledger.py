"""The credit ledger: what was granted, paid and lapsed. Entries are only added, and every transaction sums to zero.

A transaction has a name of its own ("grant:ID", "pay:NUMBER", "note:NUMBER", "void:NUMBER", "lapse:ID"), so that booking it twice
changes nothing. Balances are sums over entries; nothing is stored beside them. What has lapsed may still pay for a month in which
it was open, when that month is invoiced after a later one, or again: then its lapse is taken back ("reopen:NUMBER").
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, time

from sqlalchemy import select
from sqlalchemy.orm import Session

from taximeter_billing.book import CreditEntryRow
from taximeter_billing.domain.anchors import anchored
from taximeter_billing.domain.contracts import CreditGrant
from taximeter_billing.domain.credits import Grant

LAPSED = "lapsed"


def instances(grants: Iterable[CreditGrant], before: datetime) -> Iterator[tuple[CreditGrant, Grant]]:
    """Every grant that has begun by then, with its whole sum; a monthly one once for each of its months ("ID/2026-01-31")."""
    for declared in grants:
        if not declared.monthly:
            if declared.effective_at < before:
                yield declared, _grant(declared, declared.id, declared.effective_at, declared.expires_at)
            continue
        clock = declared.effective_at.astimezone(UTC).timetz()
        days = anchored(declared.effective_at.astimezone(UTC).date())
        begins = (datetime.combine(day, time(clock.hour, clock.minute, clock.second), UTC) for day in days)
        begin = next(begins)
        for following in begins:
            if begin >= before or (declared.expires_at is not None and begin >= declared.expires_at):
                break
            ends = min(following, declared.expires_at) if declared.expires_at else following
            yield declared, _grant(declared, f"{declared.id}/{begin:%Y-%m-%d}", begin, ends)
            begin = following


def _grant(declared: CreditGrant, name: str, begins: datetime, ends: datetime | None) -> Grant:
    return Grant(name, declared.amount_pico, declared.priority, declared.kind, begins, ends)


def post_grants(session: Session, grants: Mapping[str, list[CreditGrant]], before: datetime, now: datetime) -> None:
    """Book every grant that has begun and is not booked yet."""
    booked = set(session.scalars(select(CreditEntryRow.transaction).where(CreditEntryRow.transaction.like("grant:%"))))
    for tenant, declared in grants.items():
        for one, grant in instances(declared, before):
            if f"grant:{grant.id}" not in booked:
                entries = {f"grant:{grant.id}": grant.balance_pico, f"source:{grant.kind}": -grant.balance_pico}
                book(session, f"grant:{grant.id}", tenant, one.currency, entries, now)


def open_grants(
    session: Session, grants: Mapping[str, list[CreditGrant]], before: datetime
) -> dict[str, tuple[Grant, ...]]:
    """By tenant, the booked grants that have begun by then, each with what may be spent of it while it was open."""
    left = spendable(session)
    found: dict[str, tuple[Grant, ...]] = {}
    for tenant, declared in grants.items():
        found[tenant] = tuple(
            Grant(grant.id, left[grant.id], grant.priority, grant.kind, grant.effective_at, grant.expires_at)
            for _, grant in instances(declared, before)
            if grant.id in left
        )
    return found


def pay(
    session: Session, number: str, tenant: str, currency: str, drawn_pico: Mapping[str, int], now: datetime
) -> None:
    """Book what grants paid of an invoice."""
    if drawn_pico:
        entries = {f"grant:{grant}": -pico for grant, pico in drawn_pico.items()}
        entries[f"invoice:{number}"] = sum(drawn_pico.values())
        book(session, f"pay:{number}", tenant, currency, entries, now)
        left = balances(session)
        below = {f"grant:{grant}": -left[grant] for grant in drawn_pico if left[grant] < 0}
        if below:
            book(session, f"reopen:{number}", tenant, currency, {**below, LAPSED: -sum(below.values())}, now)


def paid_by(session: Session, number: str, notes: Iterable[str]) -> dict[str, int]:
    """What each grant has paid of an invoice, less what these credit notes gave back to it."""
    paid: dict[str, int] = defaultdict(int)
    names = [f"pay:{number}", *(f"note:{note}" for note in notes)]
    rows = select(CreditEntryRow).where(CreditEntryRow.transaction.in_(names), CreditEntryRow.account.like("grant:%"))
    for row in session.scalars(rows):
        paid[row.account.removeprefix("grant:")] -= row.amount_pico
    return {grant: pico for grant, pico in paid.items() if pico}


def give_back(
    session: Session, note: str, number: str, tenant: str, currency: str, given_pico: Mapping[str, int], now: datetime
) -> None:
    """Book what a credit note on an invoice gives back to the grants that paid it."""
    if given_pico:
        entries = {f"grant:{grant}": pico for grant, pico in given_pico.items()}
        book(
            session, f"note:{note}", tenant, currency, {**entries, f"invoice:{number}": -sum(given_pico.values())}, now
        )


def undo_payment(
    session: Session, number: str, tenant: str, currency: str, notes: Iterable[str], now: datetime
) -> None:
    """Book the opposite of what grants paid of a voided invoice, as far as its credit notes did not give it back."""
    paid = paid_by(session, number, notes)
    if paid:
        entries = {f"grant:{grant}": pico for grant, pico in paid.items()}
        book(session, f"void:{number}", tenant, currency, {**entries, f"invoice:{number}": -sum(paid.values())}, now)


def lapse(session: Session, grants: Mapping[str, list[CreditGrant]], before: datetime, now: datetime) -> None:
    """Book what is left of every grant that has expired by then as lapsed."""
    left = balances(session)
    for tenant, declared in grants.items():
        for one, grant in instances(declared, before):
            rest = left.get(grant.id, 0)
            if grant.expires_at is not None and grant.expires_at <= before and rest > 0:
                entries = {f"grant:{grant.id}": -rest, LAPSED: rest}
                book(session, _unused(session, f"lapse:{grant.id}"), tenant, one.currency, entries, now)


def book(
    session: Session, transaction: str, tenant: str, currency: str, entries: Mapping[str, int], now: datetime
) -> None:
    """Add the entries of one transaction; nothing when it is booked already. They sum to zero."""
    assert sum(entries.values()) == 0, f"{transaction} does not sum to zero"
    if session.scalar(select(CreditEntryRow.id).where(CreditEntryRow.transaction == transaction).limit(1)) is not None:
        return
    for account, amount in entries.items():
        session.add(
            CreditEntryRow(
                transaction=transaction, at=now, tenant=tenant, currency=currency, account=account, amount_pico=amount
            )
        )
    session.flush()


def _unused(session: Session, name: str) -> str:
    """The name, or where that is booked (what lapsed was reopened, or given back), the name with the next number behind it."""
    same = select(CreditEntryRow.transaction).where(
        (CreditEntryRow.transaction == name) | CreditEntryRow.transaction.startswith(f"{name}#", autoescape=True)
    )
    times = len(set(session.scalars(same)))
    return f"{name}#{times + 1}" if times else name


def balances(session: Session) -> dict[str, int]:
    """What is left of each grant, in pico-units."""
    return _sums(session, lapsed=True)


def spendable(session: Session) -> dict[str, int]:
    """What each grant may still pay for the time in which it was open: what is left of it, and what lapsed."""
    return _sums(session, lapsed=False)


def _sums(session: Session, *, lapsed: bool) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    statement = select(CreditEntryRow.transaction, CreditEntryRow.account, CreditEntryRow.amount_pico)
    for transaction, account, amount in session.execute(statement.where(CreditEntryRow.account.like("grant:%"))):
        if lapsed or not transaction.startswith(("lapse:", "reopen:")):
            sums[account.removeprefix("grant:")] += amount
    return dict(sums)
