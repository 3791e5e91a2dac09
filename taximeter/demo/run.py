"""Runs the demo, step by step, and says what each step shows."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import yaml
from rich.console import Console, RenderableType
from rich.live import Live

from taximeter.cli.invoice_view import invoice_tables
from taximeter.cli.reconcile_view import report_tables
from taximeter.demo.budget_watch import BudgetWatch
from taximeter.demo.display import picture
from taximeter.demo.receiver import Receiver
from taximeter.demo.scene import DAY_REQUESTS, HABITS, NIGHT_REQUESTS, RUNAWAY, SEED, TENANTS
from taximeter.embedded.billing_desk import BillingDesk
from taximeter.embedded.ports import free_port
from taximeter.embedded.settling import wait_until_metered
from taximeter.embedded.stack import PARTITIONS, Stack
from taximeter.reconcile.run import reconcile_all
from taximeter.workload.client import GatewayClient, gateway_client
from taximeter.workload.demo_plan import plan_day, plan_night
from taximeter_schemas.money import format_pico

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "taximeter.yaml"
AT_ONCE = 12
ALERT_SECONDS_MAX = 30.0


def run_demo(stack: Stack, console: Console, scale: float = 1.0) -> bool:
    """Run it all on a started stack; True when every law holds. `scale` shortens or lengthens the traffic."""
    desk = BillingDesk(stack)
    console.rule("[bold]1. Declare tenants, prices, budgets")
    declarations = yaml.safe_load(EXAMPLE.read_text())
    endpoint = declarations["alert_endpoints"][0]
    receiver = Receiver(free_port(), endpoint["secret"])
    endpoint["url"] = receiver.url
    plan = desk.apply_content(declarations)
    again = desk.apply_content(declarations)
    console.print(
        f"applied {len(plan.changes)} declarations from {EXAMPLE.name}; a second time changes {len(again.changes)}"
    )
    keys = desk.make_keys(list(TENANTS))
    console.rule("[bold]2. A day of traffic, then a night in which one agent runs away")
    asyncio.run(_traffic(stack, keys, receiver, console, scale))
    period = f"{datetime.now(UTC):%Y-%m}"
    console.rule(f"[bold]3. Close {period}")
    _bill(desk, period, console)
    console.rule("[bold]4. Prove it")
    report = reconcile_all(desk.settings)
    for part in report_tables(report):
        console.print(part)
    return report.clean


async def _traffic(stack: Stack, keys: dict[str, str], receiver: Receiver, console: Console, scale: float) -> None:
    watch = BudgetWatch(stack.addresses.kafka, PARTITIONS)
    await receiver.start()
    watch.start()
    try:
        async with gateway_client(stack.addresses.urls["gateway"], keys) as client:
            with Live(console=console, refresh_per_second=4, transient=False) as live:
                await _phases(client, receiver, watch, live, scale)
                await asyncio.to_thread(wait_until_metered, stack)
                await _until(lambda: _hard_limit_was_told(receiver), ALERT_SECONDS_MAX)
                live.update(_picture("the night is over", client, receiver, watch))
            refused = client.outcome.of(RUNAWAY.tenant, 402)
            console.print(
                f"{client.outcome.served:,} requests served, {refused:,} of {RUNAWAY.tenant} refused at its limit; "
                f"{client.outcome.cached_tokens:,} of {client.outcome.prompt_tokens:,} prompt tokens came from the cache; "
                f"{len(receiver.alerts)} alerts, each signed and each once"
            )
    finally:
        watch.stop()
        await receiver.stop()


async def _phases(client: GatewayClient, receiver: Receiver, watch: BudgetWatch, live: Live, scale: float) -> None:
    day = plan_day(HABITS, int(DAY_REQUESTS * scale), SEED)
    night = plan_night(RUNAWAY, int(NIGHT_REQUESTS * scale), SEED)
    for phase, requests in (("day: five tenants at work", day), (f"night: {RUNAWAY.tenant}'s agent runs away", night)):
        sending = asyncio.create_task(client.send_all(requests, AT_ONCE))
        while not sending.done():
            live.update(_picture(phase, client, receiver, watch))
            await asyncio.wait({sending}, timeout=0.25)
        await sending


def _picture(phase: str, client: GatewayClient, receiver: Receiver, watch: BudgetWatch) -> RenderableType:
    return picture(phase, client.outcome, {tenant: watch.position(tenant) for tenant in TENANTS}, receiver.alerts)


def _hard_limit_was_told(receiver: Receiver) -> bool:
    return any(alert.get("type") == "budget.hard_limit" for alert in receiver.alerts.values())


async def _until(holds: Callable[[], bool], seconds_max: float) -> None:
    for _ in range(int(seconds_max / 0.1)):
        if holds():
            return
        await asyncio.sleep(0.1)


def _bill(desk: BillingDesk, period: str, console: Console) -> None:
    closed = desk.close(period)
    for tenant, reason in closed.parked.items():
        console.print(f"[yellow]parked: {tenant}: {reason}[/]")
    finalized = desk.finalize(period)
    created = desk.push(period)
    for row in desk.invoices(period):
        for part in invoice_tables(row):
            console.print(part)
    net = sum(row.net_pico for row in finalized)
    saved = sum(row.savings_pico for row in finalized)
    console.print(
        f"{len(finalized)} invoices, {format_pico(net, 'USD', 2)} in all, after {format_pico(saved, 'USD', 2)} of cache savings; "
        f"{created} created at the Stripe double"
    )
    again = desk.close(period)
    console.print(
        f"a second run: {len(again.drafted)} drafts changed, {len(desk.finalize(period))} finalized, {desk.push(period)} pushed"
    )
