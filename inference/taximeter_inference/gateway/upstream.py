"""The model server behind the gateway, reached with aiohttp."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import aiohttp

from taximeter_inference.gateway.errors import UpstreamTimeoutError, UpstreamUnreachableError
from taximeter_inference.gateway.settings import GatewaySettings

CONNECT_SECONDS_MAX = 5.0
KEEP_ALIVE_SECONDS = 3.0
"""Shorter than a server's (5 s at vLLM's), so that no request goes out on a connection that is being closed."""
READ_BUFFER_BYTES = 1 << 18


class Upstream:
    """A pool of connections to one model server."""

    def __init__(self, settings: GatewaySettings) -> None:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if settings.upstream_api_key is not None:
            headers["Authorization"] = f"Bearer {settings.upstream_api_key.get_secret_value()}"
        self._url = settings.upstream_url.rstrip("/")
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=settings.gateway_upstream_timeout_seconds
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_BUFFER_BYTES,
            skip_auto_headers=("User-Agent",),
        )

    @asynccontextmanager
    async def post(
        self, path: str, payload: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the answer's body is read by the caller. Raises UpstreamUnreachableError and UpstreamTimeoutError.

        Leaving before the end closes the connection, which makes the model server stop.
        """
        with failures():
            response = await self._session.post(self._url + path, data=payload, headers=headers, allow_redirects=False)
        try:
            yield response
        finally:
            if response.content.is_eof():
                response.release()
            else:
                response.close()

    async def ask(self, path: str, payload: bytes) -> tuple[int, bytes]:
        """Send a request and read its answer whole."""
        with failures():
            async with self._session.post(self._url + path, data=payload, allow_redirects=False) as response:
                return response.status, await response.read()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Fetch a page whole."""
        with failures():
            async with self._session.get(self._url + path, allow_redirects=False) as response:
                return response.status, await response.read()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        # Transports close on the loop's next turns.
        await asyncio.sleep(0)


@contextmanager
def failures() -> Iterator[None]:
    """Turns aiohttp's failures into the gateway's."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise UpstreamUnreachableError("the model server does not accept connections") from None
    except TimeoutError:
        raise UpstreamTimeoutError from None
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamUnreachableError(f"the model server cannot be reached: {type(error).__name__}") from None
