"""One turn over real processes: two hops through the gateway, one reported as a GenAI span; `taximeter trace` shows the whole."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from taximeter.cli.trace import command
from taximeter.demo.run import EXAMPLE
from taximeter.embedded.billing_desk import BillingDesk
from taximeter.embedded.settling import wait_until_metered
from taximeter.embedded.stack import Stack

pytestmark = pytest.mark.stack
ROOT = "turn-of-acme-1"
SECONDS_MAX = 60.0
APP = typer.Typer()
APP.command("trace")(command)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "data", random_ports=True) as running:
        yield running


def ask_gateway(stack: Stack, key: str, hop: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}", "x-taximeter-feature": "ask"}
    headers |= {"x-taximeter-root-request-id": ROOT, "x-taximeter-hop": str(hop)}
    url = stack.addresses.urls["gateway"] + path
    response = httpx.post(url, json=body, headers=headers, timeout=SECONDS_MAX, trust_env=False)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def export_span(stack: Stack, hop: int, model: str, uncached: int, output: int) -> None:
    now = time.time_ns()
    said: dict[str, str | int] = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm", "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": uncached, "gen_ai.usage.output_tokens": output, "taximeter.tenant": "acme",
        "taximeter.feature": "ask", "taximeter.root_request_id": ROOT, "taximeter.hop": hop,
    }  # fmt: skip
    attributes = [
        {"key": name, "value": {"intValue" if isinstance(value, int) else "stringValue": value}}
        for name, value in said.items()
    ]
    span = {"traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "spanId": "00f067aa0ba902b7", "attributes": attributes}
    span |= {"startTimeUnixNano": str(now - 10**9), "endTimeUnixNano": str(now)}
    response = httpx.post(
        stack.addresses.urls["ingest"] + "/v1/traces",
        json={"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]},
        headers={"authorization": f"Bearer {stack.secrets['TAXIMETER_INGEST_TOKEN']}"},
        timeout=SECONDS_MAX,
        trust_env=False,
    )
    assert (response.status_code, response.json()) == (200, {}), response.text


def test_one_root_three_hops_three_prices_one_sum(stack: Stack) -> None:
    desk = BillingDesk(stack)
    desk.apply(EXAMPLE)
    key = desk.make_keys(["acme"])["acme"]
    embedded = ask_gateway(stack, key, 0, "/v1/embeddings", {"model": "embed-small", "input": "How much is a token?"})
    messages = [{"role": "user", "content": "How much is a token?"}]
    body = {"model": "llama-3.1-8b", "messages": messages, "max_tokens": 20}
    chosen = ask_gateway(stack, key, 1, "/v1/chat/completions", body)
    export_span(stack, 2, "llama-3.1-70b", uncached=100, output=10)
    wait_until_metered(stack)

    environment = {"TAXIMETER_CLICKHOUSE_URL": stack.addresses.clickhouse_url}
    shown = CliRunner().invoke(APP, [ROOT, "--json"], env=environment)
    assert shown.exit_code == 0, shown.stderr
    (turn,) = json.loads(shown.stdout)
    hops = turn["hops"]
    assert [(hop["hop"], hop["attempts"][0]["model"], hop["attempts"][0]["operation"]) for hop in hops] == [
        (0, "embed-small", "embedding"),
        (1, "llama-3.1-8b", "chat"),
        (2, "llama-3.1-70b", "chat"),
    ]
    # The example's prices, in pico-USD a token.
    cost = [
        embedded["usage"]["prompt_tokens"] * 20_000 + 1_000_000,
        chosen["usage"]["prompt_tokens"] * 200_000 + chosen["usage"]["completion_tokens"] * 600_000,
        100 * 2_400_000 + 10 * 7_200_000,
    ]
    assert [hop["cost_pico"] for hop in hops] == [{"USD": amount} for amount in cost]
    assert (turn["cost_pico"], turn["unpriced"]) == ({"USD": sum(cost)}, 0)
