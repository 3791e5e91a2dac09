"""What a gateway reads from a request, and what it sends on: keys, tags, bodies, salts. Tables."""

import hashlib
import json
from typing import Any

import pytest

from taximeter_inference.gateway.authenticate import authenticate
from taximeter_inference.gateway.bodies import read_body, upstream_body
from taximeter_inference.gateway.errors import (
    GatewayError,
    InvalidApiKeyError,
    InvalidJsonError,
    InvalidRequestError,
    InvalidTagError,
    MissingFeatureError,
    TenantSuspendedError,
)
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.gateway.tags import Tags, read_tags
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.events import Operation, ServiceTier
from taximeter_schemas.tenants import ApiKey, Tenant, TenantStatus

SNAPSHOT = ControlSnapshot(
    tenants={
        "acme": Tenant(id="acme"),
        "late": Tenant(id="late", status=TenantStatus.SUSPENDED),
    },
    api_keys={
        (digest := hashlib.sha256(secret).hexdigest()): ApiKey(
            id=tenant, tenant=tenant, key_sha256=digest, disabled=secret == b"sk-old"
        )
        for secret, tenant in ((b"sk-a", "acme"), (b"sk-old", "acme"), (b"sk-l", "late"), (b"sk-gone", "gone"))
    },
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"Bearer sk-a", "acme"),
        (b"bearer   sk-a ", "acme"),  # the scheme in any case, spaces around the key
        (b"Bearer sk-b", InvalidApiKeyError),
        (b"Bearer sk-old", InvalidApiKeyError),  # disabled
        (b"Bearer sk-gone", InvalidApiKeyError),  # its tenant is not declared
        (b"Bearer ", InvalidApiKeyError),
        (b"Basic sk-a", InvalidApiKeyError),
        (b"sk-a", InvalidApiKeyError),
        (None, InvalidApiKeyError),
        (b"Bearer " + b"x" * 100_000, InvalidApiKeyError),
        (b"Bearer sk-l", TenantSuspendedError),
    ],
)
def test_a_key_names_its_tenant(header: bytes | None, expected: str | type[GatewayError]) -> None:
    if isinstance(expected, str):
        assert authenticate(header, SNAPSHOT).tenant.id == expected
    else:
        with pytest.raises(expected):
            authenticate(header, SNAPSHOT)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"feature": "chat"}, Tags("chat")),
        ({"feature": " chat "}, Tags("chat")),
        ({"feature": "chat", "root-request-id": "turn-1", "hop": "3"}, Tags("chat", "turn-1", 3)),
        ({"feature": "chat", "attempt": "2"}, Tags("chat", attempt=2)),
        ({"feature": "chat", "service-tier": "batch"}, Tags("chat", service_tier=ServiceTier.BATCH)),
        ({"feature": "chat", "attributes": "a=1, b = two"}, Tags("chat", attributes={"a": "1", "b": "two"})),
        ({}, MissingFeatureError),
        ({"feature": ""}, MissingFeatureError),
        ({"hop": "1"}, MissingFeatureError),
        ({"feature": "with space"}, InvalidTagError),
        ({"feature": "x" * 129}, InvalidTagError),
        ({"feature": "chat\n"}, Tags("chat")),  # servers fold line ends away
        ({"feature": "chat", "hop": "1.5"}, InvalidTagError),
        ({"feature": "chat", "hop": "1001"}, InvalidTagError),
        ({"feature": "chat", "service-tier": "free"}, InvalidTagError),
        ({"feature": "chat", "root-request-id": "two words"}, InvalidTagError),
        ({"feature": "chat", "attributes": "a"}, InvalidTagError),
        ({"feature": "chat", "attributes": "a=1,a=2"}, InvalidTagError),
        ({"feature": "chat", "attributes": "a=" + "x" * 257}, InvalidTagError),
        ({"feature": "chat", "attributes": ",".join(f"a{n}=1" for n in range(40))}, InvalidTagError),
        # What billing or the operator's alerts act on: a client would choose its price, or take back its own usage.
        ({"feature": "chat", "attributes": "voids=gateway-1:aa:7"}, InvalidTagError),
        ({"feature": "chat", "attributes": "team=search, amends=gateway-1:aa:7"}, InvalidTagError),
        ({"feature": "chat", "attributes": "region=cheap"}, InvalidTagError),
        ({"feature": "chat", "attributes": "search_units=-1"}, InvalidTagError),
        ({"feature": "chat", "attributes": "adapter_hours=0"}, InvalidTagError),
        ({"feature": "chat", "attributes": "cache.incident=x"}, InvalidTagError),
        ({"feature": "chat", "attributes": "engine.requests=x"}, InvalidTagError),
        ({"feature": "chat", "attributes": "taximeter.api_key=x"}, InvalidTagError),
    ],
)
def test_tags_come_from_headers(headers: dict[str, str], expected: Tags | type[GatewayError]) -> None:
    sent = [(f"x-taximeter-{name}".encode(), value.encode()) for name, value in headers.items()]
    if isinstance(expected, Tags):
        assert read_tags([(b"host", b"x"), *sent]) == expected
    else:
        with pytest.raises(expected):
            read_tags(sent)


@pytest.mark.parametrize("sent", [{}, {"attributes": "team=search"}])
def test_the_region_is_the_gateways(sent: dict[str, str]) -> None:
    headers = [(f"x-taximeter-{name}".encode(), value.encode()) for name, value in {"feature": "chat", **sent}.items()]
    assert read_tags(headers, "eu-west").attributes["region"] == "eu-west"
    assert "region" not in read_tags(headers).attributes


def test_a_tag_that_is_sent_twice_is_ambiguous() -> None:
    with pytest.raises(InvalidTagError):
        read_tags([(b"x-taximeter-feature", b"a"), (b"x-taximeter-feature", b"b")])


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", InvalidJsonError),
        (b"{", InvalidJsonError),
        (b'"text"', InvalidJsonError),
        (b"\xff", InvalidJsonError),
        (b"[" * 100_000, InvalidJsonError),
        (b"{}", InvalidRequestError),
        (b'{"model": 7}', InvalidRequestError),
        (b'{"model": "a b"}', InvalidRequestError),
        (b'{"model": "m", "max_tokens": 1.5}', InvalidRequestError),
        (b'{"model": "m", "max_tokens": true}', InvalidRequestError),
        (b'{"model": "m", "max_tokens": -1}', InvalidRequestError),
        (b'{"model": "m", "n": 1000000}', InvalidRequestError),
        (b'{"model": "m", "stream": "yes"}', InvalidRequestError),
        (b'{"model": "m", "stream_options": 1}', InvalidRequestError),
        (b'{"model": "m", "cache_salt": 1}', InvalidRequestError),
    ],
)
def test_bodies_that_are_refused(body: bytes, error: type[GatewayError]) -> None:
    with pytest.raises(error):
        read_body(body, Operation.CHAT)


@pytest.mark.parametrize(
    ("fields", "bound", "answers"),
    [
        ({}, None, 1),
        ({"max_tokens": 5}, 5, 1),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7, 1),
        ({"max_tokens": 5, "n": 3}, 5, 3),
        ({"max_tokens": 5, "n": 2, "best_of": 4}, 5, 4),
        ({"prompt": ["a", "b"], "n": 2}, None, 4),
        ({"prompt": [1, 2, 3]}, None, 1),  # one prompt of three token ids
        ({"prompt": [[1, 2], [3]]}, None, 2),
    ],
)
def test_how_much_a_body_may_produce(fields: dict[str, Any], bound: int | None, answers: int) -> None:
    body = read_body(json.dumps({"model": "m", **fields}).encode(), Operation.COMPLETION)
    assert (body.output_tokens_max, body.answers) == (bound, answers)


def test_what_goes_upstream() -> None:
    sent = {
        "model": "m",
        "cache_salt": "mine",
        "priority": -9,
        "kv_transfer_params": {},
        "stream": True,
        "stream_options": {"include_usage": False},
        "temperature": 0.5,
    }
    body = read_body(json.dumps(sent).encode(), Operation.CHAT)
    assert json.loads(upstream_body(body, "ours", 64)) == {
        "model": "m",
        "cache_salt": "ours",
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "temperature": 0.5,
        "max_tokens": 64,
    }
    assert (body.client_salt, body.wants_usage) == ("mine", False)


def test_salts_differ_by_pool_part_secret_and_key() -> None:
    keys = PoolKeys(b"secret", "1")
    salts = [
        keys.salt("a"),
        keys.salt("b"),
        keys.salt("a", "mine"),
        keys.salt("b", "mine"),
        keys.salt("a", ""),
        keys.salt("a", keys.salt("b")),  # nobody reaches another pool by its salt
        PoolKeys(b"other", "1").salt("a"),
        PoolKeys(b"secret", "2").salt("a"),
    ]
    assert len(set(salts)) == len(salts)
    assert {len(salt) for salt in salts} == {43}
    assert keys.salt("a") == PoolKeys(b"secret", "1").salt("a")
    assert keys.block_hash("a", b"block") != keys.block_hash("b", b"block")
    assert len(keys.block_hash("a", b"block")) == 32
