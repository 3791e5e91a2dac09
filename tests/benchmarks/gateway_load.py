"""A client of gateways that costs little itself: many kept connections, each sends its next request when it has its answer.

Run as a process, it prints one JSON object: statuses, latencies and how long it took.
"""

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

ANSWER_SECONDS_MAX = 60.0


@dataclass
class Outcome:
    """What came back. Latencies are those of answers with status 200, in microseconds."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_us: list[int] = field(default_factory=list)

    @property
    def served(self) -> int:
        """Answers with status 200."""
        return self.statuses[200]


class Connection(asyncio.Protocol):
    """One connection; `ask` sends a request and waits for the whole answer, or for as many bytes as wanted."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._done: asyncio.Future[int] | None = None
        self._bytes_wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are none of asyncio's classes, and have their methods.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer under way will not end: status 0."""
        self._finish(0)

    def ask(self, request: bytes, bytes_wanted: int = 0) -> "asyncio.Future[int]":
        """The future of the status (0 where the connection broke)."""
        self._received.clear()
        self._bytes_wanted = bytes_wanted
        self._done = asyncio.get_running_loop().create_future()
        if self.transport.is_closing():
            self._finish(0)
        else:
            self.transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        """Look whether the answer is whole."""
        received = self._received
        received += data
        head = received.find(b"\r\n\r\n")
        if head < 0:
            return
        if self._bytes_wanted and len(received) - head > self._bytes_wanted:
            self._finish(int(received[9:12]))
            return
        headers = bytes(received[:head]).lower()
        at = headers.find(b"content-length:")
        if at >= 0:
            stop = headers.find(b"\r\n", at)
            whole = head + 4 + int(headers[at + 15 : stop if stop >= 0 else None])
            if len(received) >= whole:
                self._finish(int(received[9:12]))
        elif received.endswith(b"0\r\n\r\n"):
            self._finish(int(received[9:12]))

    def _finish(self, status: int) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(status)


def request_bytes(url: str, key: str, body: Mapping[str, object], headers: Mapping[str, str]) -> bytes:
    """A whole POST of a chat."""
    address = urlsplit(url)
    payload = json.dumps(body, separators=(",", ":")).encode()
    lines = [
        f"POST {address.path}/v1/chat/completions HTTP/1.1",
        f"host: {address.netloc}",
        f"authorization: Bearer {key}",
        "content-type: application/json",
        f"content-length: {len(payload)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


async def connect(url: str) -> Connection:
    """A new connection."""
    address = urlsplit(url)
    assert address.hostname and address.port, f"an address with host and port: {url}"
    _, connection = await asyncio.get_running_loop().create_connection(Connection, address.hostname, address.port)
    return connection


async def keep_busy(url: str, request: bytes, connections: int, seconds: float) -> Outcome:
    """Closed loop: as many requests as get answered in that time."""
    outcome = Outcome()
    lines = [await connect(url) for _ in range(connections)]
    began = time.perf_counter()
    deadline = began + seconds

    async def work(line: Connection) -> None:
        while (sent := time.perf_counter()) < deadline:
            status = await line.ask(request)
            outcome.statuses[status] += 1
            if status == 200:
                outcome.latencies_us.append(int((time.perf_counter() - sent) * 1e6))
            if status == 0:
                line = await connect(url)

    await asyncio.gather(*(work(line) for line in lines))
    outcome.seconds = time.perf_counter() - began
    for line in lines:
        line.transport.close()
    return outcome


async def all_at_once(urls: Sequence[str], request: bytes, count: int, retry_seconds: float = 0.0) -> Outcome:
    """`count` requests at the same moment, spread over the gateways; those refused come again until `retry_seconds` are over."""
    outcome = Outcome()
    lines = [(url, await connect(url)) for url, _ in zip(_around(urls, count), range(count), strict=True)]
    began = time.perf_counter()

    async def work(url: str, line: Connection) -> None:
        sent, status = time.perf_counter(), 0
        while True:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                status = await line.ask(request)
            if status == 200 or time.perf_counter() + 0.5 > began + retry_seconds:
                break
            await asyncio.sleep(0.5)
            if line.transport.is_closing():
                line = await connect(url)
        outcome.statuses[status] += 1
        if status == 200:
            outcome.latencies_us.append(int((time.perf_counter() - sent) * 1e6))
        line.transport.close()

    await asyncio.gather(*(work(url, line) for url, line in lines))
    outcome.seconds = time.perf_counter() - began
    return outcome


async def abort(url: str, request: bytes, count: int, bytes_wanted: int) -> int:
    """Begin that many streams and leave each in the middle; how many had begun."""
    began = 0
    for _ in range(count):
        line = await connect(url)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            began += await line.ask(request, bytes_wanted) == 200
        line.transport.abort()
    return began


def _around(urls: Sequence[str], count: int) -> list[str]:
    return [urls[number % len(urls)] for number in range(count)]


def main() -> None:
    """`keep_busy` as a process of its own, pinned to a core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--request-file", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--cpu", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    request = arguments.request_file.read_bytes()
    outcome = uvloop.run(keep_busy(arguments.url, request, arguments.connections, arguments.seconds))
    told = {"seconds": outcome.seconds, "statuses": dict(outcome.statuses), "latencies_us": outcome.latencies_us}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
