"""Tags on their way from the gateway to a worker that meters for itself: headers, and a gateway's signature over them. Pure.

The gateway knows whose request it is; the worker knows what it used. A worker believes tags only under a signature by the
shared secret (HMAC-SHA256 over a canonical text with a time), so a client that reaches the worker cannot charge another.
"""

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from taximeter_schemas.events import ID_PATTERN, TAG_PATTERN, Operation, ServiceTier

PREFIX = "x-taximeter-"
SIGNATURE_HEADER = "x-taximeter-signature"
VERSION = "taximeter-forward.v1"
TOLERANCE_SECONDS = 300
"""How far the clocks of a gateway and a worker may be apart, waiting within the worker's own front door included."""
HEADER_NAMES = (
    "tenant",
    "feature",
    "request-id",
    "root",
    "hop",
    "attempt",
    "lease",
    "pool",
    "operation",
    "service-tier",
    "attributes",
)
"""What is signed, in this order; each header's name is PREFIX and one of these. An empty one is not sent."""
_TAG = re.compile(TAG_PATTERN)
_IDENTIFIER = re.compile(ID_PATTERN)
_SIGNATURE = re.compile(r"t=(\d{1,12}),v1=([0-9a-f]{64})\Z")


class ForwardingError(ValueError):
    """The forwarded tags are missing, malformed, too old, or not signed by a gateway."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The tags of one attempt. `request_id` is the id of its usage event; `pool` is the cache pool's tag in events."""

    tenant: str
    feature: str
    request_id: str
    root_request_id: str
    pool: str
    hop: int = 0
    attempt: int = 0
    lease_id: str | None = None
    operation: Operation = Operation.OTHER
    service_tier: ServiceTier = ServiceTier.STANDARD
    attributes: Mapping[str, str] = field(default_factory=dict)


def sign(tags: Forwarded, secret: bytes, now: int) -> list[tuple[str, str]]:
    """The headers to send, signature last. `now` is in seconds since the epoch."""
    values = {
        "tenant": tags.tenant,
        "feature": tags.feature,
        "request-id": tags.request_id,
        "root": tags.root_request_id,
        "hop": str(tags.hop),
        "attempt": str(tags.attempt),
        "lease": tags.lease_id or "",
        "pool": tags.pool,
        "operation": tags.operation.value,
        "service-tier": tags.service_tier.value,
        "attributes": json.dumps(dict(tags.attributes), separators=(",", ":")) if tags.attributes else "",
    }
    headers = [(PREFIX + name, value) for name, value in values.items() if value]
    headers.append((SIGNATURE_HEADER, f"t={now},v1={_digest(values, secret, now)}"))
    return headers


def is_forwarded(headers: Mapping[str, str]) -> bool:
    """Whether a request claims to come from a gateway. Header names are in lower case."""
    return SIGNATURE_HEADER in headers


def verify(
    headers: Mapping[str, str], secrets: Sequence[bytes], now: int, tolerance_seconds: int = TOLERANCE_SECONDS
) -> Forwarded:
    """The tags of a request's headers (names in lower case), under any of the secrets (the new and the old, in a rotation).

    `now` is in seconds since the epoch. Raises ForwardingError.
    """
    match = _SIGNATURE.match(headers.get(SIGNATURE_HEADER, ""))
    if match is None:
        raise ForwardingError(f"{SIGNATURE_HEADER} is missing or malformed")
    signed_at = int(match.group(1))
    if abs(now - signed_at) > tolerance_seconds:
        raise ForwardingError("the signature is too old, or the clocks are apart")
    values = {name: headers.get(PREFIX + name, "") for name in HEADER_NAMES}
    if not any(hmac.compare_digest(_digest(values, secret, signed_at), match.group(2)) for secret in secrets):
        raise ForwardingError("the signature is not a gateway's")
    return _read(values)


def _digest(values: Mapping[str, str], secret: bytes, now: int) -> str:
    # No value holds a line break: headers cannot.
    text = "\n".join([VERSION, str(now), *(values[name] for name in HEADER_NAMES)])
    return hmac.digest(secret, text.encode(), "sha256").hex()


def _read(values: Mapping[str, str]) -> Forwarded:
    try:
        attributes = json.loads(values["attributes"] or "{}")
        if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
            raise ForwardingError("attributes are not texts")
        return Forwarded(
            tenant=_matching(_TAG, values, "tenant"),
            feature=_matching(_TAG, values, "feature"),
            request_id=_matching(_IDENTIFIER, values, "request-id"),
            root_request_id=_matching(_IDENTIFIER, values, "root"),
            pool=_matching(_TAG, values, "pool"),
            hop=int(values["hop"] or 0),
            attempt=int(values["attempt"] or 0),
            lease_id=_matching(_IDENTIFIER, values, "lease") if values["lease"] else None,
            operation=Operation(values["operation"] or Operation.OTHER),
            service_tier=ServiceTier(values["service-tier"] or ServiceTier.STANDARD),
            attributes=attributes,
        )
    except ForwardingError:
        raise
    except ValueError as error:
        raise ForwardingError(f"a forwarded tag is not valid: {error}") from None


def _matching(pattern: re.Pattern[str], values: Mapping[str, str], name: str) -> str:
    if pattern.match(values[name]) is None:
        raise ForwardingError(f"{PREFIX}{name} is missing or not valid")
    return values[name]
