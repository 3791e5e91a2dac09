"""The second part of `make bench-budget`: how soon an alert arrives, and how soon a top-up is in effect, on the whole stack.

An alert's time runs from before the request whose usage crosses the threshold to the webhook's arrival: gateway, log, meter,
keeper, alerts service and back. A top-up's time runs from before it is recorded until each gateway has served a request.
"""

import http.client
import http.server
import json
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Engine

from taximeter.cli.apply import settings_from
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.declarations.applying import Publish
from taximeter_billing.keys import create_key
from taximeter_billing.operations import opened, publisher
from taximeter_billing.top_ups import Wanted, top_up
from taximeter_schemas.control import ControlRecord
from tests.benchmarks.budget_race import Upstream, gateways_of
from tests.benchmarks.gateway_contestants import MODEL, fake_upstream
from tests.benchmarks.gateway_report import keep, percentile, table

GATEWAYS = 8
ALERTS, TOP_UPS = 200, 20
BETWEEN_SECONDS = 0.1
SECONDS_MAX = 60.0
SECRET = "whsec_" + "c2VjcmV0" * 6
OUTPUT_TOKENS = 50


@dataclass
class Receiver:
    """A webhook endpoint that notes when each tenant's alert was raised and when it came, on the wall clock."""

    came: dict[str, float] = field(default_factory=dict)
    raised: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Listen, and yield the address."""
        came, raised = self.came, self.raised

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                at = time.time()
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                tenant = body["data"]["tenant"]
                raised.setdefault(tenant, datetime.fromisoformat(body["timestamp"]).timestamp())
                came.setdefault(tenant, at)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            server.server_close()


@dataclass
class Line:
    """A client's connection to one gateway."""

    url: str

    def __post_init__(self) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=SECONDS_MAX)

    def chat(self, key: str) -> int:
        """The status of a request that costs 51 tokens."""
        messages = [{"role": "user", "content": "token"}]
        body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": OUTPUT_TOKENS})
        headers = {"authorization": f"Bearer {key}", "x-taximeter-feature": "chat", "content-type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", body, headers)
        response = self._connection.getresponse()
        response.read()
        return response.status


@dataclass
class Desk:
    """Billing's side: declares tenants and makes keys."""

    book: Engine
    publish: Publish

    def declare(self, tenants: list[str], budget: dict[str, Any], endpoint: str) -> dict[str, str]:
        """Declare tenants with a budget each, and return their keys."""
        price = {"model": MODEL, "uncached_input": "1.00", "output": "4.00"}
        card = {"id": "bench", "version": 1, "effective_from": "2026-01-01T00:00:00Z", "prices": [price]}
        content = {
            "rate_cards": [card],
            "tenants": [{"id": name, "rate_card": "bench"} for name in tenants],
            "budgets": [{"id": f"{name}-budget", "tenant": name, **budget} for name in tenants],
            "alert_endpoints": [{"id": "bench", "url": endpoint, "secret": SECRET}],
        }
        now = datetime.now(UTC)
        apply_declarations(self.book, read_mapping(content), "bench", now, self.publish)
        collected: list[ControlRecord] = []

        def collect(records: Iterable[ControlRecord]) -> int:
            """The keys go out together, for each publishing has its cost."""
            collected.extend(records)
            return len(collected)

        keys = {name: create_key(self.book, name, "bench", now, collect).secret for name in tenants}
        self.publish(collected)
        return keys


def alert_delays(desk: Desk, urls: list[str], receiver: Receiver, endpoint: str) -> tuple[list[float], list[float]]:
    """Seconds from the request that crosses 80% to its webhook, for each tenant; and those of them after the keeper's news."""
    # A request costs 201 millionths: 80% of 250.
    keys = desk.declare([f"alert-{number}" for number in range(ALERTS)], {"limit": "0.00025"}, endpoint)
    lines = [Line(url) for url in urls]
    sent: dict[str, float] = {}
    for number, (tenant, key) in enumerate(keys.items()):
        # Where a gateway does not know the key yet, or waited too long for its lease, the next request is the one.
        sent[tenant] = _until(lines[number % len(lines)], key, 200)
        time.sleep(BETWEEN_SECONDS)
    deadline = time.monotonic() + SECONDS_MAX
    while len(receiver.came) < ALERTS and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(receiver.came) == ALERTS, f"{len(receiver.came)} of {ALERTS} alerts came"
    delays = [receiver.came[tenant] - at for tenant, at in sent.items()]
    return delays, [receiver.came[tenant] - at for tenant, at in receiver.raised.items()]


def top_up_delays(desk: Desk, urls: list[str], endpoint: str) -> list[float]:
    """Seconds from a top-up to the first request that each gateway serves on it."""
    tenants = [f"wallet-{number}" for number in range(TOP_UPS)]
    keys = desk.declare(tenants, {"period": "lifetime", "limit": "0"}, endpoint)
    delays: list[float] = []
    for tenant, key in keys.items():
        lines = [Line(url) for url in urls]
        for line in lines:
            _until(line, key, 402)
        began = time.time()
        threads = [threading.Thread(target=_serve, args=(line, key, began, delays)) for line in lines]
        for thread in threads:
            thread.start()
        top_up(desk.book, Wanted(f"bench-{tenant}", tenant, 10**11, "USD"), "bench", datetime.now(UTC), desk.publish)
        for thread in threads:
            thread.join()
    assert len(delays) == TOP_UPS * len(urls)
    return delays


def _serve(line: Line, key: str, began: float, delays: list[float]) -> None:
    _until(line, key, 200)
    delays.append(time.time() - began)


def _until(line: Line, key: str, status: int) -> float:
    """Ask until that is the answer; when the request that got it was sent."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        sent = time.time()
        answered = line.chat(key)
        if answered == status:
            return sent
        assert time.monotonic() < deadline, f"{line.url} answers {answered}, not {status}"
        time.sleep(0.02)


def main() -> None:
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as exits:
        folder, receiver = Path(name), Receiver()
        url = exits.enter_context(fake_upstream(folder))
        Upstream(url).set(output_tokens=OUTPUT_TOKENS, prompt_factor=1, tokenizer=1, delay_ms=0, chunk_ms=0)
        stack, urls = exits.enter_context(gateways_of(folder / "ours", url, GATEWAYS))
        endpoint = exits.enter_context(receiver.serving())
        settings = settings_from(stack.service_environment)
        with opened(settings) as book:
            desk = Desk(book, publisher(settings))
            whole, last = alert_delays(desk, urls, receiver, endpoint)
            rows = {
                "alert: from the request that crosses 80% to the webhook": whole,
                "of that: from the keeper's hearing of it to the webhook": last,
                f"top-up: from recording it to a request served, each of {GATEWAYS} gateways": top_up_delays(
                    desk, urls, endpoint
                ),
            }
        keep("delays", report(rows))


def report(rows: dict[str, list[float]]) -> str:
    """The table."""
    lines = [
        [title, f"{len(delays)}", *(f"{percentile(delays, share):.2f}" for share in (0.5, 0.99)), f"{max(delays):.2f}"]
        for title, delays in rows.items()
    ]
    intro = f"{GATEWAYS} gateways and the whole embedded stack on one machine."
    return f"{intro}\n\n{table(['seconds', 'measured', 'p50', 'p99', 'greatest'], lines)}"


if __name__ == "__main__":
    main()
