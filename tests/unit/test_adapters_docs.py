"""docs/how-to/adapters.md: every example in Python compiles, those without OpenTelemetry run, and the curl example is taken."""

import asyncio
import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from rich.console import Console

import taximeter
from taximeter.cli.trace_turn import TracedEvent, turns_of
from taximeter.cli.trace_view import turn_table
from taximeter_producers import UsageProducer, adapters
from taximeter_producers.ingest.app import build_app
from taximeter_producers.ingest.settings import IngestSettings

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "adapters.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "litellm_calls.json").read_text())[0]


class CustomLogger:
    """LiteLLM's class."""


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[UsageProducer]:
    """LiteLLM as its callbacks see it, and producers that spool into a folder of their own; those made are returned."""
    made: list[UsageProducer] = []

    class Spooling(UsageProducer):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings | {"bootstrap_servers": "127.0.0.1:1", "spool_dir": tmp_path})
            made.append(self)

    package, integrations = ModuleType("litellm"), ModuleType("litellm.integrations.custom_logger")
    integrations.__dict__["CustomLogger"] = CustomLogger

    def completion(*, metadata: dict[str, str], **_call: object) -> None:
        said = dict(RECORDED["kwargs"], litellm_params={"metadata": metadata})
        for callback in package.__dict__["callbacks"]:
            callback.log_success_event(kwargs=said, response_obj=RECORDED["response"], start_time=None, end_time=None)

    package.__dict__["completion"] = completion
    for name, module in (
        ("litellm", package),
        ("litellm.integrations", ModuleType("i")),
        (integrations.__name__, integrations),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(taximeter, "UsageProducer", Spooling)
    return made


@pytest.mark.parametrize("text", PYTHON, ids=range(len(PYTHON)))
def test_the_examples_in_python(
    text: str, surroundings: list[UsageProducer], capsys: pytest.CaptureFixture[str]
) -> None:
    code = compile(text, "adapters.md", "exec")
    if "opentelemetry" in text:
        return
    names: dict[str, Any] = {}
    exec(code, names)
    said = re.findall(r"print\(.*\)  # (.+)", text)
    assert capsys.readouterr().out.splitlines() == said
    if "metadata=" in text:
        assert surroundings[0].state().spool_bytes > 0
    if "handler" in names:
        assert names["handler"].unmetered == 0
    for producer in surroundings:
        producer.close()


def test_the_curl_example_is_taken(tmp_path: Path) -> None:
    (body,) = re.findall(r"-d '(.*?)'$", PAGE, re.MULTILINE | re.DOTALL)
    taken = post(tmp_path, body)
    assert (taken.status_code, taken.json()) == (200, {})
    refused = post(tmp_path, body.replace("taximeter.tenant", "nobody")).json()
    said = re.search(r'"errorMessage":"(.*?)"', PAGE, re.DOTALL)
    assert said is not None
    assert refused["partialSuccess"]["errorMessage"] == said[1].replace("\n", " ")


def post(folder: Path, body: str) -> httpx.Response:
    async def send(app: Callable[..., Any]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://ingest") as client:
            return await client.post("/v1/traces", content=body, headers={"content-type": "application/json"})

    with UsageProducer(bootstrap_servers="127.0.0.1:1", producer_id="ingest", spool_dir=folder) as producer:
        return asyncio.run(send(build_app(IngestSettings.model_validate({"state_dir": folder}), producer)))


def test_the_turn_that_is_shown_is_what_the_command_draws() -> None:
    turn = [
        traced(0, 0, "embedding", "embedder", (8, 0, 0), 160_000, "completed", 12),
        traced(1, 0, "rerank", "reranker", (400, 0, 0), 20_000_000, "completed", 31),
        traced(2, 0, "chat", "generator", (1_000, 0, 0), 2_000_000_000, "error", 900),
        traced(2, 1, "chat", "generator", (300, 700, 50), 1_240_000_000, "completed", 1_204),
    ]
    console = Console(width=84, file=StringIO(), force_terminal=False)
    for one in turns_of("turn-1", turn):
        console.print(turn_table(one))
    drawn = console.file.getvalue() if isinstance(console.file, StringIO) else ""
    shown = PAGE[PAGE.index("turn turn-1") :].partition("```")[0]
    assert [line.strip() for line in drawn.splitlines() if line.strip()] == [
        line.strip() for line in shown.splitlines()
    ]


def traced(
    hop: int, attempt: int, operation: str, model: str, tokens: tuple[int, int, int], cost: int, outcome: str, ms: float
) -> TracedEvent:
    uncached, cached, output = tokens
    counts = dict.fromkeys(fields_of_tokens(), 0) | {
        "uncached_input": uncached, "cache_read_gpu": cached, "output": output
    }  # fmt: skip
    return TracedEvent(
        tenant="acme", root_request_id="turn-1", request_id=f"r{hop}{attempt}", hop=hop, attempt=attempt, source="s",
        event_id=f"r{hop}{attempt}", time=datetime(2026, 11, 24, tzinfo=UTC), feature="chat", operation=operation,
        model=model, adapter="", outcome=outcome, disposition="rated", reason="", currency="USD", rate_card="c@1",
        list_pico=cost, metered_pico=cost, total_ms=ms, parent_request_id="", **counts,
    )  # fmt: skip


def fields_of_tokens() -> list[str]:
    names = [one.name for one in fields(TracedEvent)]
    return names[names.index("uncached_input") : names.index("currency")]


def test_every_function_and_setting_is_on_the_page() -> None:
    for name in adapters.__all__:
        if name.startswith("tokens_from_"):
            assert f"`{name}`" in PAGE
    for field in IngestSettings.model_fields:
        if field.startswith("otlp_") and field.endswith("attributes"):
            assert f"TAXIMETER_{field.upper()}" in PAGE
