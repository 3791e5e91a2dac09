"""`taximeter trace`: what one turn of a user asked of which models, and what each hop cost."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from rich.console import Console
from rich.markup import escape

from taximeter.cli.trace_turn import TracedEvent, roots_of, turns_of
from taximeter.cli.trace_view import turn_json, turn_table
from taximeter_schemas.settings import WarehouseSettings
from taximeter_sql import WarehouseError, connect, query

_EVER = datetime(1970, 1, 1, tzinfo=UTC)
Since = Annotated[
    datetime | None, typer.Option(help="Look at what arrived since then (UTC) only: faster on a large warehouse.")
]


def command(
    root_id: Annotated[str, typer.Argument(help="The turn: its root request id.", metavar="ROOT_ID")],
    tenant: Annotated[str, typer.Option(help="This tenant only: faster on a large warehouse.")] = "",
    since: Since = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON; amounts are whole pico-units.")] = False,
) -> None:
    """Print the tree of a turn: hops, attempts, models, tokens and cost, and the sum by currency.

    Exits 1 when there is no such turn, 2 when the warehouse does not answer.
    """
    started = _EVER if since is None else since.replace(tzinfo=UTC)
    try:
        with connect(WarehouseSettings().clickhouse_url) as client:
            events = read_events(client, root_id, tenant, started)
    except (WarehouseError, ClickHouseError) as error:
        raise _end(2, str(error)) from None
    turns = turns_of(root_id, events)
    if not turns:
        raise _end(1, _unknown(root_id, roots_of(root_id, events)))
    if as_json:
        print(json.dumps([turn_json(turn) for turn in turns], indent=2))
        return
    console = Console()
    for turn in turns:
        console.print(turn_table(turn))


def read_events(client: Client, root_id: str, tenant: str, since: datetime) -> list[TracedEvent]:
    """The events of a turn, and requests of that id in other turns."""
    asked = {"id": root_id, "tenant": tenant, "since": since}
    rows = client.query(query("trace_root"), parameters=asked, tz_mode="aware").result_rows
    return [TracedEvent(*row) for row in rows]


def _unknown(root_id: str, roots: list[str]) -> str:
    if roots:
        return f"{root_id!r} is a request of another turn; ask for: taximeter trace {' or '.join(roots)}"
    return f"no turn is called {root_id!r}: nothing with that root_request_id was metered (yet)"


def _end(code: int, message: str) -> typer.Exit:
    Console(stderr=True).print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return typer.Exit(code)
