"""`taximeter alerts`: what was told to whom, what failed, and sending it once more. Talks to the alerts service."""

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Annotated, Any

import typer
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(help="Budget alerts: deliveries, endpoints, replays.", no_args_is_help=True)

ANSWER_SECONDS_MAX = 30.0
_COLOURS = {"delivered": "green", "pending": "yellow", "failed": "red"}


class AlertsClientSettings(BaseSettings):
    """Where the alerts service is. The address is made of host and port where it is not given."""

    model_config = SettingsConfigDict(env_prefix="TAXIMETER_", frozen=True, extra="ignore")

    alerts_url: str = Field("", description="Address of the alerts service; empty means host and port of it")
    alerts_host: str = "127.0.0.1"
    alerts_port: int = 8085
    admin_token: SecretStr = SecretStr("")

    @property
    def address(self) -> str:
        """Where requests go."""
        return self.alerts_url.rstrip("/") or f"http://{self.alerts_host}:{self.alerts_port}"


@app.command("list")
def show_list(
    status: Annotated[str, typer.Option(help="Only those: pending, delivered or failed.")] = "",
    tenant: Annotated[str, typer.Option(help="Only of that tenant.")] = "",
    endpoint: Annotated[str, typer.Option(help="Only to that endpoint.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List deliveries, newest first."""
    wanted = {name: value for name, value in (("status", status), ("tenant", tenant), ("endpoint", endpoint)) if value}
    page = _call("GET", "/v1/deliveries", wanted)
    if as_json:
        typer.echo(json.dumps(page))
        return
    if not page["deliveries"]:
        Console().print("no alert was raised" if not wanted else "no delivery is like that")
        return
    table = Table("alert", "tenant", "endpoint", "status", "attempts", "last error", box=box.SIMPLE)
    for held in page["deliveries"]:
        table.add_row(
            escape(held["alert_id"]),
            escape(held["tenant"]),
            escape(held["endpoint_id"]),
            _coloured(held["status"]),
            str(held["attempts"]),
            escape(held["last_error"] or ""),
        )
    Console().print(table)


@app.command()
def show(alert: Annotated[str, typer.Argument(help="The alert's id (see `taximeter alerts list`).")]) -> None:
    """Show an alert as it is sent, and what became of it at each endpoint."""
    console = Console()
    for held in _call("GET", f"/v1/alerts/{_quoted(alert)}")["deliveries"]:
        when = held["finished_at"] or f"next attempt {held['next_attempt_at']}"
        trouble = f": {held['last_error']}" if held["last_error"] else ""
        console.print(
            f"[bold]{escape(held['endpoint_id'])}[/] {_coloured(held['status'])}, {held['attempts']} attempts,"
            f" {escape(str(when))}{escape(trouble)}",
            soft_wrap=True,
        )
        console.print_json(json.dumps(held["body"]))


@app.command()
def replay(
    alert: Annotated[str, typer.Argument(help="The alert's id; without it, all that failed at --endpoint.")] = "",
    endpoint: Annotated[str, typer.Option(help="Only to that endpoint.")] = "",
) -> None:
    """Send an alert once more, whether it failed or was delivered; or everything that failed at an endpoint."""
    if not alert and not endpoint:
        raise typer.BadParameter("name an alert, an --endpoint, or both")
    if alert:
        replayed = _call("POST", f"/v1/alerts/{_quoted(alert)}/replay", {"endpoint": endpoint} if endpoint else {})
        count = len(replayed["replayed"])
    else:
        count = _call("POST", f"/v1/endpoints/{_quoted(endpoint)}/replay")["replayed"]
    Console().print(f"{count} {'delivery' if count == 1 else 'deliveries'} will be sent again")


@app.command()
def endpoints() -> None:
    """List the endpoints, and why those that were given up were."""
    table = Table("endpoint", "tenant", "format", "state", "since", "reason", box=box.SIMPLE)
    for held in _call("GET", "/v1/endpoints")["endpoints"]:
        state = "[red]disabled[/]" if held["disabled"] else "[green]active[/]"
        since, reason = held["disabled_at"] or "", held["reason"] or ""
        table.add_row(
            escape(held["id"]), escape(held["tenant"] or "(all)"), held["format"], state, since, escape(reason)
        )
    Console().print(table)


@app.command()
def enable(endpoint: Annotated[str, typer.Argument(help="The endpoint's id.")]) -> None:
    """Take an endpoint back that was given up; what waits for it goes out in order."""
    done = _call("POST", f"/v1/endpoints/{_quoted(endpoint)}/enable")["enabled"]
    Console().print(f"{escape(endpoint)} " + ("is enabled" if done else "was not given up"), soft_wrap=True)


def _call(method: str, path: str, query: dict[str, str] | None = None) -> Any:
    settings = AlertsClientSettings()
    address = settings.address + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
    headers = {"authorization": f"Bearer {settings.admin_token.get_secret_value()}"}
    try:
        request = urllib.request.Request(address, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS_MAX) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        _fail(_message(text) or f"HTTP {error.code}")
    except OSError as error:
        _fail(f"the alerts service does not answer at {settings.address}: {error}")


def _fail(message: str) -> None:
    Console(stderr=True).print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _coloured(status: str) -> str:
    return f"[{_COLOURS.get(status, 'white')}]{status}[/]"
