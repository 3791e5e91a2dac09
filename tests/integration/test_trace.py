"""`taximeter trace`: the tree of a turn from the warehouse, as the command prints it; an unknown id; a warehouse that is away."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from clickhouse_connect.driver.client import Client
from typer.testing import CliRunner, Result

from taximeter.cli.trace import command as trace_command
from taximeter_producers.adapters.otlp_json import spans_from_json
from taximeter_producers.adapters.spans import TagNames, read_spans
from taximeter_producers.adapters.turns import Turns
from taximeter_producers.producer import encode_event
from taximeter_schemas import wire
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.rating import Rated, rate
from taximeter_sql import connect, migrate
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.folding import Examined, Folded, Received
from taximeter_streams.meter.warehouse import Warehouse
from tests.face_process import FaceProcess
from tests.usage_events import usage

RECORDED = Path(__file__).parents[1] / "recorded" / "otlp_turn.json"
AT = datetime(2026, 11, 24, 8, tzinfo=UTC)
# Pico-units a token: 1 USD a million is 1,000,000.
PRICES = (
    Price(model="embedder", uncached_input=20_000),
    Price(model="reranker", uncached_input=50_000),
    Price(model="generator", uncached_input=2_000_000, cache_read_gpu=200_000, output=10_000_000),
    Price(model="text-embedding-3-small", uncached_input=20_000),
    Price(model="gpt-4o", uncached_input=2_500_000, cache_read_provider=1_250_000, output=10_000_000),
)


def card(currency: str) -> RateCard:
    return RateCard(
        id="default",
        version=1,
        currency=currency,
        effective_from=AT - timedelta(days=30),
        recorded_at=AT,
        prices=PRICES,
    )


def examined(offset: int, payload: bytes, currency: str = "USD", rejected: str = "") -> Examined:
    """A message as the meter folds it, with the price of the card."""
    event = wire.decode(payload)
    row = Examined(
        Received(offset, int(AT.timestamp() * 1000), payload), event, wire.identity_hash(event), wire.body_hash(event)
    )
    if rejected:
        row.reason = rejected
        return row
    cost = rate(card(currency), event.data)
    if not isinstance(cost, Rated):
        row.disposition, row.reason = "unrated", cost.reason
        return row
    row.disposition, row.rate_card, row.currency = "rated", cost.rate_card, cost.currency
    row.list_pico, row.metered_pico = cost.list_pico, cost.metered_pico
    return row


def hop(request_id: str, number: int, model: str, operation: str, **data: Any) -> bytes:
    """A request of the turn `turn-1`."""
    tags = {
        "request_id": request_id,
        "root_request_id": "turn-1",
        "hop": number,
        "model": model,
        "operation": operation,
    }
    return json.dumps(usage(request_id, **tags | {"timing": {"total_ms": 12.5}} | data)).encode()


MESSAGES: list[tuple[Any, ...]] = [
    (hop("e", 0, "embedder", "embedding", tokens={"uncached_input": 8}),),
    (hop("r", 1, "reranker", "rerank", tokens={"uncached_input": 400}),),
    # The generator failed once; what it had used counts.
    (hop("g0", 2, "generator", "chat", outcome="error", tokens={"uncached_input": 1_000}),),
    (
        hop(
            "g1",
            2,
            "generator",
            "chat",
            attempt=1,
            tokens={"uncached_input": 300, "cache_read": {"gpu": 700}, "output": 50},
        ),
    ),
    # A tool of the generator asked another model, which has no price yet.
    (
        hop(
            "t",
            3,
            "unpriced",
            "chat",
            tokens={"uncached_input": 5, "output": 5},
            attributes={"parent_request_id": "g1"},
        ),
    ),
    (hop("x", 4, "embedder", "embedding", tokens={"uncached_input": 9}), "USD", "time_out_of_range"),
    (hop("y", 5, "embedder", "embedding", tokens={"uncached_input": 10}), "EUR"),
    # Another tenant has a turn of the same name; another turn is not shown.
    (json.dumps(usage("o", tenant="globex", root_request_id="turn-1", model="embedder")).encode(),),
    (json.dumps(usage("p", request_id="req-p", root_request_id="turn-2", model="embedder")).encode(),),
    (
        json.dumps(usage("q", request_id="req-q", model="embedder", tokens={"uncached_input": 3})).encode(),
    ),  # its own root
]


@pytest.fixture
def database(clickhouse: FaceProcess, unique_database: str) -> Iterator[tuple[Client, str]]:
    url = clickhouse.url(unique_database)
    with connect(url) as client:
        migrate(client)
        rows = [examined(offset, *message) for offset, message in enumerate(MESSAGES)]
        Warehouse(client, "log").insert(build_columns(Folded(rows), "log", 0))
        yield client, url


APP = typer.Typer()
APP.command("trace")(trace_command)


def trace(url: str, *arguments: str) -> Result:
    """The command in this process; one test below starts the real one."""
    environment = {"TAXIMETER_CLICKHOUSE_URL": url, "COLUMNS": "120", "TERM": "dumb"}
    return CliRunner().invoke(APP, list(arguments), env=environment)


def test_a_turn_is_a_tree_with_what_each_hop_cost(database: tuple[Client, str]) -> None:
    shown = trace(database[1], "turn-1", "--tenant", "acme", "--json")
    assert (shown.exit_code, shown.stderr) == (0, "")
    (turn,) = json.loads(shown.stdout)
    assert (turn["root_request_id"], turn["tenant"]) == ("turn-1", "acme")
    assert [top["hop"] for top in turn["hops"]] == [0, 1, 2, 4, 5]
    embedding, rerank, generated, refused, other = turn["hops"]
    assert embedding["cost_pico"] == {"USD": 8 * 20_000}
    assert rerank["cost_pico"] == {"USD": 400 * 50_000}
    assert [(one["attempt"], one["outcome"]) for one in generated["attempts"]] == [(0, "error"), (1, "completed")]
    first, second = 1_000 * 2_000_000, 300 * 2_000_000 + 700 * 200_000 + 50 * 10_000_000
    assert generated["cost_pico"] == {"USD": first + second}
    assert [one["metered_pico"] for one in generated["attempts"]] == [first, second]
    (tool,) = generated["below"]
    assert (tool["hop"], tool["cost_pico"], tool["attempts"][0]["reason"]) == (3, {}, "unknown_model")
    assert (refused["cost_pico"], refused["attempts"][0]["disposition"]) == ({}, "rejected")
    assert other["cost_pico"] == {"EUR": 10 * 20_000}
    # Currencies are never added; what has no price is not nothing.
    assert turn["cost_pico"] == {"EUR": 200_000, "USD": 160_000 + 20_000_000 + first + second}
    assert turn["unpriced"] == 1


def test_the_tree_is_drawn(database: tuple[Client, str]) -> None:
    shown = trace(database[1], "turn-1", "--tenant", "acme")
    assert shown.exit_code == 0, shown.stderr
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert lines[0] == "turn turn-1 (acme)"
    for expected in (
        "├─ 0 embedding embedder 8 0 0 0.00000016 USD 12 ms",
        "├─ 1 rerank reranker 400 0 0 0.00002000 USD 12 ms",
        "├─ 2 chat 0.00324000 USD",
        "│ │ attempt 0 generator 1,000 0 0 0.00200000 USD error 12 ms",
        "│ │ attempt 1 generator 1,000 700 50 0.00124000 USD 12 ms",
        "│ └─ 3 chat unpriced 5 0 5 unrated: unknown_model 12 ms",
        "├─ 4 embedding embedder 9 0 0 rejected: time_out_of_range 12 ms",
        "└─ 5 embedding embedder 10 0 0 0.0000002 EUR 12 ms",
        "sum 2,423 700 55 0.0000002 EUR",
        "0.00326016 USD",
        "1 without a price",
    ):
        assert expected in lines, shown.stdout


def test_each_tenant_has_its_own_turn(database: tuple[Client, str]) -> None:
    both = json.loads(trace(database[1], "turn-1", "--json").stdout)
    assert [turn["tenant"] for turn in both] == ["acme", "globex"]


def test_a_request_without_a_root_is_its_own_turn(database: tuple[Client, str]) -> None:
    (turn,) = json.loads(trace(database[1], "req-q", "--json").stdout)
    assert turn["cost_pico"] == {"USD": 60_000}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("turn-9",), "no turn is called 'turn-9'"),
        (("turn-1", "--tenant", "initech"), "no turn is called 'turn-1'"),
        (("turn-1", "--since", "2026-11-25"), "no turn is called 'turn-1'"),  # it arrived before
        (("req-p",), "'req-p' is a request of another turn; ask for: taximeter trace turn-2"),
    ],
)
def test_a_turn_that_is_not_there_is_an_error(
    database: tuple[Client, str], asked: tuple[str, ...], message: str
) -> None:
    shown = trace(database[1], *asked)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert f"error: {message}" in shown.stderr


def test_a_warehouse_that_is_away_is_said() -> None:
    shown = trace("http://default:@127.0.0.1:1/nothing", "turn-1")
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "does not answer" in shown.stderr


def test_the_real_command(database: tuple[Client, str]) -> None:
    environment = os.environ | {"TAXIMETER_CLICKHOUSE_URL": database[1]}
    for asked, code in (("req-q", 0), ("turn-9", 1)):
        command = [sys.executable, "-m", "taximeter", "trace", asked, "--json"]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert shown.returncode == code
        assert bool(shown.stdout) is (code == 0)
        assert ("no turn is called" in shown.stderr) is (code == 1)


def test_a_turn_of_spans_is_traced_by_its_trace_id(database: tuple[Client, str]) -> None:
    client, url = database
    events = read_spans(spans_from_json(RECORDED.read_bytes()), TagNames(), Turns()).events
    rows = [examined(100 + number, encode_event(event)) for number, event in enumerate(events)]
    Warehouse(client, "log").insert(build_columns(Folded(rows), "log", 0))
    (turn,) = json.loads(trace(url, events[0].data.root_request_id or "", "--json").stdout)
    assert [(top["hop"], top["attempts"][0]["model"]) for top in turn["hops"]] == [
        (0, "text-embedding-3-small"), (1, "gpt-4o"), (2, "claude-sonnet-4-5")
    ]  # fmt: skip
    assert turn["cost_pico"] == {"USD": 8 * 20_000 + 86 * 2_500_000 + 1920 * 1_250_000 + 300 * 10_000_000}
    assert turn["unpriced"] == 1  # the card has no price for the third
