"""What every route asks first: may the sender send, and is the body within its limit."""

from hmac import compare_digest

from fastapi import Request

from taximeter_producers.ingest.bodies import BodyError
from taximeter_producers.ingest.settings import IngestSettings


def authorize(request: Request, settings: IngestSettings) -> None:
    """Raises BodyError (401) without the ingest token, where one is set."""
    token = settings.ingest_token.get_secret_value() if settings.ingest_token else ""
    if not token:
        return
    expected = f"Bearer {token}"
    given = request.headers.get("authorization", "")
    if not compare_digest(given.encode(), expected.encode()):
        raise BodyError(401, "unauthorized", "send Authorization: Bearer with the ingest token")


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The body, read no further than its limit, whatever Content-Length says. Raises BodyError (413)."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise BodyError(413, "body_too_large", f"a body has at most {bytes_max} bytes; send smaller batches")
    return bytes(body)
