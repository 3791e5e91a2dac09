"""Top-ups of prepaid wallets: money added to a budget that lasts for ever, once for each id, and never changed again.

A top-up is kept and published like anything declared, so the list of them is the audit log's, and a gateway's limit is what
was declared for the wallet and the sum of its top-ups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from taximeter_billing.book import DeclaredRow, writing
from taximeter_billing.declarations.applying import Publish, current, record_change, send_outbox
from taximeter_billing.declarations.plan import Change
from taximeter_billing.errors import DeclarationError, FrozenError, NotFoundError
from taximeter_schemas.budgets import Budget, TopUp
from taximeter_schemas.control import ControlKind
from taximeter_schemas.periods import PeriodKind


@dataclass(frozen=True, slots=True)
class Wanted:
    """A top-up as it is asked for. Without a budget, the tenant's only wallet is meant."""

    id: str
    tenant: str
    amount_pico: int
    currency: str
    budget: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ToppedUp:
    """The top-up as it stands, whether it is new, and the wallet's limit with it, in pico-units."""

    top_up: TopUp
    is_new: bool
    limit_pico: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list: the top-up, and when it was recorded."""

    top_up: TopUp
    at: datetime


def top_up(book: Engine, wanted: Wanted, actor: str, now: datetime, publish: Publish) -> ToppedUp:
    """Add money to a wallet. The same again, under the same id, changes nothing.

    Raises NotFoundError where there is no such tenant or wallet, DeclarationError where the amount or its currency is wrong, and
    FrozenError where the id was used for something else.
    """
    try:
        done = _recorded(book, wanted, actor, now)
    except IntegrityError:
        # Another process recorded this id at the same moment: now it is there to be compared with.
        done = _recorded(book, wanted, actor, now)
    send_outbox(book, publish)
    return done


def list_top_ups(book: Engine, tenant: str | None = None) -> list[Entry]:
    """All top-ups in the order in which they were recorded, of one tenant where given."""
    with Session(book) as session:
        rows = session.scalars(
            select(DeclaredRow).where(DeclaredRow.kind == ControlKind.TOP_UP).order_by(DeclaredRow.id)
        )
        entries = [Entry(TopUp.model_validate(row.body), row.recorded_at) for row in rows]
    return [entry for entry in entries if tenant in (None, entry.top_up.tenant)]


def _recorded(book: Engine, wanted: Wanted, actor: str, now: datetime) -> ToppedUp:
    with writing(book) as session:
        things = current(session)
        wallet = _wallet(things, wanted)
        made = TopUp(
            id=wanted.id,
            tenant=wanted.tenant,
            budget=wallet.id,
            amount_pico=wanted.amount_pico,
            currency=wanted.currency,
            note=wanted.note,
        )
        known = things.get((ControlKind.TOP_UP, made.id))
        if known is not None:
            if TopUp.model_validate(known) != made:
                raise FrozenError(f"top-up {made.id} was recorded with another content: {known}")
            return ToppedUp(made, False, _limit_pico(things, wallet))
        limit_pico = _limit_pico(things, wallet) + made.amount_pico
        if limit_pico < 0:
            raise DeclarationError(f"top-up {made.id}: more is taken back than was ever given to {wallet.id}")
        change = Change("create", ControlKind.TOP_UP, made.id, None, made.model_dump(mode="json"))
        record_change(session, change, actor, now)
        return ToppedUp(made, True, limit_pico)


def _wallet(things: Mapping[tuple[ControlKind, str], dict[str, Any]], wanted: Wanted) -> Budget:
    if (ControlKind.TENANT, wanted.tenant) not in things:
        raise NotFoundError(f"no tenant is called {wanted.tenant!r}")
    budgets = [Budget.model_validate(body) for (kind, _), body in things.items() if kind is ControlKind.BUDGET]
    wallets = [held for held in budgets if held.tenant == wanted.tenant and held.period is PeriodKind.LIFETIME]
    if wanted.budget is not None:
        wallets = [held for held in wallets if held.id == wanted.budget]
    if not wallets:
        raise NotFoundError(
            f"tenant {wanted.tenant} has no wallet {wanted.budget or ''}".rstrip()
            + '; declare a budget with `period: lifetime` and `limit: "0"`'
        )
    if len(wallets) > 1:
        raise DeclarationError(f"tenant {wanted.tenant} has several wallets: {', '.join(held.id for held in wallets)}")
    if wallets[0].currency != wanted.currency:
        raise DeclarationError(f"wallet {wallets[0].id} is in {wallets[0].currency}, not in {wanted.currency}")
    if not wanted.amount_pico:
        raise DeclarationError("an amount of 0 changes nothing")
    return wallets[0]


def _limit_pico(things: Mapping[tuple[ControlKind, str], dict[str, Any]], wallet: Budget) -> int:
    added = (
        int(body["amount_pico"])
        for (kind, _), body in things.items()
        if kind is ControlKind.TOP_UP and body["budget"] == wallet.id
    )
    return wallet.limit_pico + sum(added)
