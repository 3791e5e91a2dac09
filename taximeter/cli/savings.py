"""`taximeter savings`: the cache-savings engine on its own, so that anybody can check a dispute from three files."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taximeter_billing.domain.savings import SavingsResult, savings_for_period
from taximeter_schemas.cache_policies import load_cache_policy, read_rule
from taximeter_schemas.cache_uses import read_cache_records, read_rates
from taximeter_schemas.errors import CachePolicyError, CacheUseError


def command(
    events: Annotated[Path, typer.Option(help="JSON list of cache uses, or JSON lines (.jsonl).")],
    rates: Annotated[Path, typer.Option(help='JSON object, by SKU: {"p": list, "r": cache read, "w": cache write}.')],
    policy: Annotated[Path, typer.Option(help="JSON object: a rule (waterfall, shapley) or a published policy.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print charges, credits and provider_retained as JSON.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Refuse a policy that may not be published, such as an uncapped warmer.")
    ] = False,
    salt: Annotated[str, typer.Option(help="Decides who gets an odd pico-unit.")] = "",
    ttl_s: Annotated[
        int | None,
        typer.Option(help="Seconds after which an unused block has left the cache (else as the policy says).", min=0),
    ] = None,
    until: Annotated[int | None, typer.Option(help="The period's end in seconds, for storage cost.")] = None,
) -> None:
    """Settle cache savings from files. All amounts are whole pico-units (1e-12 of the currency)."""
    try:
        prices = read_rates(_read(rates))
        records = read_cache_records(_read(events))
        stated = _read(policy)
        rule = load_cache_policy(stated, prices) if published else read_rule(stated, prices)
        ttl_s = rule.ttl_seconds if ttl_s is None else ttl_s
        result = savings_for_period(records, prices, rule, salt, ttl_s=ttl_s, until=until)
    except (CacheUseError, CachePolicyError, UnreadableFileError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(summary(result), sort_keys=True))
    else:
        Console().print(table(result))


class UnreadableFileError(Exception):
    """The file cannot be read as JSON."""


def summary(result: SavingsResult) -> dict[str, object]:
    """What --json prints. `credits` names tenants that hit the cache or got something."""
    credits = {
        tenant: credit
        for tenant, credit in result.credits_pico.items()
        if credit or result.by_tenant[tenant].cached_tokens
    }
    return {
        "charges": result.charges_pico,
        "credits": credits,
        "provider_retained": result.provider_retained_pico,
    }


def table(result: SavingsResult) -> Table:
    """The same for people, with what it derives from."""
    columns = {
        "list": {tenant: one.list_pico for tenant, one in result.by_tenant.items()},
        "metered": {tenant: one.metered_pico for tenant, one in result.by_tenant.items()},
        "charge": result.charges_pico,
        "credit": result.credits_pico,
        "storage": {tenant: one.storage_pico for tenant, one in result.by_tenant.items()},
    }
    if not any(columns["storage"].values()):
        del columns["storage"]
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title="Cache savings, in pico-units")
    shown.title_justify = shown.caption_justify = "left"
    shown.add_column("tenant", overflow="fold")
    for column in columns:
        shown.add_column(column, justify="right", overflow="fold")  # never a cut amount
    for tenant in result.by_tenant:
        shown.add_row(tenant, *(f"{amounts[tenant]:,}" for amounts in columns.values()))
    known = ", ".join(f"{amount:,} {how}" for how, amount in result.known.items() if amount) or "none"
    shown.caption = f"provider keeps {result.provider_retained_pico:,}; gross saving: {known}"
    return shown


def _read(path: Path) -> object:
    """The file's JSON; a .jsonl file is a list of its lines. Raises UnreadableFileError with the place of the fault."""
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        parsed: object = json.loads(text)
    except OSError as error:
        raise UnreadableFileError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"{path}: not JSON: {error}") from None
    return parsed
