"""Tags travel to a worker under a signature: what arrives is what was signed, or nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taximeter_inference.forwarding import Forwarded, ForwardingError, is_forwarded, sign, verify
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
    attributes={"team": "Straße", "region": "eu"},
)


def test_what_was_signed_arrives() -> None:
    headers = dict(sign(TAGS, SECRET, NOW))
    assert is_forwarded(headers) and not is_forwarded({})
    assert all(value.isascii() for value in headers.values())
    assert verify(headers, [b"the new secret of a rotation", SECRET], NOW + 5) == TAGS


@pytest.mark.parametrize("name", ["tenant", "feature", "request-id", "root", "hop", "attempt", "lease", "pool"])
def test_a_changed_or_missing_tag_is_refused(name: str) -> None:
    headers = dict(sign(TAGS, SECRET, NOW))
    with pytest.raises(ForwardingError, match="not a gateway's"):
        verify({**headers, f"x-taximeter-{name}": "9"}, [SECRET], NOW)
    del headers[f"x-taximeter-{name}"]
    with pytest.raises(ForwardingError, match="not a gateway's"):
        verify(headers, [SECRET], NOW)


@pytest.mark.parametrize(
    ("headers", "now"),
    [
        ({}, NOW),  # not from a gateway
        ({"x-taximeter-signature": "v1=00"}, NOW),  # malformed
        (dict(sign(TAGS, SECRET, NOW)), NOW + 301),  # replayed later
        (dict(sign(TAGS, SECRET, NOW)), NOW - 301),
        (dict(sign(TAGS, b"another secret", NOW)), NOW),
    ],
)
def test_what_no_gateway_signed_now_is_refused(headers: dict[str, str], now: int) -> None:
    with pytest.raises(ForwardingError):
        verify(headers, [SECRET], now)


@given(st.text(min_size=1, max_size=20), st.integers(0, 1000))
def test_even_signed_tags_must_be_tags(tenant: str, hop: int) -> None:
    signed = sign(Forwarded(tenant, "chat", "r", "r", "p", hop=hop), SECRET, NOW)
    try:
        read = verify(dict(signed), [SECRET], NOW)
    except ForwardingError:
        return
    assert (read.tenant, read.hop) == (tenant, hop)
