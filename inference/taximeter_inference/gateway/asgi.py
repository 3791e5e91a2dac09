"""The few lines of ASGI that the gateway needs."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from taximeter_inference.gateway.errors import BodyTooLargeError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

JSON = b"application/json"


class ClientGoneError(Exception):
    """The client left before its request was complete."""


async def read_request(headers: dict[bytes, bytes], receive: Receive, bytes_max: int) -> bytes:
    """The request's body. Raises BodyTooLargeError, and ClientGoneError."""
    stated = headers.get(b"content-length", b"0")
    if stated.isdigit() and int(stated) > bytes_max:
        raise BodyTooLargeError(f"the body has {int(stated)} bytes; {bytes_max} is the limit")
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        whole: bytes = message.get("body", b"")
        return _within(whole, bytes_max)
    parts, size = [], 0
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > bytes_max:
            raise BodyTooLargeError(f"the body is longer than {bytes_max} bytes")
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    raise ClientGoneError


def _within(body: bytes, bytes_max: int) -> bytes:
    if len(body) > bytes_max:
        raise BodyTooLargeError(f"the body has {len(body)} bytes; {bytes_max} is the limit")
    return body


async def send_head(send: Send, status: int, content_type: bytes, headers: Headers = ()) -> None:
    """Begin an answer."""
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *headers]}
    )


async def send_part(send: Send, body: bytes, is_last: bool = False) -> None:
    """Send a part of an answer's body."""
    await send({"type": "http.response.body", "body": body, "more_body": not is_last})


async def send_body(send: Send, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
    """Send a whole answer."""
    await send_head(send, status, content_type, ((b"content-length", str(len(body)).encode()), *headers))
    await send_part(send, body, is_last=True)
