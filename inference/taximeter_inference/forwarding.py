"""Tags on their way from the gateway to a worker that meters for itself: one header, and a gateway's signature over it. Pure.

The gateway knows whose request it is; the worker knows what it used. A worker believes tags only under a signature by the
shared secret (keyed BLAKE2b, RFC 7693, over the header as it travels, which has a time in it), so a client that reaches the
worker cannot charge another. Reading is for an event loop that has better things to do: one hash, one decoding. The
hash is BLAKE2b because it is small: between other work, when nothing is in the processor's caches, an HMAC by OpenSSL costs a
worker four times as much.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from typing import Final, Literal

import msgspec

from taximeter_schemas.events import ID_PATTERN, TAG_PATTERN, Operation, ServiceTier

PREFIX = "x-taximeter-"
"""Headers of this name carry tags; those that nobody signed are for workers that believe anybody."""
TAGS_HEADER, SIGNATURE_HEADER = "x-taximeter-tags", "x-taximeter-signature"
VERSION: Final = "taximeter-forward.v3"
HOPS_MAX = 1_000
_KEY_BYTES_MAX = 64
_SIGNATURE_BYTES = 32
TOLERANCE_SECONDS = 300
"""How far the clocks of a gateway and a worker may be apart, waiting within the worker's own front door included."""
_TAG = re.compile(TAG_PATTERN)
_IDENTIFIER = re.compile(ID_PATTERN)


class ForwardingError(ValueError):
    """The forwarded tags are missing, malformed, too old, or not signed by a gateway."""


class Forwarded(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
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
    attributes: dict[str, str] = {}


def sign(tags: Forwarded, secret: bytes, now: int) -> list[tuple[str, str]]:
    """The headers to send. `now` is in seconds since the epoch. Raises ForwardingError for what is no tag."""
    if (problem := _problem(tags)) is not None:
        raise ForwardingError(problem)
    # Not msgspec's own encoder: a header is ASCII, whatever attributes hold.
    text = json.dumps(msgspec.to_builtins(_Signed(VERSION, now, tags)), separators=(",", ":"))
    return [(TAGS_HEADER, text), (SIGNATURE_HEADER, signature_of(text.encode(), secret))]


def signature_of(text: bytes, secret: bytes) -> str:
    """A header's signature: 64 hexadecimal digits."""
    state = signing_key(secret).copy()
    state.update(text)
    return state.hexdigest()


@lru_cache(maxsize=16)
def signing_key(secret: bytes) -> blake2b:
    """A secret as a state that has taken it in: copying it is less than making it."""
    key = secret if len(secret) <= _KEY_BYTES_MAX else blake2b(secret).digest()
    return blake2b(key=key, digest_size=_SIGNATURE_BYTES)


def verify(
    text: bytes, signature: bytes, keys: Iterable[blake2b], now: float, tolerance_seconds: int = TOLERANCE_SECONDS
) -> Forwarded:
    """The tags that the two headers carry, under any of the keys (the new and the old, in a rotation).

    `now` is in seconds since the epoch. Raises ForwardingError.
    """
    for key in keys:
        state = key.copy()  # As `signature_of` does, with a call less.
        state.update(text)
        if compare_digest(state.hexdigest().encode(), signature):
            break
    else:
        raise ForwardingError("the signature is not a gateway's")
    try:
        signed = _SIGNED.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ForwardingError("the gateway is of another version") from None
    if not -tolerance_seconds <= now - signed.at <= tolerance_seconds:
        raise ForwardingError("the signature is too old, or the clocks are apart")
    return signed.tags


class _Signed(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """What is signed. `at` is in seconds since the epoch."""

    version: Literal["taximeter-forward.v3"]  # VERSION: another one is refused while decoding.
    at: int
    tags: Forwarded


_SIGNED = msgspec.json.Decoder(_Signed)


def _problem(tags: Forwarded) -> str | None:
    """Which of the tags cannot be forwarded: a worker does not look at them again once they are signed."""
    for pattern, names in ((_TAG, ("tenant", "feature", "pool")), (_IDENTIFIER, ("request_id", "root_request_id"))):
        for name in names:
            if pattern.match(getattr(tags, name)) is None:
                return f"{name} is not valid"
    if tags.lease_id is not None and _IDENTIFIER.match(tags.lease_id) is None:
        return "lease_id is not valid"
    if not (0 <= tags.hop <= HOPS_MAX and 0 <= tags.attempt <= HOPS_MAX):
        return "hop or attempt is not valid"
    return None
