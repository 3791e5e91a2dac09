"""What a request is for: the tags in its x-taximeter-... headers, checked against the schema's own patterns. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from taximeter_inference.gateway.errors import InvalidTagError, MissingFeatureError
from taximeter_schemas.events import ID_PATTERN, TAG_PATTERN, ServiceTier

PREFIX = b"x-taximeter-"
ATTRIBUTES_MAX = 28
"""An event takes 32; the rest are the gateway's own: the region, and names that begin with OWN_PREFIXES."""
OWN_PREFIXES = ("taximeter.", "cache.", "engine.")
"""Begin the names that the gateway and the workers give."""
PLACE_ATTRIBUTE = "taximeter.traceparent"
"""An attempt's place in its trace, on its way to a worker that meters: there it becomes its event's `traceparent`."""
BILLED_ATTRIBUTES = ("region", "search_units", "adapter_hours", "voids", "amends")
"""Billing acts on these, so no client may set them: it would choose its own price, or take back its own usage."""
WAIT_SECONDS_MAX = 86_400
NAME_CHARACTERS_MAX = 64
VALUE_CHARACTERS_MAX = 256
ORDINAL_MAX = 1_000

_TAG = re.compile(TAG_PATTERN)
_IDENTIFIER = re.compile(ID_PATTERN)
_TIERS = {tier.value: tier for tier in ServiceTier}


@dataclass(frozen=True, slots=True)
class Tags:
    """A request's tags. `root_request_id` None means that the request is the root itself.

    `wait_seconds` is how long a request that is in no hurry may wait for its budget.
    """

    feature: str
    root_request_id: str | None = None
    hop: int = 0
    attempt: int = 0
    service_tier: ServiceTier = ServiceTier.STANDARD
    attributes: Mapping[str, str] = field(default_factory=dict)
    wait_seconds: int = 0


def read_tags(headers: Iterable[tuple[bytes, bytes]], region: str | None = None) -> Tags:
    """The tags of a request's headers (names in lower case), and the region that the gateway serves.

    Raises MissingFeatureError and InvalidTagError.
    """
    served = {"region": region} if region else {}
    found: dict[str, str] = {}
    for name, value in headers:
        if not name.startswith(PREFIX):
            continue
        tag = name[len(PREFIX) :].decode("latin-1")
        if tag in found:
            raise InvalidTagError(f"x-taximeter-{tag} was sent twice")
        found[tag] = value.decode("latin-1").strip()
    feature = found.get("feature")
    if not feature:
        raise MissingFeatureError
    if len(found) == 1:
        return Tags(_matching(_TAG, "feature", feature), attributes=served)
    tier = found.get("service-tier", ServiceTier.STANDARD.value)
    if tier not in _TIERS:
        raise InvalidTagError(f"x-taximeter-service-tier must be one of {', '.join(_TIERS)}")
    root = found.get("root-request-id")
    return Tags(
        feature=_matching(_TAG, "feature", feature),
        root_request_id=_matching(_IDENTIFIER, "root-request-id", root) if root else None,
        hop=_ordinal("hop", found.get("hop")),
        attempt=_ordinal("attempt", found.get("attempt")),
        service_tier=_TIERS[tier],
        attributes={**_attributes(found.get("attributes", "")), **served},
        wait_seconds=_ordinal("wait-seconds", found.get("wait-seconds"), WAIT_SECONDS_MAX),
    )


def is_tag(text: str) -> bool:
    """Whether the text can stand in an event as a tag."""
    return _TAG.match(text) is not None


def _matching(pattern: re.Pattern[str], name: str, value: str) -> str:
    if pattern.match(value) is None:
        raise InvalidTagError(f"x-taximeter-{name} is not valid: it must match {pattern.pattern}")
    return value


def _ordinal(name: str, value: str | None, largest: int = ORDINAL_MAX) -> int:
    if value is None:
        return 0
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and int(value) <= largest):
        raise InvalidTagError(f"x-taximeter-{name} must be a whole number from 0 to {largest}")
    return int(value)


def _attributes(text: str) -> dict[str, str]:
    """Free tags, written "team=search, env=test"."""
    attributes: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not name or not separator or name in attributes:
            raise InvalidTagError('x-taximeter-attributes must be "name=value, name=value", each name once')
        if name.startswith(OWN_PREFIXES) or name in BILLED_ATTRIBUTES:
            raise InvalidTagError(f"x-taximeter-attributes: {name} is not a client's to set")
        if len(name) > NAME_CHARACTERS_MAX or len(value) > VALUE_CHARACTERS_MAX:
            raise InvalidTagError(
                f"x-taximeter-attributes: {NAME_CHARACTERS_MAX} characters a name and {VALUE_CHARACTERS_MAX} a value"
            )
        attributes[name] = value
    if len(attributes) > ATTRIBUTES_MAX:
        raise InvalidTagError(f"x-taximeter-attributes: {ATTRIBUTES_MAX} at most")
    return attributes
