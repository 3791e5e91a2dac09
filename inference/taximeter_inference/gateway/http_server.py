"""The gateway's side of HTTP/1.1: connections, requests with their whole body, answers whole or in parts.

One parser and one task a request, and nothing between them: a general server under ASGI spends as much again on a request
as the gateway does (see docs/decisions). A client that leaves cancels its request at once.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus

import httptools

Headers = Iterable[tuple[bytes, bytes]]
JSON = b"application/json"
KEEP_ALIVE_SECONDS = 75.0
"""How long a connection may be without a request, or a request without its end."""
HEAD_BYTES_MAX = 1 << 16
GIVE_UP_SECONDS_MAX = 3.0
PIPELINED_MAX = 8
WAITING_CONNECTIONS_MAX = 2_048
BUFFERED_BYTES_MAX = 1 << 18
"""What may wait for a slow client before its answer is held back."""
_log = logging.getLogger(__name__)
_INTERNAL_ERROR = (
    b'{"error":{"message":"the gateway failed","type":"internal_error","param":null,"code":"internal_error"}}'
)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {code.value: f"HTTP/1.1 {code.value} {code.phrase}\r\n".encode() for code in HTTPStatus}


class ClientGoneError(Exception):
    """The client left before its answer was complete."""


class Request:
    """A request as it arrived. `headers` have names in lower case; `gone` is done when the client has left.

    `is_too_large` says that the body was longer than is taken, and is not there.
    """

    __slots__ = ("body", "gone", "headers", "is_too_large", "keeps_alive", "method", "path", "version")

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.version = "1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.keeps_alive = True
        self.is_too_large = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Reply:
    """Where the answer to one request goes. Raises ClientGoneError once nobody is there."""

    __slots__ = ("_chunked", "_connection", "_request", "ended", "started")

    def __init__(self, connection: "Connection", request: Request) -> None:
        self._connection = connection
        self._request = request
        self._chunked = False
        self.started = False
        self.ended = False

    async def whole(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Send a whole answer."""
        self.started = self.ended = True
        length = b"content-length: %d\r\n" % len(body)
        sent = b"" if self._request.method == "HEAD" else body
        self._connection.write(self._head(status, content_type, headers) + length + b"\r\n" + sent)
        await self._connection.drain()

    async def head(self, status: int, content_type: bytes, headers: Headers = ()) -> None:
        """Begin an answer in parts."""
        self.started = True
        self._chunked = self._request.version == "1.1"
        if not self._chunked:
            self._request.keeps_alive = False
        coding = b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        self._connection.write(self._head(status, content_type, headers) + coding)

    async def part(self, body: bytes, is_last: bool = False) -> None:
        """Send a part of an answer."""
        framed = b"%x\r\n%b\r\n" % (len(body), body) if self._chunked and body else body
        if is_last:
            self.ended = True
            framed += b"0\r\n\r\n" if self._chunked else b""
        if framed:
            self._connection.write(framed)
        await self._connection.drain()

    def _head(self, status: int, content_type: bytes, headers: Headers) -> bytes:
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Other\r\n" % status
        parts = [line, _date(), b"content-type: ", content_type, b"\r\n"]
        if not self._request.keeps_alive:
            parts.append(b"connection: close\r\n")
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        return b"".join(parts)


Handler = Callable[[Request, Reply], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client. Its requests are answered one after the other; those that it sent ahead wait."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        """Being read."""
        self._parts: list[bytes] = []
        self._size = 0
        self._head_size = 0
        self._url = b""
        self._answering: Request | None = None
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._is_full = False
        self._heard_at = self._loop.time()

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._task is not None

    def is_stale(self, now: float) -> bool:
        """Whether it has been idle, or in the middle of a request, for too long."""
        return self._task is None and now - self._heard_at > KEEP_ALIVE_SECONDS

    def write(self, data: bytes) -> None:
        """Send bytes. Raises ClientGoneError."""
        if self._transport is None or self._transport.is_closing():
            raise ClientGoneError
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait while too much waits for the client. Raises ClientGoneError."""
        if self._is_full:
            self._drained = self._loop.create_future()
            await self._drained
            if self._transport is None:
                raise ClientGoneError

    def close(self) -> None:
        """Close once what was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def cancel(self) -> "asyncio.Task[None] | None":
        """Give up the request under way, and return what must still end."""
        if self._task is not None:
            self._task.cancel()
        return self._task

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        self._transport = transport  # type: ignore[assignment]
        assert self._transport is not None
        self._transport.set_write_buffer_limits(high=BUFFERED_BYTES_MAX)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client is gone."""
        self._transport = None
        self._server.connections.discard(self)
        self._waiting.clear()
        self.resume_writing()
        if self._answering is not None and not self._answering.gone.done():
            self._answering.gone.set_result(None)

    def pause_writing(self) -> None:
        """asyncio: the client is slow."""
        self._is_full = True

    def resume_writing(self) -> None:
        """asyncio: it has caught up."""
        self._is_full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have arrived."""
        self._heard_at = self._loop.time()
        if self._request is None or not self._request.method:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400)
        except httptools.HttpParserError:
            self._refuse(400)
        else:
            if self._head_size > HEAD_BYTES_MAX and (self._request is None or not self._request.method):
                self._refuse(431)

    def eof_received(self) -> bool:
        """asyncio: the client sends no more; whoever closes that half is taken to have left."""
        return False

    def _refuse(self, status: int) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_STATUS_LINES[status] + b"connection: close\r\ncontent-length: 0\r\n\r\n")
            self._transport.close()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """httptools: a request begins."""
        self._request, self._parts, self._size, self._url = Request(), [], 0, b""

    def on_url(self, url: bytes) -> None:
        """httptools: a part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header."""
        assert self._request is not None
        self._request.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """httptools: the head is there."""
        request = self._request
        assert request is not None
        self._head_size = 0
        request.method = self._parser.get_method().decode("latin-1")
        request.version = self._parser.get_http_version()
        request.keeps_alive = self._parser.should_keep_alive()
        request.path = self._url.partition(b"?")[0].decode("latin-1")
        for name, value in request.headers:
            if name == b"content-length" and value.isdigit() and int(value) > self._server.body_bytes_max:
                request.is_too_large = True
            elif name == b"expect" and value.lower() == b"100-continue" and self._transport is not None:
                self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """httptools: a part of the body."""
        request = self._request
        assert request is not None
        self._size += len(body)
        request.is_too_large = request.is_too_large or self._size > self._server.body_bytes_max
        if request.is_too_large:
            self._parts.clear()
            if self._size > 2 * self._server.body_bytes_max:
                # Nobody reads on for ever, only far enough for most clients to hear why.
                self._refuse(413)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """httptools: the request is whole."""
        request = self._request
        assert request is not None
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._request, self._parts = None, []
        if self._task is not None:
            self._waiting.append(request)
            if len(self._waiting) > PIPELINED_MAX:
                self._refuse(400)
            return
        self._begin(request)

    def _begin(self, request: Request) -> None:
        self._answering = request
        self._task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        reply = Reply(self, request)
        try:
            await self._server.handler(request, reply)
        except ClientGoneError:
            self.close()
        except Exception as error:  # noqa: BLE001 - a mistake of ours: said aloud, and the others go on
            _log.critical("a request failed: %s", error, exc_info=error)
            if not reply.started and self._transport is not None:
                request.keeps_alive = False
                await reply.whole(500, _INTERNAL_ERROR)
        finally:
            self._answering = self._task = None
            self._heard_at = self._loop.time()
            if not reply.ended or not request.keeps_alive or self._server.is_stopping:
                self.close()
            elif self._waiting:
                self._begin(self._waiting.popleft())


class HttpServer:
    """Listens, and hands each request to the handler."""

    def __init__(self, handler: Handler, body_bytes_max: int) -> None:
        self.handler = handler
        self.body_bytes_max = body_bytes_max
        self.connections: set[Connection] = set()
        self.is_stopping = False
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), host, port, backlog=WAITING_CONNECTIONS_MAX, reuse_address=True
        )
        self._sweeping = loop.create_task(self._sweep())

    async def stop(self, seconds_max: float) -> None:
        """Take no more requests, let those under way end for a while, and cancel the rest."""
        self.is_stopping = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._server is not None:
            self._server.close()
        deadline = time.monotonic() + seconds_max
        while self.connections and time.monotonic() < deadline:
            for connection in [idle for idle in self.connections if not idle.is_busy]:
                connection.close()
            await asyncio.sleep(0.02)
        given_up = [task for connection in self.connections if (task := connection.cancel()) is not None]
        if given_up:
            # What they used until now is still to be counted.
            await asyncio.wait(given_up, timeout=GIVE_UP_SECONDS_MAX)
        for connection in list(self.connections):
            connection.close()
        await asyncio.sleep(0)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1)
            now = asyncio.get_running_loop().time()
            for connection in [stale for stale in self.connections if stale.is_stale(now)]:
                connection.close()


_date_line: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    """The Date header, made once a second."""
    global _date_line  # noqa: PLW0603 - a cache of one line
    second = int(time.time())
    if _date_line[0] != second:
        _date_line = (second, f"date: {formatdate(second, usegmt=True)}\r\n".encode())
    return _date_line[1]
