"""`taximeter what-if`: a month's invoices under another rate card or cache policy, and who would complain."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from taximeter.cli.billing_session import book_and_usage, errors_for_people, known_tenant
from taximeter.cli.months import Month
from taximeter_billing.declarations.prices import read_rate_card
from taximeter_billing.declarations.state import read_state
from taximeter_billing.declarations.yaml_file import load
from taximeter_billing.errors import DeclarationError, NotFoundError
from taximeter_billing.settings import BillingSettings
from taximeter_billing.what_if import WhatIf, what_if
from taximeter_schemas.cache_policies import CachePolicy, load_cache_policy
from taximeter_schemas.money import format_pico
from taximeter_schemas.rate_cards import RateCard

_PLACES = 4
_KINDS = ("retain", "beneficiary", "warmer", "pool", "waterfall", "shapley_tenant", "shapley_use")


def command(
    period: Month,
    rate_card: Annotated[
        str | None, typer.Option("--rate-card", help="A declared version (standard@2), or a YAML file with one card.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="A declared cache policy, a kind (retain, shapley_use), or a YAML file with one.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="This tenant only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
) -> None:
    """What a month would have cost under another rate card or cache policy, by tenant. Nothing is written."""
    if rate_card is None and policy is None:
        raise typer.BadParameter("name a --rate-card or a --policy")
    with errors_for_people(), book_and_usage(BillingSettings()) as (book, reader):
        known_tenant(book, tenant)
        card = _card(book, rate_card) if rate_card else None
        found = what_if(book, reader, period, card=card, policy=_policy(book, policy) if policy else None, only=tenant)
    if as_json:
        print(json.dumps(_as_json(found), indent=2))
        return
    console = Console()
    if not found.differences and not found.blocked:
        console.print(f"nothing was used in {period}", highlight=False)
        return
    if found.differences:
        console.print(_table(found))
    for name, reason in found.blocked.items():
        console.print(f"[yellow]cannot be said: {name}: {escape(reason)}[/]", highlight=False, soft_wrap=True)
    complaints = ", ".join(one.tenant for one in found.complaints) or "none"
    if found.differences:
        of_whom = f" (of those {len(found.differences)} that can be said)" if found.blocked else ""
        console.print(f"would complain{of_whom}: {complaints}", highlight=False)


def _card(book: Engine, named: str) -> RateCard:
    """A declared version, or a file's card: alone, or the only one under `rate_cards`."""
    if Path(named).is_file():
        return read_rate_card(_single(load(Path(named)), "rate_cards", named))
    with Session(book) as session:
        found = next((card for card in read_state(session).cards if card.name == named), None)
    if found is None:
        raise NotFoundError(
            f"no rate card version is called {named!r}, and there is no such file; name one as declared (standard@2)"
        )
    return found


def _policy(book: Engine, named: str) -> CachePolicy:
    if Path(named).is_file():
        return load_cache_policy({"id": "what-if", **_single(load(Path(named)), "cache_policies", named)}, {})
    with Session(book) as session:
        found = read_state(session).policies.get(named)
    if found is None and named not in _KINDS:
        raise NotFoundError(
            f"no cache policy is called {named!r}, and there is no such file; kinds are: {', '.join(_KINDS)}"
        )
    return found or load_cache_policy({"id": "what-if", "kind": named}, {})


def _single(content: object, section: str, name: str) -> dict[str, Any]:
    listed = content.get(section) if isinstance(content, Mapping) and section in content else [content]
    if not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], Mapping):
        raise DeclarationError(f"{name}: one entry is needed, alone or under {section}")
    return dict(listed[0])


def _table(found: WhatIf) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tenant")
    for head in ("owes now", "would owe", "difference", "in %"):
        table.add_column(head, justify="right")
    for one in found.differences:
        amounts = [format_pico(pico, one.currency, _PLACES) for pico in (one.now_pico, one.then_pico, one.change_pico)]
        style = "red" if one.change_pico > 0 else "green" if one.change_pico < 0 else ""
        table.add_row(
            one.tenant, *amounts, "-" if one.change_percent is None else f"{one.change_percent:+}", style=style
        )
    return table


def _as_json(found: WhatIf) -> dict[str, Any]:
    return {
        "differences": [
            {
                "tenant": one.tenant,
                "currency": one.currency,
                "now_pico": str(one.now_pico),
                "then_pico": str(one.then_pico),
                "change_pico": str(one.change_pico),
                "change_percent": None if one.change_percent is None else str(one.change_percent),
            }
            for one in found.differences
        ],
        "would_complain": [one.tenant for one in found.complaints],
        "blocked": found.blocked,
    }
