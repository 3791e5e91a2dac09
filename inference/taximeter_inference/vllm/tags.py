"""Whose request it is: the tags that a gateway signed, or, where the worker's settings say so, those that anybody sent. Pure."""

import re
from collections.abc import Mapping

from taximeter_inference.forwarding import (
    PREFIX,
    SIGNATURE_HEADER,
    TAGS_HEADER,
    Forwarded,
)
from taximeter_inference.vllm.errors import ForeignTagsError, UntaggedError
from taximeter_schemas.events import TAG_PATTERN, Operation

UNTAGGED = "untagged"
"""Tenant and feature of a request without tags, where the worker meters such."""
OPERATIONS: Mapping[str, Operation] = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETION,
    "/v1/responses": Operation.RESPONSE,
    "/v1/messages": Operation.CHAT,
    "/v1/embeddings": Operation.EMBEDDING,
    "/v2/embed": Operation.EMBEDDING,
    "/score": Operation.SCORE,
    "/v1/score": Operation.SCORE,
    "/rerank": Operation.RERANK,
    "/v1/rerank": Operation.RERANK,
    "/v2/rerank": Operation.RERANK,
}
"""Routes that use the engine. Others are looked at once they do."""
SIGNATURE, TAGS, TENANT = SIGNATURE_HEADER.encode(), TAGS_HEADER.encode(), f"{PREFIX}tenant".encode()
_TAG = re.compile(TAG_PATTERN)
_UNNAMED = "-"


def trusted_tags(headers: Mapping[bytes, bytes], path: str) -> Forwarded:
    """The tags that a request brings, unsigned. Its event gets an id by the worker.

    Raises UntaggedError where tenant or feature is missing, ForeignTagsError where a tag is malformed.
    """

    def tag(name: str) -> str | None:
        value = _text(headers, name)
        if value is not None and _TAG.match(value) is None:
            raise ForeignTagsError(f"{PREFIX}{name} is not valid")
        return value

    tenant, feature = tag("tenant"), tag("feature")
    if tenant is None or feature is None:
        raise UntaggedError(f"{PREFIX}tenant and {PREFIX}feature are required")
    return Forwarded(
        tenant=tenant,
        feature=feature,
        request_id=_UNNAMED,
        root_request_id=_text(headers, "root") or _UNNAMED,
        pool=tag("pool") or own_pool(tenant),
        hop=_ordinal(headers, "hop"),
        attempt=_ordinal(headers, "attempt"),
        operation=OPERATIONS.get(path, Operation.OTHER),
    )


def explicit_tags(tenant: str, feature: str, operation: Operation, root: str | None, pool: str | None) -> Forwarded:
    """Tags that a program names itself, for use without a server. Raises ForeignTagsError."""
    for name in (tenant, feature, pool or tenant):
        if _TAG.match(name) is None:
            raise ForeignTagsError(f"{name!r} is not a tag")
    return Forwarded(tenant, feature, _UNNAMED, root or _UNNAMED, pool or own_pool(tenant), operation=operation)


def untagged(path: str) -> Forwarded:
    """The tags of a request that brought none."""
    operation = OPERATIONS.get(path, Operation.OTHER)
    return Forwarded(UNTAGGED, UNTAGGED, _UNNAMED, _UNNAMED, own_pool(UNTAGGED), operation=operation)


def is_named(tags: Forwarded) -> bool:
    """Whether a gateway already gave the request's event its id."""
    return tags.request_id != _UNNAMED


def root_of(tags: Forwarded) -> str | None:
    """The root request, where one was named."""
    return tags.root_request_id if tags.root_request_id != _UNNAMED else None


def own_pool(tenant: str) -> str:
    """The cache pool of a tenant that shares none."""
    pool = f"tenant:{tenant}"
    return pool if _TAG.match(pool) else tenant


def _text(headers: Mapping[bytes, bytes], name: str) -> str | None:
    value = headers.get(f"{PREFIX}{name}".encode())
    return value.decode("latin-1") if value is not None else None


def _ordinal(headers: Mapping[bytes, bytes], name: str) -> int:
    value = _text(headers, name) or "0"
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and int(value) <= 1_000):
        raise ForeignTagsError(f"{PREFIX}{name} must be a whole number from 0 to 1000")
    return int(value)
