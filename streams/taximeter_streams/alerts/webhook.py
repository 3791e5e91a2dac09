"""One attempt to deliver a webhook, signed by Standard Webhooks (https://www.standardwebhooks.com)."""

from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from standardwebhooks import Webhook

from taximeter_schemas.tenants import AlertEndpoint

GONE = 410
_BODY_BYTES_MAX = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an attempt. `gone`: the endpoint says that it wants no more (410)."""

    ok: bool
    error: str = ""
    gone: bool = False


def headers_for(endpoint: AlertEndpoint, message_id: str, body: str, now: datetime) -> dict[str, str]:
    """The headers of a message sent at `now`: the three of Standard Webhooks, the signature where there is a secret."""
    # The library takes the time as naive UTC and signs whole seconds.
    at = now.astimezone(UTC).replace(microsecond=0)
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "content-type": "application/json",
        "user-agent": "taximeter-alerts/1",
    }
    if endpoint.secret is not None:
        headers["webhook-signature"] = Webhook(endpoint.secret).sign(message_id, at, body)
    return headers


async def attempt(
    session: aiohttp.ClientSession, endpoint: AlertEndpoint, message_id: str, body: str, now: datetime
) -> Answer:
    """Send it once. Any 2xx is a success; redirects are not followed, for the signature names no address."""
    headers = headers_for(endpoint, message_id, body, now)
    try:
        async with session.post(endpoint.url, data=body.encode(), headers=headers, allow_redirects=False) as response:
            if 200 <= response.status < 300:
                return Answer(ok=True)
            text = (await response.content.read(_BODY_BYTES_MAX)).decode(errors="replace")
            return Answer(ok=False, error=f"HTTP {response.status}: {text}".strip(": "), gone=response.status == GONE)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Answer(ok=False, error=f"{type(error).__name__}: {error}".strip(": "))
