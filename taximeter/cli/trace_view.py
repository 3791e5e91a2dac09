"""A turn for the terminal and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from rich import box
from rich.table import Table
from rich.text import Text

from taximeter.cli.trace_turn import Hop, TracedEvent, Turn, cost_pico, unpriced
from taximeter_schemas.money import format_pico


def turn_table(turn: Turn) -> Table:
    """The tree: a line for each hop, and for each attempt where a hop has several; the sum by currency at the end."""
    title = f"turn {turn.root_request_id}  ({turn.tenant})"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, show_footer=True, padding=(0, 1, 0, 0)
    )
    table.add_column("hop", "sum", footer_style="bold", no_wrap=True)
    table.add_column("model", overflow="fold")
    counted = [event for event in turn.events if event.is_counted]
    sums = (
        sum(event.input for event in counted),
        sum(event.cached for event in counted),
        sum(event.output for event in counted),
    )
    for name, number in zip(("input", "cached", "output"), sums, strict=True):
        table.add_column(name, f"{number:,}", justify="right", no_wrap=True, footer_style="bold")
    places = _places(turn.events)
    table.add_column("cost", _sum_text(turn.events, places), justify="right", no_wrap=True, footer_style="bold")
    table.add_column("ended", no_wrap=True)
    for prefix, hop in _lines(turn.hops, ""):
        _add_hop(table, prefix, hop, places)
    return table


def turn_json(turn: Turn) -> dict[str, object]:
    """The same for machines; amounts are whole pico-units."""
    return {
        "root_request_id": turn.root_request_id,
        "tenant": turn.tenant,
        "hops": [_hop_json(hop) for hop in turn.hops],
        "cost_pico": cost_pico(turn.events),
        "unpriced": unpriced(turn.events),
    }


def _hop_json(hop: Hop) -> dict[str, object]:
    return {
        "hop": hop.number,
        "attempts": [_event_json(event) for event in hop.events],
        "cost_pico": cost_pico(hop.events),
        "below": [_hop_json(below) for below in hop.below],
    }


def _event_json(event: TracedEvent) -> dict[str, object]:
    values = {name: getattr(event, name) for name in (one.name for one in fields(event))}
    return values | {"time": event.time.isoformat()}


def _lines(hops: Sequence[Hop], indent: str) -> Iterator[tuple[tuple[str, str], Hop]]:
    """Each hop with what stands before it, and before the lines that belong to it."""
    for place, hop in enumerate(hops):
        is_last = place == len(hops) - 1
        inner = indent + ("   " if is_last else "│  ")
        yield (indent + ("└─ " if is_last else "├─ "), inner), hop
        yield from _lines(hop.below, inner)


def _places(events: Sequence[TracedEvent]) -> dict[str, int]:
    """As many decimals as the longest amount of each currency has, so that points stand below each other."""
    places: dict[str, int] = {}
    for event in events:
        if event.is_priced:
            fraction = format_pico(event.metered_pico, event.currency).partition(" ")[0].partition(".")[2]
            places[event.currency] = max(len(fraction), places.get(event.currency, 0))
    return places


def _add_hop(table: Table, prefix: tuple[str, str], hop: Hop, places: Mapping[str, int]) -> None:
    first, inner = prefix
    if len(hop.events) == 1:
        _add_event(table, f"{first}{hop.number} {hop.events[0].operation}", hop.events[0], places)
        return
    table.add_row(f"{first}{hop.number} {hop.events[0].operation}", "", "", "", "", _sum_text(hop.events, places), "")
    bar = "│  " if hop.below else ""
    for event in hop.events:
        _add_event(table, f"{inner}{bar}attempt {event.attempt}", event, places)


def _add_event(table: Table, label: str, event: TracedEvent, places: Mapping[str, int]) -> None:
    model = f"{event.model} + {event.adapter}" if event.adapter else event.model
    counts = [f"{number:,}" for number in (event.input, event.cached, event.output)]
    if event.is_priced:
        cost = Text(format_pico(event.metered_pico, event.currency, places[event.currency]))
    else:
        cost = Text(f"{event.disposition}: {event.reason}", style="yellow" if event.is_counted else "red")
    ended = [] if event.outcome == "completed" else [event.outcome]
    if event.total_ms is not None:
        ended.append(_duration(event.total_ms))
    table.add_row(label, model, *counts, cost, " ".join(ended) or event.outcome)


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 999.5 else f"{milliseconds / 1_000:,.1f} s"


def _sum_text(events: Sequence[TracedEvent], places: Mapping[str, int]) -> str:
    amounts = [format_pico(amount, currency, places.get(currency)) for currency, amount in cost_pico(events).items()]
    if missing := unpriced(events):
        amounts.append(f"{missing} without a price")
    return "\n".join(amounts) or "nothing"
