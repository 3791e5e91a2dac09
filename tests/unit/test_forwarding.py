"""Tags travel to a worker under a signature: what arrives is what was signed, or nothing."""

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taximeter_inference.forwarding import (
    SIGNATURE_HEADER,
    TAGS_HEADER,
    Forwarded,
    ForwardingError,
    sign,
    verify,
)
from taximeter_schemas.events import Operation, ServiceTier

SECRET = b"a shared secret of the gateway and its workers"
NOW = 1_790_000_000
TAGS = Forwarded(
    tenant="acme",
    feature="chat",
    request_id="gateway-1:ab12:7",
    root_request_id="turn-1",
    pool="tenant:acme",
    hop=2,
    attempt=1,
    lease_id="gateway-1:ab12:3",
    operation=Operation.CHAT,
    service_tier=ServiceTier.BATCH,
    attributes={"team": "Straße", "region": "eu west"},
)


def signed(tags: Forwarded = TAGS, secret: bytes = SECRET, now: int = NOW) -> tuple[bytes, bytes]:
    """The two headers, as they arrive."""
    headers = dict(sign(tags, secret, now))
    return headers[TAGS_HEADER].encode("ascii"), headers[SIGNATURE_HEADER].encode("ascii")


@pytest.mark.parametrize(
    "tags",
    [
        TAGS,
        TAGS._replace(is_metered=True, lease_id=None, attributes={}),
        Forwarded("a", "b", "c", "d", "e", hop=1_000, attempt=1_000),
    ],
)
def test_what_was_signed_arrives(tags: Forwarded) -> None:
    assert verify(*signed(tags), [b"the new secret of a rotation", SECRET], NOW + 5) == tags


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b" acme ", b" globex "),
        (b" chat ", b" chit "),
        (b":7 ", b":8 "),
        (b" 2 1 ", b" 2 2 "),
        (b"tenant:acme", b"tenant:duo"),
        (b" worker ", b" gateway "),
        (b"eu west", b"us"),
    ],
)
def test_a_changed_tag_is_refused(before: bytes, after: bytes) -> None:
    text, signature = signed()
    assert before in text
    with pytest.raises(ForwardingError, match="not a gateway's"):
        verify(text.replace(before, after, 1), signature, [SECRET], NOW)


@pytest.mark.parametrize(
    ("headers", "now"),
    [
        ((b"", b""), NOW),  # not from a gateway
        ((signed()[0], b"00"), NOW),  # malformed
        ((signed()[0], "é".encode("latin-1") * 64), NOW),
        (signed(), NOW + 301),  # replayed later
        (signed(), NOW - 301),
        (signed(secret=b"another secret"), NOW),
    ],
)
def test_what_no_gateway_signed_now_is_refused(headers: tuple[bytes, bytes], now: int) -> None:
    with pytest.raises(ForwardingError):
        verify(*headers, [SECRET], now)


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), st.integers(-1, 1_001))
def test_only_tags_are_signed(tenant: str, lease: str, hop: int) -> None:
    tags = Forwarded(tenant, "chat", "r", "r", "p", hop=hop, lease_id=lease or None)
    try:
        headers = signed(tags)
    except ForwardingError:
        return
    assert verify(*headers, [SECRET], NOW) == tags


@pytest.mark.parametrize(
    "text",
    [
        b"taximeter-forward.v1 1790000000 acme chat r r p 0 0 chat standard worker  {}",  # another version
        b"taximeter-forward.v2 1790000000 acme chat r r p 0 0 chat standard worker  [1]",
        b'taximeter-forward.v2 1790000000 acme chat r r p 0 0 chat standard worker  {"a":1}',
        b"taximeter-forward.v2 1790000000 acme chat r r p 0 0 chat standard worker  {{}",
        b"taximeter-forward.v2 1790000000 acme chat r r p 0 0 dance standard worker  {}",
        b"taximeter-forward.v2 1790000000 -acme chat r r p 0 0 chat standard worker  {}",
    ],
)
def test_even_signed_tags_must_be_tags(text: bytes) -> None:
    signature = hmac.digest(SECRET, text, "sha256").hex().encode()
    with pytest.raises(ForwardingError):
        verify(text, signature, [SECRET], NOW)
