"""Sends planned requests through the gateway, many at once, and counts what came back."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from taximeter.workload.requests import PlannedRequest

REQUEST_SECONDS_MAX = 120.0


@dataclass
class Outcome:
    """What came back, by tenant: HTTP statuses, and the tokens that the answers reported."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    @property
    def sent(self) -> int:
        """Requests answered, whatever the answer."""
        return sum(self.statuses.values())

    @property
    def served(self) -> int:
        """Requests answered with 200."""
        return sum(count for (_tenant, status), count in self.statuses.items() if status == 200)

    def totals(self) -> dict[str, int]:
        """The sums, for machines."""
        return {
            "sent": self.sent,
            "served": self.served,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
        }

    def of(self, tenant: str, status: int) -> int:
        """How many answers of that status the tenant got."""
        return self.statuses[(tenant, status)]


@asynccontextmanager
async def gateway_client(url: str, keys: Mapping[str, str]) -> AsyncIterator["GatewayClient"]:
    """A client for the gateway at that URL with an API key for each tenant."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX)
    async with aiohttp.ClientSession(base_url=url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield GatewayClient(session, keys)


class GatewayClient:
    """Sends planned requests; `outcome` adds up what came back."""

    def __init__(self, session: aiohttp.ClientSession, keys: Mapping[str, str]) -> None:
        self._session = session
        self._keys = keys
        self.outcome = Outcome()

    async def send(self, request: PlannedRequest) -> int:
        """Send one request, read its answer to the end, and return the HTTP status (0: the gateway hung up)."""
        path, body = _body(request)
        headers = {
            "Authorization": f"Bearer {self._keys[request.tenant]}",
            "x-taximeter-feature": request.feature,
            **request.headers,
        }
        try:
            async with self._session.post(path, json=body, headers=headers) as response:
                text = await response.text()
                status = response.status
        except aiohttp.ClientError as error:
            self.outcome.errors[(request.tenant, type(error).__name__)] += 1
            self.outcome.statuses[(request.tenant, 0)] += 1
            return 0
        self.outcome.statuses[(request.tenant, status)] += 1
        if status == 200:
            self._count(_last_usage(text) if request.stream else json.loads(text).get("usage", {}))
        elif status >= 400:
            self.outcome.errors[(request.tenant, _error_code(text))] += 1
        return status

    async def send_all(
        self,
        requests: Iterable[PlannedRequest],
        at_once: int,
        done: Callable[[PlannedRequest, int], None] = lambda _r, _s: None,
    ) -> None:
        """Send all, at most `at_once` at a time, in order of the iterable; `done` hears of each answer."""
        queue = iter(requests)

        async def worker() -> None:
            for request in queue:
                done(request, await self.send(request))

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())

    def _count(self, usage: Mapping[str, object]) -> None:
        details = usage.get("prompt_tokens_details") or {}
        self.outcome.prompt_tokens += int(str(usage.get("prompt_tokens", 0)))
        self.outcome.output_tokens += int(str(usage.get("completion_tokens", 0) or 0))
        if isinstance(details, Mapping):
            self.outcome.cached_tokens += int(details.get("cached_tokens") or 0)


def _body(request: PlannedRequest) -> tuple[str, dict[str, object]]:
    if request.embedding:
        return "/v1/embeddings", {"model": request.model, "input": request.prompt}
    body: dict[str, object] = {
        "model": request.model,
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": max(1, request.output_tokens),
        "vllm_xargs": {"simulated_output_tokens": request.output_tokens},
    }
    if request.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return "/v1/chat/completions", body


def _last_usage(events: str) -> Mapping[str, object]:
    usage: Mapping[str, object] = {}
    for line in events.splitlines():
        if line.startswith("data: {"):
            usage = json.loads(line[6:]).get("usage") or usage
    return usage


def _error_code(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
