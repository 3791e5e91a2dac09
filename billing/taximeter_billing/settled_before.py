"""Invoices of a month that were settled by other declarations than hold now, and who shares something with them.

What a pool saved is settled over all its tenants. If the policy or the tenants change between the invoice of one and that of
another, the two are parts of different wholes and do not add up to what was saved: so the later one waits until they agree.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import InvoiceRow
from taximeter_billing.computing import keeping_policy
from taximeter_billing.declarations.state import Group, State, settling_entry, state_at
from taximeter_billing.seeing import Seen
from taximeter_billing.warehouse import TenantSpan, UsageReader
from taximeter_schemas.cache_policies import CachePolicy
from taximeter_schemas.periods import billing_month

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Settled:
    """An invoice, final or a draft (`number` None), and by which declarations it was made."""

    id: int
    tenant: str
    number: str | None
    declared_through: int
    drafted_at: datetime


@dataclass(frozen=True, slots=True)
class Clash:
    """A tenant that would be settled otherwise than an invoice with which it shares something, and by what each is."""

    tenant: str
    invoice: Settled
    then: str
    now: str

    @property
    def reason(self) -> str:
        """Why the tenant waits, where the invoice is final."""
        other = self.invoice
        return (
            f"{other.tenant} was invoiced ({other.number}) by {self.then}, and by what is declared now, what it shares with"
            f" {self.tenant} would be settled by {self.now}: the two invoices would not add up. Void {other.number}, or declare"
            " the tenants as they were until this month is invoiced, and close it again"
        )

    @property
    def reason_of_draft(self) -> str:
        """Why the invoice waits, where it is a draft."""
        what = f"what it shares with {self.tenant} is settled by {self.now} now"
        return f"drafted by {self.then}, and {what}; close the period again"


@dataclass(frozen=True, slots=True)
class _Then:
    """What was declared when some invoices were made."""

    state: State
    groups: Mapping[str, Group]


class SettledBefore:
    """The invoices of a month that were settled by other declarations than `state`."""

    def __init__(self, book: Engine, label: str, state: State) -> None:
        self._label = label
        self._state = state
        self._then: dict[int, _Then] = {}
        self._invoices: dict[str, tuple[int, Settled]] = {}
        columns = (
            InvoiceRow.id,
            InvoiceRow.tenant,
            InvoiceRow.number,
            InvoiceRow.declared_through,
            InvoiceRow.drafted_at,
        )
        statement = select(*columns).where(InvoiceRow.period == label, InvoiceRow.status != "void")
        with Session(book) as session:
            now = settling_entry(session, through=state.through)
            entries: dict[tuple[int, datetime | None], int] = {}
            for row in session.execute(statement.order_by(InvoiceRow.id)):
                one = Settled(*row)
                made = (one.declared_through, None if one.declared_through else one.drafted_at)
                if made not in entries:
                    entries[made] = settling_entry(session, *made)
                if (entry := entries[made]) != now:
                    self._invoices[one.tenant] = (entry, one)
            for entry in {entry for entry, _invoice in self._invoices.values()}:
                then = state_at(session, entry)
                self._then[entry] = _Then(then, then.by_tenant())

    def clashes(
        self, reader: UsageReader, groups: Iterable[Group], seen: Seen, open_: Collection[str]
    ) -> Iterator[Clash]:
        """For tenants whose invoice is open: a final invoice with which each clashes, and drafts of others that clash with it."""
        for group in groups if self._invoices else ():
            names = {tenant.id for tenant in group.tenants}.intersection(open_)
            for then, invoices in self._sharing(group, names, seen):
                yield from self._over_savings(reader, group, names, seen, then, invoices)
                yield from self._over_storage(group, names, seen, then, invoices)

    def _sharing(self, group: Group, names: set[str], seen: Seen) -> Iterator[tuple[_Then, list[Settled]]]:
        """Invoices of others that may share something with these tenants of a group, by what was declared then."""
        others = {tenant.id for tenant in group.tenants} | set(seen.keeping(group))
        for then in self._then.values():
            for old in (then.groups[name] for name in names if name in then.groups):
                others |= {tenant.id for tenant in old.tenants}
        found: dict[int, list[Settled]] = defaultdict(list)
        for other in sorted(others - names) if names else ():
            if other in self._invoices:
                entry, invoice = self._invoices[other]
                found[entry].append(invoice)
        for entry, invoices in sorted(found.items()):
            yield self._then[entry], [one for one in invoices if one.tenant in self._then[entry].groups]

    def _over_savings(
        self,
        reader: UsageReader,
        group: Group,
        names: set[str],
        seen: Seen,
        then: _Then,
        invoices: Iterable[Settled],
    ) -> Iterator[Clash]:
        """Over what the cache saved."""
        members = {tenant.id for tenant in group.tenants}
        by_group: dict[int, list[Settled]] = defaultdict(list)
        for one in invoices:
            by_group[id(then.groups[one.tenant])].append(one)
        for of_group in by_group.values():
            old = then.groups[of_group[0].tenant]
            before = {tenant.id for tenant in old.tenants}
            if _terms(old, before) == _terms(group, members):
                continue
            used = self._used(reader, (old, group), seen)
            if _terms(old, used) == _terms(group, used):
                continue
            said = _told(old, group, used)
            own = [one for one in of_group if one.tenant in used & members]
            yield from _paired(own, used & names, said)
            left = [one for one in of_group if one.tenant in used - members]
            yield from _paired(left, used & names & before, said)

    def _over_storage(
        self, group: Group, names: set[str], seen: Seen, then: _Then, invoices: Iterable[Settled]
    ) -> Iterator[Clash]:
        """Over what keeping blocks cost, which all who used one pool settle together, whatever groups they are in."""
        for company in seen.companies(group) if seen.stores(group) else ():
            of_company = [one for one in invoices if one.tenant in company]
            if of_company:
                before = keeping_policy(then.state, then.groups[of_company[0].tenant], company)
                now = keeping_policy(self._state, group, company)
                if (before.storage, before.ttl_seconds) != (now.storage, now.ttl_seconds):
                    yield from _paired(of_company, names.intersection(company), (_kept(before), _kept(now)))

    def _used(self, reader: UsageReader, groups: Iterable[Group], seen: Seen) -> set[str]:
        """Tenants of the groups that used something in the month: the others have no part in what was saved."""
        sets = dict(seen.sets)
        for tenant in (tenant for group in groups for tenant in group.tenants):
            if tenant.id not in sets:
                period = billing_month(self._label, tenant.time_zone)
                sets |= reader.event_sets([TenantSpan(tenant.id, period.start, period.end)])
        return {name for name, own in sets.items() if own.events}


def _paired(invoices: Sequence[Settled], names: Iterable[str], said: tuple[str, str]) -> Iterator[Clash]:
    """Every name with the first of the final invoices, and with every draft."""
    final = [one for one in invoices if one.number is not None][:1]
    drafts = [one for one in invoices if one.number is None]
    for name in sorted(names):
        for one in (*final, *drafts):
            yield Clash(name, one, *said)


def _terms(group: Group, of: Collection[str]) -> tuple[CachePolicy, str, set[tuple[str, str]]]:
    """By what some of the tenants settle what the cache saved."""
    return group.policy, group.currency, {(one.id, one.time_zone) for one in group.tenants if one.id in of}


def _kept(policy: CachePolicy) -> str:
    return f"cache policy {policy.name} (storage by {policy.storage}, ttl_seconds {policy.ttl_seconds})"


def _told(old: Group, new: Group, used: Collection[str]) -> tuple[str, str]:
    """Both groups in words: the policy, and what else only one of them has."""
    before, now = _terms(old, used), _terms(new, used)
    said = []
    for (policy, currency, tenants), (_, other_currency, others) in ((before, now), (now, before)):
        text = f"cache policy {policy.name}"
        if currency != other_currency:
            text += f" in {currency}"
        if more := sorted(tenants - others):
            shown = ", ".join(f"{name} ({zone})" for name, zone in more[:_SHOWN])
            text += f" with {shown}" + (f" and {len(more) - _SHOWN} more" if len(more) > _SHOWN else "")
        said.append(text)
    return said[0], said[1]
