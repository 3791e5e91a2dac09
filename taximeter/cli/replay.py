"""`taximeter replay`: a recorded trace through the whole pipeline, to invoices that are proven."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from taximeter.cli.invoice import invoices_table
from taximeter.cli.reconcile_view import report_tables
from taximeter.embedded.billing_desk import BillingDesk
from taximeter.embedded.settling import wait_until_metered
from taximeter.embedded.stack import Stack, StackError
from taximeter.reconcile.run import reconcile_all
from taximeter.workload.client import Outcome
from taximeter.workload.declarations import replay_declarations, replay_tenants
from taximeter.workload.replay import ReplayPlan, replay
from taximeter.workload.replayed import recall, remember, replay_key
from taximeter.workload.traces import TraceError, TraceRequest, read_trace


def command(
    trace: Annotated[Path, typer.Option("--trace", help="A Mooncake JSONL or an Azure CSV file.")],
    data: Annotated[Path, typer.Option(help="The folder for the stack's data.")] = Path("data/replay"),
    tenants: Annotated[int, typer.Option(min=1, max=500, help="How many tenants: a few large, a long tail.")] = 20,
    pools: Annotated[int, typer.Option(min=1, max=500, help="How many cache pools they are dealt over.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed draws the same tenants.")] = 1,
    speed: Annotated[float, typer.Option(min=0, help="Times faster than recorded; 0 is as fast as it goes.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, max=512, help="Requests under way at once.")] = 16,
    limit: Annotated[int, typer.Option(min=0, help="Only the first so many requests; 0 is all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print counts and the reconciliation as JSON.")] = False,
) -> None:
    """Replay a trace on the embedded stack: gateway, meter, budgets, invoices, Stripe double; then check every law."""
    console = Console(stderr=as_json)
    try:
        requests = read_trace(trace)
        requests = requests[:limit] if limit else requests
        names = replay_tenants(tenants)
        with Stack(data, random_ports=True, report=lambda text: console.print(f"[dim]{text}[/]")) as stack:
            desk = BillingDesk(stack)
            desk.apply_content(replay_declarations(names, min(pools, tenants)))
            plan = ReplayPlan(names, seed, speed, at_once)
            key = replay_key(trace, plan, pools, limit)
            totals = recall(stack.data_dir, key)
            if totals is None:
                outcome = _send(console, stack, requests, plan, desk.make_keys(names))
                wait_until_metered(stack)
                totals = outcome.totals()
                _show(console, requests, outcome)
                remember(stack.data_dir, key, totals)
            else:
                console.print("this folder holds this very replay: nothing is sent again")
            period = f"{datetime.now(UTC):%Y-%m}"
            desk.close(period)
            desk.finalize(period)
            desk.push(period)
            report = reconcile_all(desk.settings)
            if as_json:
                print(json.dumps({**totals, **report.to_json()}, indent=2))
            else:
                console.print(invoices_table(desk.invoices(period)))
                for part in report_tables(report):
                    console.print(part)
    except (TraceError, OSError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except StackError as error:
        console.print(f"[red]{escape(str(error))}[/]", highlight=False)
        raise typer.Exit(1) from None
    if not report.clean or totals["served"] != len(requests):
        raise typer.Exit(1)


def _send(
    console: Console, stack: Stack, requests: list[TraceRequest], plan: ReplayPlan, keys: dict[str, str]
) -> Outcome:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("replaying", total=len(requests))

        def done(answered: int, _outcome: Outcome) -> None:
            bar.update(task, completed=answered)

        return replay(requests, plan, stack.addresses.urls["gateway"], keys, done)


def _show(console: Console, requests: list[TraceRequest], outcome: Outcome) -> None:
    recorded_in, recorded_out = sum(r.input_tokens for r in requests), sum(r.output_tokens for r in requests)
    counts = (
        f"tokens in {outcome.prompt_tokens:,} (recorded {recorded_in:,}), of them cached {outcome.cached_tokens:,}",
        f"tokens out {outcome.output_tokens:,} (recorded {recorded_out:,})",
    )
    console.print(f"{outcome.served:,} of {len(requests):,} requests served; {'; '.join(counts)}", highlight=False)
    for (tenant, code), count in outcome.errors.items():
        console.print(f"[yellow]{tenant}: {count} times {code}[/]", highlight=False)
