"""Tags travel to a worker under a signature: what arrives is what was signed, or nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from taximeter_inference.forwarding import (
    SIGNATURE_HEADER,
    TAGS_HEADER,
    Forwarded,
    ForwardingError,
    sign,
    signature_of,
    signing_key,
    verify,
)
from taximeter_schemas.events import Operation, ServiceTier

SECRET = b"a shared secret of the gateway and its workers"
KEYS = (signing_key(SECRET),)
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
        replace(TAGS, is_metered=True, lease_id=None, attributes={}),
        Forwarded("a", "b", "c", "d", "e", hop=1_000, attempt=1_000),
    ],
)
def test_what_was_signed_arrives(tags: Forwarded) -> None:
    assert verify(*signed(tags), [signing_key(b"the new secret of a rotation"), *KEYS], NOW + 5) == tags


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"acme"', b'"globex"'),
        (b'"chat"', b'"chit"'),
        (b':7"', b':8"'),
        (b",2,1,", b",2,2,"),
        (b"tenant:acme", b"tenant:duo"),
        (b"false", b"true"),
        (b"eu west", b"us"),
    ],
)
def test_a_changed_tag_is_refused(before: bytes, after: bytes) -> None:
    text, signature = signed()
    assert before in text
    with pytest.raises(ForwardingError, match="not a gateway's"):
        verify(text.replace(before, after, 1), signature, KEYS, NOW)


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
        verify(*headers, KEYS, now)


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), st.integers(-1, 1_001))
def test_only_tags_are_signed(tenant: str, lease: str, hop: int) -> None:
    tags = Forwarded(tenant, "chat", "r", "r", "p", hop=hop, lease_id=lease or None)
    try:
        headers = signed(tags)
    except ForwardingError:
        return
    assert verify(*headers, KEYS, NOW) == tags


@pytest.mark.parametrize(
    "text",
    [
        b'["taximeter-forward.v2",1790000000,["acme","chat","r","r","p"]]',
        b"taximeter-forward.v2 1790000000 acme chat r r p 0 0 chat standard worker  {}",
        b'["taximeter-forward.v3",1790000000,["acme","chat","r","r"]]',
        b'["taximeter-forward.v3",1790000000,["acme","chat","r","r","p",0,0,"dance"]]',
        b'["taximeter-forward.v3",1790000000,["acme","chat","r","r","p",0,0,"chat","batch",false,null,{},"more"]]',
        b'["taximeter-forward.v3",1790000000,["acme","chat","r","r","p",0,0,"chat","batch",false,null,{"a":1}]]',
        b'["taximeter-forward.v3",1790000000,["acme","chat","r","r","\xff"]]',
        b"[]",
    ],
)
def test_what_another_version_signed_is_refused(text: bytes) -> None:
    with pytest.raises(ForwardingError, match="another version"):
        verify(text, signature_of(text, SECRET).encode(), KEYS, NOW)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tenant": "-acme"}, "tenant is not valid"),
        ({"pool": "a b"}, "pool is not valid"),
        ({"request_id": ""}, "request_id is not valid"),
        ({"lease_id": "a\nb"}, "lease_id is not valid"),
        ({"hop": 1_001}, "hop or attempt is not valid"),
    ],
)
def test_what_is_no_tag_is_not_signed(changes: dict[str, Any], problem: str) -> None:
    """A worker believes what is signed as it stands."""
    with pytest.raises(ForwardingError, match=problem):
        sign(replace(TAGS, **changes), SECRET, NOW)


def test_a_long_secret_signs_with_all_of_it() -> None:
    """A key of BLAKE2b has 64 bytes at most."""
    long = b"x" * 64
    text, signature = signed(secret=long + b"y")
    assert verify(text, signature, [signing_key(long + b"y")], NOW) == TAGS
    for other in (long, long + b"z"):
        with pytest.raises(ForwardingError):
            verify(text, signature, [signing_key(other)], NOW)
