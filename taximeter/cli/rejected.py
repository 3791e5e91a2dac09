"""`taximeter rejected`: what the meter refused, why, and sending it again once the cause is mended."""

import getpass
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taximeter.cli.reconcile import errors_for_people, progress_line
from taximeter.cli.unrated import opened
from taximeter.mending.payloads import read_rejected
from taximeter.mending.rejected import Place, PlaceError, Rejected, list_rejected, place_of
from taximeter.mending.replay import Replayed, replay
from taximeter.mending.sending import Sender
from taximeter.reconcile.moments import moment_of
from taximeter_billing.settings import BillingSettings
from taximeter_schemas.rejections import RejectedEvent
from taximeter_sql import connect

app = typer.Typer(
    help="Rejected messages: what the meter refused, why, and sending it again once the cause is mended.",
    no_args_is_help=True,
)

OfTenant = Annotated[str | None, typer.Option("--tenant", help="This tenant only.")]
OfReason = Annotated[str | None, typer.Option("--reason", help="This reason only, such as unknown_tenant.")]
Since = Annotated[str | None, typer.Option("--since", metavar="WHEN", help="Arrived since: 2026-11-01, 36h, 7d (ago).")]
_SHOWN = 12


@app.command("list")
def list_all(
    tenant: OfTenant = None,
    reason: OfReason = None,
    since: Since = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that were sent again, or counted since.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What was rejected and still counts nowhere, newest first; counts by reason below."""
    with errors_for_people():
        client = connect(BillingSettings().clickhouse_url)
        try:
            found = list_rejected(client, tenant, reason, _moment(since))
        finally:
            client.close()
    shown = [one for one in found if everything or one.open]
    if as_json:
        print(json.dumps([_as_json(one) for one in shown[:limit]], indent=2))
        return
    console = Console()
    if not shown:
        console.print("nothing was rejected" if not found else "nothing is open; --all shows what was")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("place", "arrived (UTC)", "tenant", "event", "reason", "state"):
        table.add_column(head, overflow="fold", no_wrap=head in ("place", "reason"))
    for one in shown[:limit]:
        cells = (_label(one.place), f"{one.arrived_at:%Y-%m-%d %H:%M}", one.tenant or "-", one.event_id or "-")
        table.add_row(*map(Text, (*cells, one.reason, one.state)))
    console.print(table)
    if len(shown) > limit:
        console.print(f"and {len(shown) - limit:,} more; --limit shows more")
    counts = Counter(one.reason for one in shown)
    console.print(", ".join(f"{name}: {count:,}" for name, count in counts.most_common()), highlight=False)


@app.command()
def show(place: Annotated[str, typer.Argument(help="PARTITION/OFFSET, as the list shows it.")]) -> None:
    """One rejected message: the reason in full, the message itself, and what became of it since."""
    with errors_for_people(), opened() as (settings, client, _snapshot):
        (one,) = _named(list_rejected(client), [place], settings.log_id)
        record = read_rejected(settings.kafka_bootstrap_servers, [one]).get(one.place)
    console = Console()
    console.print(Text(f"{_label(one.place)} of log {one.place[0]}, arrived {one.arrived_at:%Y-%m-%d %H:%M:%S} UTC"))
    console.print(Text(f"reason: {one.reason}{f': {record.detail}' if record else ''}", style="yellow"))
    console.print(Text(f"state: {one.state}"))
    for replayed in one.replays:
        what = f"  {replayed.replayed_at:%Y-%m-%d %H:%M} by {replayed.replayed_by}, as {_label(replayed.place)}"
        changes = f", with {replayed.changes}" if replayed.changes else ""
        console.print(Text(f"{what}{changes}: {replayed.outcome}"))
    if record is None:
        console.print("the message itself is not in usage.rejected.v1 any more (30 days)")
    else:
        print(_readable(record))


@app.command("replay")
def replay_some(
    places: Annotated[list[str] | None, typer.Argument(help="PARTITION/OFFSET, as the list shows it.")] = None,
    tenant: OfTenant = None,
    reason: OfReason = None,
    since: Since = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Mend the message itself: data.feature=chat. May be repeated."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is open.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and what not and why.")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0.0, help="Seconds to wait for the meter.")] = 60.0,
    actor: Annotated[str | None, typer.Option("--by", help="Who does it (default: your login).")] = None,
) -> None:
    """Send rejected messages again, once their cause is mended.

    Only what would count now is sent: the tenant is known by now, its time is
    in range, --set mended what was wrong. What was counted in between is left.
    An event counts once, also when this is killed or run twice, and the list
    keeps what became of each. Exits 1 when something is left unmended.

    Examples:

        taximeter rejected replay --reason unknown_tenant

        taximeter rejected replay 0/4711 --set data.feature=chat
    """
    if not (places or tenant or reason or since or everything):
        raise typer.BadParameter("name places, or choose by --reason, --tenant or --since, or --all")
    console = Console()
    with errors_for_people(), opened() as (settings, client, snapshot), progress_line() as progress:
        found = list_rejected(client, tenant, reason, _moment(since))
        chosen = _named(found, places, settings.log_id) if places else [one for one in found if one.open]
        sender = Sender(settings.kafka_bootstrap_servers)
        done = replay(
            *(client, sender, settings.kafka_bootstrap_servers, settings.log_id, snapshot, chosen, changes or []),
            actor or getpass.getuser(),
            dry_run=dry_run,
            wait_seconds=wait,
            progress=progress,
        )
        after = {one.place: one for one in list_rejected(client, tenant, reason, _moment(since))}
    _tell(console, done, after, dry_run)
    unmended = [place for place in done.left if place in after and after[place].open]
    if unmended or done.waiting:
        raise typer.Exit(1)


def _tell(console: Console, done: Replayed, after: dict[Place, Rejected], dry_run: bool) -> None:
    if dry_run:
        console.print(f"would be sent: {len(done.sent):,}", highlight=False)
    else:
        outcomes = Counter(after[place].state for place in done.sent if place in after)
        console.print(f"sent: {len(done.sent):,}", highlight=False)
        for state, count in outcomes.most_common():
            console.print(Text(f"  {state}: {count:,}"))
    for why, count in Counter(done.left.values()).most_common(_SHOWN):
        console.print(Text(f"left: {count:,}: {why}", style="yellow"))
    if done.waiting:
        console.print(f"[yellow]sent, and not stored yet: {done.waiting:,}; is the meter running?[/]", highlight=False)


def _named(found: Sequence[Rejected], places: Sequence[str], log_id: str) -> list[Rejected]:
    by_place = {one.place: one for one in found}
    chosen = []
    for text in places:
        one = by_place.get(place_of(text, log_id))
        if one is None:
            raise PlaceError(text)
        chosen.append(one)
    return chosen


def _readable(record: RejectedEvent) -> str:
    if record.payload_encoding == "utf-8":
        try:
            return json.dumps(json.loads(record.payload), indent=2, ensure_ascii=False)
        except ValueError:
            return record.payload
    return f"(not UTF-8; base64) {record.payload}"


def _label(place: Place) -> str:
    return f"{place[1]}/{place[2]}"


def _moment(since: str | None) -> datetime | None:
    return moment_of(since, datetime.now(UTC)) if since else None


def _as_json(one: Rejected) -> dict[str, object]:
    return {
        "log": one.place[0],
        "place": _label(one.place),
        "arrived_at": one.arrived_at.isoformat(),
        "tenant": one.tenant or None,
        "source": one.source or None,
        "event_id": one.event_id or None,
        "reason": one.reason,
        "state": one.state,
        "open": one.open,
        "replays": [
            {"place": _label(each.place), "at": each.replayed_at.isoformat(), "by": each.replayed_by,
             "changes": each.changes, "outcome": each.outcome}
            for each in one.replays
        ],
    }  # fmt: skip
