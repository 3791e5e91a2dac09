"""Tags on their way from the gateway to a worker that meters for itself: one header, and a gateway's signature over it. Pure.

The gateway knows whose request it is; the worker knows what it used. A worker believes tags only under a signature by the
shared secret (HMAC-SHA256 over the header as it travels, which has a time in it), so a client that reaches the worker cannot
charge another. Reading is for an event loop that has better things to do: one HMAC, one regular expression.
"""

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from taximeter_schemas.events import ID_PATTERN, TAG_PATTERN, Operation, ServiceTier

PREFIX = "x-taximeter-"
"""Headers of this name carry tags; those that nobody signed are for workers that believe anybody."""
TAGS_HEADER, SIGNATURE_HEADER = "x-taximeter-tags", "x-taximeter-signature"
VERSION = "taximeter-forward.v2"
TOLERANCE_SECONDS = 300
"""How far the clocks of a gateway and a worker may be apart, waiting within the worker's own front door included."""
_NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})
_TAG = re.compile(TAG_PATTERN)
_IDENTIFIER = re.compile(ID_PATTERN)


class ForwardingError(ValueError):
    """The forwarded tags are missing, malformed, too old, or not signed by a gateway."""


class Forwarded(NamedTuple):
    """The tags of one attempt. `request_id` is the id of its usage event; `pool` is the cache pool's tag in events.

    `is_metered` says that the gateway sends the event itself, and the worker none.
    """

    tenant: str
    feature: str
    request_id: str
    root_request_id: str
    pool: str
    hop: int = 0
    attempt: int = 0
    operation: Operation = Operation.OTHER
    service_tier: ServiceTier = ServiceTier.STANDARD
    is_metered: bool = False
    lease_id: str | None = None
    attributes: Mapping[str, str] = _NO_ATTRIBUTES


def sign(tags: Forwarded, secret: bytes, now: int) -> list[tuple[str, str]]:
    """The headers to send. `now` is in seconds since the epoch. Raises ForwardingError for what a worker would not read."""
    metered_by = "gateway" if tags.is_metered else "worker"
    words = [VERSION, str(now), *tags[:5], str(tags.hop), str(tags.attempt), tags.operation, tags.service_tier]
    text = " ".join([*words, metered_by, tags.lease_id or "", json.dumps(dict(tags.attributes), separators=(",", ":"))])
    if _TEXT.match(text) is None:
        raise ForwardingError(_problem(tags))
    return [(TAGS_HEADER, text), (SIGNATURE_HEADER, hmac.digest(secret, text.encode(), "sha256").hex())]


def verify(
    text: bytes, signature: bytes, secrets: Sequence[bytes], now: int, tolerance_seconds: int = TOLERANCE_SECONDS
) -> Forwarded:
    """The tags that the two headers carry, under any of the secrets (the new and the old, in a rotation).

    `now` is in seconds since the epoch. Raises ForwardingError.
    """
    for secret in secrets:
        if hmac.compare_digest(hmac.digest(secret, text, "sha256").hex().encode(), signature):
            break
    else:
        raise ForwardingError("the signature is not a gateway's")
    match = _TEXT.match(text.decode("latin-1"))
    if match is None:
        raise ForwardingError("a forwarded tag is not valid, or the gateway is of another version")
    signed_at, tenant, feature, request_id, root, pool, hop, attempt, operation, tier, by, lease, attributes = (
        match.groups()
    )
    if abs(now - int(signed_at)) > tolerance_seconds:
        raise ForwardingError("the signature is too old, or the clocks are apart")
    return Forwarded(
        tenant,
        feature,
        request_id,
        root,
        pool,
        int(hop),
        int(attempt),
        _OPERATIONS[operation],
        _TIERS[tier],
        by == "gateway",
        lease or None,
        _NO_ATTRIBUTES if attributes == "{}" else _read_attributes(attributes),
    )


def _inner(pattern: str) -> str:
    """A pattern for a whole value, as a part of a longer one."""
    return pattern.removeprefix("^").removesuffix(r"$(?!\n)")


_OPERATIONS: dict[str, Operation] = {operation.value: operation for operation in Operation}
_TIERS: dict[str, ServiceTier] = {tier.value: tier for tier in ServiceTier}
_WORDS = (
    VERSION.replace(".", r"\."),
    r"(\d{1,12})",
    *(f"({_inner(pattern)})" for pattern in (TAG_PATTERN, TAG_PATTERN, ID_PATTERN, ID_PATTERN, TAG_PATTERN)),
    *([r"([0-9]{1,3}|1000)"] * 2),
    f"({'|'.join(_OPERATIONS)})",
    f"({'|'.join(_TIERS)})",
    "(worker|gateway)",
    f"({_inner(ID_PATTERN)}|)",
    r"(\{.*\})\Z",
)
_TEXT = re.compile(" ".join(_WORDS), re.ASCII)


def _read_attributes(text: str) -> Mapping[str, str]:
    try:
        attributes: Any = json.loads(text)
    except ValueError:
        attributes = None
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise ForwardingError("attributes are not texts")
    return attributes


def _problem(tags: Forwarded) -> str:
    """Which of the tags cannot be forwarded."""
    for pattern, names in ((_TAG, ("tenant", "feature", "pool")), (_IDENTIFIER, ("request_id", "root_request_id"))):
        for name in names:
            if pattern.match(getattr(tags, name)) is None:
                return f"{name} is not valid"
    return "hop, attempt or lease_id is not valid"
