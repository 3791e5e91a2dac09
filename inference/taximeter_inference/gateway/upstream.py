"""The model server behind the gateway, reached over HTTP/1.1: a pool of connections, each a parser and little else.

A general client spends more on a request than all else the gateway does (see docs/decisions); this one knows one server, sends
whole bodies, follows nothing, and hands out bytes as they come.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httptools

from taximeter_inference.gateway.errors import GatewayError, UpstreamTimeoutError, UpstreamUnreachableError
from taximeter_inference.gateway.settings import GatewaySettings

CONNECT_SECONDS_MAX = 5.0
KEEP_ALIVE_SECONDS = 3.0
"""Shorter than a server's (5 s at vLLM's), so that no request goes out on a connection that is being closed."""
BUFFERED_BYTES_MAX = 1 << 18
"""What may have arrived and not been read, before the server is held back."""
IDLE_MAX = 1_024
HEAD_BYTES_MAX = 1 << 18


class Response(asyncio.Protocol):
    """One connection, and the answer that is on its way over it: `status` and `content_type` once `begun` is done."""

    def __init__(self, silence_seconds_max: float) -> None:
        self._silence_seconds_max = silence_seconds_max
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._head_size = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._failure: GatewayError | None = None
        self._begun = False
        self._ended = False
        self._keeps_alive = False
        self._has_length = False
        self.status = 0
        self.content_type = b"application/json"

    # What an exchange uses.

    async def send(self, request: bytes) -> None:
        """Send a request and wait for the head of its answer. Raises UpstreamUnreachableError and UpstreamTimeoutError."""
        self._reset()
        assert self._transport is not None
        self._heard_at = self._loop.time()
        self._watch = self._loop.call_later(self._silence_seconds_max, self._look)
        self._transport.write(request)
        while not self._begun:
            await self._more()

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises UpstreamUnreachableError when it breaks off, and UpstreamTimeoutError."""
        while True:
            if self._parts:
                yield self.take()
            elif self._ended:
                return
            else:
                await self._more()

    async def read(self) -> bytes:
        """The body whole. Raises UpstreamUnreachableError when it breaks off, and UpstreamTimeoutError."""
        while not self._ended:
            await self._more(holds=False)
        return self.take()

    def take(self) -> bytes:
        """What has arrived of the body and was not read."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._resume()
        return data

    def close(self) -> None:
        """Leave: the server hears of it and stops."""
        self._stop_watching()
        if self._transport is not None:
            self._transport.close()

    @property
    def is_reusable(self) -> bool:
        """Whether another request may go over this connection."""
        alive = self._transport is not None and not self._transport.is_closing()
        return alive and self._ended and self._keeps_alive and not self._parts

    def rest(self) -> None:
        """The answer was read: nothing is expected now."""
        self._stop_watching()
        self.idle_since = self._loop.time()

    async def _more(self, holds: bool = True) -> None:
        """Wait until something has arrived. With `holds`, the server is held back while too much lies here."""
        if self._failure is not None:
            raise self._failure
        if not holds:
            self._resume()
        self._holds = holds
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    _holds = True
    _heard_at = 0.0

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: GatewayError) -> None:
        if self._failure is None:
            self._failure = failure
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._failure)

    def _look(self) -> None:
        silence = self._loop.time() - self._heard_at
        if self._paused:
            silence = 0.0
        if silence >= self._silence_seconds_max:
            self._fail(UpstreamTimeoutError())
            self.close()
        else:
            self._watch = self._loop.call_later(self._silence_seconds_max - silence, self._look)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # What asyncio and the parser call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have arrived."""
        self._heard_at = self._loop.time()
        if not self._begun:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(UpstreamUnreachableError("the model server does not speak HTTP"))
            self.close()
            return
        if not self._begun and self._head_size > HEAD_BYTES_MAX:
            self._fail(UpstreamUnreachableError("the head of the model server's answer has no end"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._stop_watching()
        if self._begun and not self._ended and exc is None and not self._has_length:
            # A body without a stated length ends with its connection.
            self._ended = True
            self._wake()
        elif not self._ended:
            self._fail(UpstreamUnreachableError("the model server cannot be reached: it closed the connection"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header."""
        lower = name.lower()
        if lower == b"content-type":
            self.content_type = value
        elif lower in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        """httptools: the head is there."""
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            self._keeps_alive = self._parser.should_keep_alive()
            self._begun = True
            self._wake()

    def on_body(self, body: bytes) -> None:
        """httptools: a part of the body."""
        self._parts.append(body)
        self._size += len(body)
        if self._size > BUFFERED_BYTES_MAX and self._holds and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._holds:
            self._wake()

    def on_message_complete(self) -> None:
        """httptools: the answer has ended."""
        if self._begun:
            self._ended = True
            self._wake()


class Upstream:
    """A pool of connections to one model server."""

    def __init__(self, settings: GatewaySettings) -> None:
        url = urlsplit(settings.upstream_url)
        self._host, self._base = url.hostname or "127.0.0.1", url.path.rstrip("/")
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._port = url.port or (443 if self._tls is not None else 80)
        self._silence_seconds_max = settings.gateway_upstream_timeout_seconds
        self._idle: deque[Response] = deque()
        lines = [f"Host: {url.netloc.rpartition('@')[2]}", "Accept-Encoding: identity"]
        if settings.upstream_api_key is not None:
            lines.append(f"Authorization: Bearer {settings.upstream_api_key.get_secret_value()}")
        self._common = "".join(f"{line}\r\n" for line in lines)

    @asynccontextmanager
    async def post(self, path: str, payload: bytes, headers: Mapping[str, str]) -> AsyncIterator[Response]:
        """Send a request; the answer's body is read by the caller. Raises UpstreamUnreachableError and UpstreamTimeoutError.

        Leaving before the end closes the connection, which makes the model server stop.
        """
        connection = await self._connected()
        try:
            await connection.send(self._request("POST", path, payload, headers))
            yield connection
        finally:
            if connection.is_reusable and len(self._idle) < IDLE_MAX:
                connection.rest()
                self._idle.append(connection)
            else:
                connection.close()

    async def ask(self, path: str, payload: bytes) -> tuple[int, bytes]:
        """Send a request and read its answer whole."""
        async with self.post(path, payload, {}) as response:
            return response.status, await response.read()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Fetch a page whole."""
        connection = await self._connected()
        try:
            await connection.send(self._request("GET", path, b"", {}))
            return connection.status, await connection.read()
        finally:
            connection.close()

    async def close(self) -> None:
        """Close all connections."""
        while self._idle:
            self._idle.pop().close()
        # Transports close on the loop's next turns.
        await asyncio.sleep(0)

    def _request(self, method: str, path: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
        own = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = (
            f"{method} {self._base}{path} HTTP/1.1\r\n{self._common}{own}"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        return head.encode("latin-1") + payload

    async def _connected(self) -> Response:
        loop = asyncio.get_running_loop()
        freshest_at = loop.time() - KEEP_ALIVE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and connection.idle_since > freshest_at:
                return connection
            connection.close()
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                _, connection = await loop.create_connection(
                    lambda: Response(self._silence_seconds_max), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise UpstreamUnreachableError("the model server does not accept connections") from None
        except OSError as error:
            raise UpstreamUnreachableError(f"the model server cannot be reached: {type(error).__name__}") from None
        return connection
