"""The gateway's own HTTP: what clients may do on a connection, and what model servers may, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from taximeter.embedded.ports import free_port
from taximeter_inference.gateway.errors import UpstreamTimeoutError, UpstreamUnreachableError
from taximeter_inference.gateway.http_server import BUFFERED_BYTES_MAX, ClientGoneError, HttpServer, Reply, Request
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_inference.gateway.upstream import Upstream

SECONDS_MAX = 60.0


async def echo(request: Request, reply: Reply) -> None:
    """Say what was asked: whole, or in parts."""
    if request.path == "/parts":
        await reply.head(200, b"text/event-stream")
        await reply.part(b"one ")
        await reply.part(b"")
        await reply.part(b"two", is_last=True)
    elif request.path == "/fail":
        raise RuntimeError("a mistake")
    else:
        size = b"too large" if request.is_too_large else b"%d" % len(request.body)
        await reply.whole(200, f"{request.method} {request.path} ".encode() + size)


@asynccontextmanager
async def serving(handler: Callable[[Request, Reply], Awaitable[None]] = echo) -> AsyncIterator[int]:
    """A server with that handler; bodies of 100 bytes at most."""
    server, port = HttpServer(handler, 100), free_port()
    await server.start("127.0.0.1", port)
    yield port
    await server.stop(1)


async def said(port: int, data: bytes) -> bytes:
    """All that the server says to these bytes, once the client has nothing more to say."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), SECONDS_MAX)
    writer.close()
    await writer.wait_closed()
    return answer


LAST = b"GET /last HTTP/1.1\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status", "bodies"),
    [
        (LAST, b"200", [b"GET /last 0"]),
        (b"GET /one?x=1 HTTP/1.1\r\n\r\n" + LAST, b"200", [b"GET /one 0", b"GET /last 0"]),  # kept alive, sent ahead
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc" + LAST, b"200", [b"POST / 3"]),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n" + LAST, b"200", [b"POST / 3"]),
        (b"POST / HTTP/1.1\r\ncontent-length: 101\r\n\r\n" + b"a" * 101 + LAST, b"200", [b"POST / too large"]),
        (b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\na" + LAST, b"100", [b"POST / 1"]),
        (b"GET /parts HTTP/1.1\r\n\r\n" + LAST, b"200", [b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"]),
        (b"GET /parts HTTP/1.0\r\n\r\n", b"200", [b"\r\n\r\none two"]),  # its end is the connection's
        (b"HEAD /head HTTP/1.1\r\nconnection: close\r\n\r\n", b"200", [b"content-length: 12\r\n\r\n"]),
        (b"GET /fail HTTP/1.1\r\n\r\n", b"500", [b"internal_error"]),
        (b"POST / HTTP/1.1\r\ncontent-length: 9999\r\n\r\n" + b"a" * 201, b"413", []),
        (b"nonsense\r\n\r\n", b"400", []),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000, b"431", []),
    ],
)  # fmt: skip
def test_what_a_client_may_say(data: bytes, status: bytes, bodies: list[bytes]) -> None:
    async def run() -> None:
        async with serving() as port:
            answer = await said(port, data)
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        for body in bodies:
            assert body in answer, answer

    asyncio.run(run())


def test_a_client_that_leaves_is_noticed_at_once() -> None:
    async def run() -> None:
        noticed = asyncio.Event()

        async def wait(request: Request, reply: Reply) -> None:
            await request.gone
            noticed.set()
            with pytest.raises(ClientGoneError):
                await reply.head(200, b"text/plain")
            raise ClientGoneError

        async with serving(wait) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(LAST)
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.close()
            await asyncio.wait_for(noticed.wait(), SECONDS_MAX)

    asyncio.run(run())


def test_a_slow_client_holds_its_own_answer_back_and_gets_all_of_it() -> None:
    async def run() -> None:
        sent = 0

        async def flood(request: Request, reply: Reply) -> None:
            nonlocal sent
            await reply.head(200, b"text/plain")
            for number in range(200):
                await reply.part(b"x" * 65_536, is_last=number == 199)
                sent += 65_536

        async with serving(flood) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_024)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.2)
            assert sent < 200 * 65_536, "the rest waits for the client"
            body = await asyncio.wait_for(reader.read(), SECONDS_MAX)
            assert len(body) == 200 * 65_536 > BUFFERED_BYTES_MAX
            writer.close()

    asyncio.run(run())


def upstream(port: int, silence_seconds: float = SECONDS_MAX) -> Upstream:
    settings = GatewaySettings.model_validate(
        {
            "salt_secret": "0123456789abcdef",
            "upstream_url": f"http://127.0.0.1:{port}/base",
            "upstream_api_key": "sk-upstream",
            "gateway_upstream_timeout_seconds": silence_seconds,
        }
    )
    return Upstream(settings)


@asynccontextmanager
async def answering(*answers: bytes, closes: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A model server that gives these answers, one a request, over any connection; and what it was asked."""
    heard: list[bytes] = []
    left = list(answers)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                heard.append(
                    head + await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
                )
                writer.write(left.pop(0))
                await writer.drain()
                if closes:
                    return
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], heard
    server.close()


JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("answer", "closes", "body"),
    [
        (JSON, False, b"{}"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + JSON, False, b"{}"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", False, b"{}"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}", True, b"{}"),  # ends with its connection
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}", True, None),  # breaks off
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n", True, None),
        (b"", True, None),
        (b"SSH-2.0-OpenSSH\r\n", False, None),
    ],
)
def test_what_a_model_server_may_say(answer: bytes, closes: bool, body: bytes | None) -> None:
    async def run() -> None:
        async with answering(answer, closes=closes) as (port, heard):
            client = upstream(port)
            if body is None:
                with pytest.raises(UpstreamUnreachableError):
                    await client.ask("/v1/x", b"[]")
            else:
                assert await client.ask("/v1/x", b"[]") == (200, body)
            await client.close()
        assert heard[0].startswith(b"POST /base/v1/x HTTP/1.1\r\n") and heard[0].endswith(b"\r\n\r\n[]")
        assert b"Authorization: Bearer sk-upstream\r\n" in heard[0]

    asyncio.run(run())


def test_connections_are_used_again_and_a_left_one_is_closed() -> None:
    async def run() -> None:
        stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n"
        async with answering(JSON, JSON, stream) as (port, heard):
            client = upstream(port)
            assert [await client.ask("/a", b""), await client.ask("/b", b"")] == [(200, b"{}")] * 2
            async with client.post("/c", b"", {"X-Request-Id": "r1"}) as response:
                assert response.content_type == b"text/event-stream"
                parts = response.parts()
                assert await anext(parts) == b"ab"
            assert not response.is_reusable
            await client.close()
        assert b"X-Request-Id: r1\r\n" in heard[2]

    asyncio.run(run())


def test_silence_is_a_time_out_and_nobody_there_is_said() -> None:
    async def run() -> None:
        async with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{") as (port, _):
            client = upstream(port, silence_seconds=0.2)
            with pytest.raises(UpstreamTimeoutError):
                await client.ask("/a", b"")
            await client.close()
        with pytest.raises(UpstreamUnreachableError, match="cannot be reached"):
            await upstream(free_port()).ask("/a", b"")

    asyncio.run(run())


def test_a_request_that_is_given_up_at_the_end_may_still_be_counted() -> None:
    async def run() -> None:
        counted = False

        async def endless(request: Request, reply: Reply) -> None:
            nonlocal counted
            try:
                await reply.head(200, b"text/event-stream")
                await asyncio.sleep(SECONDS_MAX)
            finally:
                await asyncio.sleep(0.05)
                counted = True

        server, port = HttpServer(endless, 100), free_port()
        await server.start("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(LAST)
        await reader.readuntil(b"\r\n\r\n")
        await server.stop(0.1)
        assert counted
        assert await reader.read() == b""  # cut, without the mark of its end
        writer.close()

    asyncio.run(run())
