"""Top-ups over HTTP: add money to a prepaid wallet, and list what was added."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import Field
from sqlalchemy import Engine

from taximeter_billing.errors import DeclarationError
from taximeter_billing.operations import publisher
from taximeter_billing.settings import BillingSettings
from taximeter_billing.top_ups import Wanted, list_top_ups, top_up
from taximeter_schemas.budgets import TopUp
from taximeter_schemas.errors import AmountError
from taximeter_schemas.events import Identifier, Tag
from taximeter_schemas.money import format_pico, to_pico
from taximeter_schemas.tenants import Currency, Declared


class NewTopUp(Declared):
    """What is added, as a decimal of the currency's major unit. The id makes it idempotent."""

    id: Identifier
    tenant: Tag
    amount: Annotated[str, Field(description='A decimal, as text: "25.00".')]
    currency: Currency = "USD"
    budget: Tag | None = None
    note: Annotated[str, Field(max_length=200)] = ""


def router(settings: BillingSettings, book: Engine, caller: Callable[..., str]) -> APIRouter:
    """The routes under /v1."""
    api = APIRouter(tags=["top-ups"])
    publish = publisher(settings)

    @api.post("/top-ups", status_code=201)
    def add(new: NewTopUp, actor: Annotated[str, Depends(caller)], response: Response) -> dict[str, Any]:
        """Add money to a wallet: 201 when it is new, 200 when it was there already. Gateways know within seconds."""
        try:
            amount_pico = to_pico(new.amount)
        except AmountError as error:
            raise DeclarationError(f"amount: {error}") from None
        wanted = Wanted(new.id, new.tenant, amount_pico, new.currency, new.budget, new.note)
        done = top_up(book, wanted, actor, datetime.now(UTC), publish)
        if not done.is_new:
            response.status_code = 200
        return {**_shown(done.top_up), "limit": format_pico(done.limit_pico, new.currency)}

    @api.get("/top-ups")
    def show(tenant: str | None = None) -> list[dict[str, Any]]:
        """What was added, in the order in which it was."""
        return [{**_shown(entry.top_up), "at": entry.at} for entry in list_top_ups(book, tenant)]

    return api


def _shown(added: TopUp) -> dict[str, Any]:
    amount = format_pico(added.amount_pico, added.currency)
    return {**added.model_dump(mode="json"), "amount": amount}
