"""One turn of a user over real vLLM: an embedding model, a reranker and a generator, each a worker that meters itself.

`make demo-vllm` runs it. The workers are vLLM for CPUs with tiny random models, so the answer says nothing; the counting,
the prices and the tree of the turn are real. This program stands where a gateway would, and signs the tags.
"""

import json
import os
import shutil
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console

from taximeter.cli.trace import command as trace
from taximeter.demo.vllm_worker import ENVIRONMENT, MODELS, PYTHON, SERVER, arguments, await_health, engine_totals
from taximeter.embedded.billing_desk import BillingDesk
from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.settling import wait_until_metered
from taximeter.embedded.stack import Stack, StackError
from taximeter_inference.forwarding import Forwarded, sign
from taximeter_schemas.events import Operation
from taximeter_sql import connect

SECRET = "a forwarding secret for the demo"
ANSWER_SECONDS_MAX, METERED_SECONDS_MAX = 120.0, 60.0
CONTEXT_TOKENS = 1_024
ROOT, TENANT, QUESTION = "turn-of-acme-1", "acme", "How much was the ride to the station?"
DOCUMENTS = [
    "A ride to the station is 14.20 at night.",
    "Luggage is free of charge.",
    "The station lies two miles from the town hall.",
]
COUNTERS = {"prompt_tokens": "input", "prompt_tokens_cached": "cached", "generation_tokens": "output"}
POOLING = ("--runner", "pooling")
WORKERS = {"embedder": (*POOLING, "--convert", "embed"), "reranker": POOLING, "generator": ()}
DECLARATIONS: dict[str, object] = {
    "rate_cards": [
        {
            "id": "standard",
            "version": 1,
            "currency": "USD",
            "effective_from": "2026-01-01T00:00:00Z",
            "prices": [
                {"model": "embedder", "uncached_input": "0.02"},
                {"model": "reranker", "uncached_input": "0.05"},
                {"model": "generator", "uncached_input": "0.20", "cache_read_gpu": "0.02", "output": "0.60"},
            ],
        }
    ],
    "tenants": [{"id": TENANT, "name": "Acme Stores", "rate_card": "standard"}],
}


def main() -> None:
    """Start everything, take the turn, show its tree. Exits 1 when a hop is missing."""
    console = Console()
    if not PYTHON.exists():
        console.print("vLLM is not there: run `make vllm` first")
        sys.exit(1)
    data = Path("data/demo-vllm").resolve()
    shutil.rmtree(data, ignore_errors=True)
    workers: dict[str, ChildProcess] = {}
    try:
        with console.status("starting the stack") as doing, Stack(data, random_ports=True) as stack:
            BillingDesk(stack).apply_content(DECLARATIONS)
            ports = {name: free_port() for name in WORKERS}
            doing.update("starting three vLLM workers (a minute or two)")
            workers |= {name: start(name, port, stack, data) for name, port in ports.items()}
            for name, port in ports.items():
                await_health(workers[name], port)
            doing.update("taking the turn")
            take_turn(console, ports)
            counted = [engine_totals(port, tuple(COUNTERS)) for port in ports.values()]
            doing.update("waiting until it is metered")
            stop(workers)
            wait_until_metered(stack)
            await_hops(stack, len(WORKERS))
            doing.stop()
            console.print(f"\n$ taximeter trace {ROOT}", style="bold", highlight=False)
            os.environ["TAXIMETER_CLICKHOUSE_URL"] = stack.addresses.clickhouse_url
            trace(ROOT)
            say_counted(console, counted)
    except StackError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        sys.exit(1)
    finally:
        stop(workers)


def start(name: str, port: int, stack: Stack, data: Path) -> ChildProcess:
    """Start a worker that meters itself into the stack's log."""
    environment = {
        **ENVIRONMENT,
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": stack.addresses.kafka,
        "TAXIMETER_WORKER_ID": name,
        "TAXIMETER_STATE_DIR": str(data / name),
        "TAXIMETER_FORWARDING_SECRET": SECRET,
        "TAXIMETER_SALT_SECRET": stack.secrets["TAXIMETER_SALT_SECRET"],
    }
    served = arguments((MODELS / name).resolve(), name, port, CONTEXT_TOKENS)
    command = (str(PYTHON.absolute()), *SERVER, *served, *WORKERS[name])
    worker = ChildProcess(name, command, environment, data / f"{name}.log")
    worker.start()
    return worker


def take_turn(console: Console, ports: dict[str, int]) -> None:
    """Embed the question and the documents, rerank them, answer from the best."""
    texts = {"model": "embedder", "input": [QUESTION, *DOCUMENTS]}
    ask(ports["embedder"], "/v1/embeddings", texts, 0, Operation.EMBEDDING)
    pairs = {"model": "reranker", "query": QUESTION, "documents": DOCUMENTS}
    ranked = ask(ports["reranker"], "/v1/rerank", pairs, 1, Operation.RERANK)
    best = ranked["results"][0]["document"]["text"]
    messages = [{"role": "system", "content": f"Answer from: {best}"}, {"role": "user", "content": QUESTION}]
    chat = {"model": "generator", "messages": messages, "max_tokens": 24}
    ask(ports["generator"], "/v1/chat/completions", chat, 2, Operation.CHAT)
    console.print(f"{TENANT} asked: {QUESTION}", highlight=False)
    console.print(
        f"{len(DOCUMENTS)} documents were embedded and ranked, and the best was answered from.", highlight=False
    )


def ask(port: int, path: str, body: dict[str, Any], hop: int, operation: Operation) -> dict[str, Any]:
    """One hop of the turn, with tags as a gateway signs them."""
    identity = f"demo:{hop}"
    tags = Forwarded(TENANT, "ask", identity, ROOT, f"tenant:{TENANT}", hop=hop, operation=operation)
    headers = {"content-type": "application/json", **dict(sign(tags, SECRET.encode(), int(time.time())))}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS_MAX) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def say_counted(console: Console, counted: list[list[int]]) -> None:
    """What the engines themselves counted, to be held against the tree's last line."""
    told = [
        f"{sum(of_each):,} {name}" for name, of_each in zip(COUNTERS.values(), zip(*counted, strict=True), strict=True)
    ]
    console.print(f"\nThe engines' own counters add up to {', '.join(told)}.", highlight=False)


def await_hops(stack: Stack, hops: int) -> None:
    """Wait until the turn's events are in the warehouse. Raises StackError."""
    deadline, found = time.monotonic() + METERED_SECONDS_MAX, 0
    with connect(stack.addresses.clickhouse_url) as client:
        while time.monotonic() < deadline:
            counted = client.query(
                "SELECT count() FROM usage_events WHERE root_request_id = {root:String}", parameters={"root": ROOT}
            )
            found = int(counted.result_rows[0][0])
            if found == hops:
                return
            time.sleep(0.2)
    raise StackError(f"{found} of {hops} hops are metered")


def stop(workers: dict[str, ChildProcess]) -> None:
    """Ask them to stop: their events are safe then."""
    for worker in workers.values():
        worker.stop()


if __name__ == "__main__":
    main()
