"""`make bench-budget`: who lets how much through when 200 requests come at once and the budget pays for 20.

Both gateways stand before the same upstream, which says what it truly served. A race has two parts: all requests at once,
then further ones that come again when they are refused, until the time is over: what a budget still pays for must be usable.
"""

import argparse
import secrets
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from json import load
from pathlib import Path

import uvloop

from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.stack import Stack
from taximeter_schemas.budgets import BudgetState
from taximeter_schemas.topics import BUDGET_STATE
from tests.benchmarks import gateway_load
from tests.benchmarks.gateway_contestants import (
    INPUT_PICO,
    MODEL,
    OUTPUT_PICO,
    Contestant,
    Key,
    await_answer,
    fake_upstream,
    litellm,
    ours,
    running,
    service,
)
from tests.benchmarks.gateway_report import keep, table
from tests.benchmarks.gateway_upstream import WORD
from tests.topic_reader import read_topic

PAYABLE, AT_ONCE, AFTERWARDS = 20, 200, 40
PROMPT_TOKENS, OUTPUT_TOKENS = 100, 50
AGAIN_SECONDS = 12.0
SETTLE_SECONDS = 3.0
ABORTED_STREAMS = 20
ABORTED_BYTES = 4_000


@dataclass(frozen=True)
class Row:
    """A race: how many gateways, whether the client says `max_tokens`, and how the upstream counts prompts."""

    title: str
    gateways: int = 1
    max_tokens: bool = True
    prompt_factor: int = 1
    tokenizer: int = 1


ROWS = (
    Row("1 gateway, `max_tokens`"),
    Row("1 gateway, no `max_tokens`", max_tokens=False),
    Row("1 gateway, the upstream counts 5 tokens a word", prompt_factor=5),
    Row("the same, and the upstream has no `/tokenize`", prompt_factor=5, tokenizer=0),
    Row("2 gateways, `max_tokens`", gateways=2),
    Row("2 gateways, no `max_tokens`", gateways=2, max_tokens=False),
    Row("8 gateways, `max_tokens`", gateways=8),
    Row("8 gateways, no `max_tokens`", gateways=8, max_tokens=False),
)


@dataclass(frozen=True)
class Ran:
    """What came of a race: requests served, and what the upstream truly served in parts of the budget."""

    at_once: int
    afterwards: int
    share: float

    def cells(self) -> list[str]:
        """For the table."""
        return [str(self.at_once), str(self.at_once + self.afterwards), f"{self.share:.0%}"]


class Upstream:
    """The upstream's manner, and the true cost of what it served."""

    def __init__(self, url: str) -> None:
        self._url = url

    def set(self, **manner: int) -> None:
        """Change how it answers."""
        query = "&".join(f"{name}={value}" for name, value in manner.items())
        with urllib.request.urlopen(f"{self._url}/set?{query}", timeout=10):
            pass

    def cost_pico(self) -> int:
        """What all it served costs at the price list of both sides."""
        with urllib.request.urlopen(f"{self._url}/stats", timeout=10) as response:
            served = load(response)
        return int(served["prompt_tokens"] * INPUT_PICO + served["output_tokens"] * OUTPUT_PICO)


def race(contestant: Contestant, upstream: Upstream, row: Row) -> Ran:
    """Run one row. The upstream takes 100 ms, so that all requests are under way together."""
    upstream.set(
        output_tokens=OUTPUT_TOKENS, prompt_factor=row.prompt_factor, tokenizer=row.tokenizer, delay_ms=100, chunk_ms=0
    )
    cost_pico = PROMPT_TOKENS * row.prompt_factor * INPUT_PICO + OUTPUT_TOKENS * OUTPUT_PICO
    key = contestant.new_key(PAYABLE * cost_pico)
    urls = contestant.urls[: row.gateways]
    before = upstream.cost_pico()
    request = _request(urls[0], key, contestant.headers, {"max_tokens": OUTPUT_TOKENS} if row.max_tokens else {})
    first = uvloop.run(gateway_load.all_at_once(urls, request, AT_ONCE))
    second = uvloop.run(gateway_load.all_at_once(urls, request, AFTERWARDS, AGAIN_SECONDS))
    served_pico = upstream.cost_pico() - before
    return Ran(first.served, second.served, served_pico / (PAYABLE * cost_pico))


def abort(contestant: Contestant, upstream: Upstream) -> str:
    """Streams that their clients leave in the middle: what is booked for them, over what the upstream had made."""
    upstream.set(output_tokens=400, prompt_factor=1, tokenizer=1, delay_ms=0, chunk_ms=10)
    key = contestant.new_key(10**15)
    before = upstream.cost_pico()
    request = _request(contestant.urls[0], key, contestant.headers, {"stream": True, "max_tokens": 400})
    begun = uvloop.run(gateway_load.abort(contestant.urls[0], request, ABORTED_STREAMS, ABORTED_BYTES))
    assert begun == ABORTED_STREAMS, f"{begun} streams began"
    time.sleep(SETTLE_SECONDS)
    truth = upstream.cost_pico() - before
    booked = contestant.booked_pico(key)
    return f"{booked / truth - 1:+.1%}"


def _request(url: str, key: Key, headers: Mapping[str, str], fields: Mapping[str, object]) -> bytes:
    # A word of its own for each race: what a gateway remembers of one prompt does not help it with the next.
    text = f"race-{secrets.token_hex(4)} " + WORD * (PROMPT_TOKENS - 1)
    messages = [{"role": "user", "content": text}]
    return gateway_load.request_bytes(url, key.secret, {"model": MODEL, "messages": messages, **fields}, headers)


@contextmanager
def gateways_of(folder: Path, upstream: str, count: int) -> Iterator[tuple[Stack, list[str]]]:
    """Our whole stack, with that many gateways: the stack, and where they listen."""
    environment = {"TAXIMETER_UPSTREAM_URL": upstream}
    with Stack(folder, random_ports=True, environment=environment) as stack:
        more: list[tuple[str, ChildProcess]] = []
        for number in range(2, count + 1):
            name = f"gateway-{number}"
            named = {
                **stack.service_environment,
                "TAXIMETER_GATEWAY_ID": name,
                "TAXIMETER_STATE_DIR": str(folder / name),
            }
            more.append(service(name, "taximeter_inference.gateway", "TAXIMETER_GATEWAY_PORT", named, folder))
        with running([child for _, child in more]):
            for url, child in more:
                await_answer(f"{url}/readyz", child)
            yield stack, [stack.addresses.urls["gateway"], *(url for url, _ in more)]


@contextmanager
def taximeter(folder: Path, upstream: str, count: int) -> Iterator[Contestant]:
    """Our gateways as contestants of a race."""
    with gateways_of(folder, upstream, count) as (stack, urls):
        bootstrap_servers = stack.addresses.kafka
        yield ours(urls, [], bootstrap_servers, lambda key: _posted_pico(bootstrap_servers, key.account))


def _posted_pico(bootstrap_servers: str, tenant: str) -> int:
    """What the keeper has posted for the tenant, once nothing is on its way any more."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        states = [
            BudgetState.model_validate_json(message.value() or b"")
            for message in read_topic(bootstrap_servers, BUDGET_STATE.name)
            if message.key() == tenant.encode()
        ]
        if states and states[-1].positions[0].spent_pico and not states[-1].positions[0].leased_pico:
            return states[-1].positions[0].spent_pico
        time.sleep(0.5)
    raise RuntimeError(f"spend of {tenant} is not settled")


def main() -> None:
    """Run every row for both, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--litellm-python", type=Path, help="Python of the environment with LiteLLM; without it, ours alone"
    )
    parser.add_argument("--gateways", type=int, default=max(row.gateways for row in ROWS), help="at most so many")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if row.gateways <= arguments.gateways]
    results: dict[str, list[list[str]]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(fake_upstream(folder))
        with taximeter(folder / "ours", url, arguments.gateways) as contestant:
            results["Taximeter"] = _run(contestant, Upstream(url), rows)
        if arguments.litellm_python is not None:
            with litellm(folder / "litellm", arguments.litellm_python, url, arguments.gateways) as contestant:
                results["LiteLLM"] = _run(contestant, Upstream(url), rows)
    keep("budget", report(rows, results))


def _run(contestant: Contestant, upstream: Upstream, rows: Sequence[Row]) -> list[list[str]]:
    cells = []
    for row in rows:
        ran = race(contestant, upstream, row)
        print(f"{contestant.name}: {row.title}: {ran.cells()}", file=sys.stderr, flush=True)
        cells.append(ran.cells())
    cells.append(["", "", abort(contestant, upstream)])
    return cells


def report(rows: Sequence[Row], results: Mapping[str, list[list[str]]]) -> str:
    """The table, with a line on how it came about."""
    columns = ["", "payable"]
    for name in results:
        columns += [f"{name}: at once", f"{name}: in all", f"{name}: of the budget"]
    lines = [
        [row.title, str(PAYABLE), *(cell for of_one in results.values() for cell in of_one[number])]
        for number, row in enumerate(rows)
    ]
    aborted = [f"{ABORTED_STREAMS} streams aborted: booked over true cost", ""]
    lines.append([*aborted, *(cell for of_one in results.values() for cell in of_one[-1])])
    intro = (
        f"{AT_ONCE} requests at once under a budget that pays for {PAYABLE}, then {AFTERWARDS} more that come again for"
        f" {AGAIN_SECONDS:g} s where they are refused. Served at once, served in all, and the true cost of all that the"
        " upstream served in parts of the budget: above 100% is overspent, below is not usable."
    )
    return f"{intro}\n\n{table(columns, lines)}"


if __name__ == "__main__":
    main()
