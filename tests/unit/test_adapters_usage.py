"""Usage objects as vendors publish them become disjoint tokens; what contradicts itself or is garbage has a named error."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from taximeter_producers import adapters
from taximeter_producers.adapters import (
    UsageObjectError,
    UsageSumError,
    tokens_from_anthropic,
    tokens_from_anthropic_stream,
    tokens_from_gemini,
    tokens_from_lmcache,
    tokens_from_openai,
    tokens_from_openrouter,
    tokens_from_sglang,
    tokens_from_vllm,
)
from taximeter_schemas.events import Tokens

RECORDED = Path(__file__).parents[1] / "recorded"
READERS: dict[str, Callable[..., Tokens]] = {
    "openai": tokens_from_openai,
    "openrouter": tokens_from_openrouter,
    "anthropic": tokens_from_anthropic,
    "gemini": tokens_from_gemini,
    "vllm": tokens_from_vllm,
    "sglang": tokens_from_sglang,
    "lmcache": tokens_from_lmcache,
}
CASES = [
    pytest.param(READERS[vendor], case, id=f"{vendor}: {case['what']}")
    for vendor in READERS
    for case in json.loads((RECORDED / f"usage_{vendor}.json").read_text())
]


def flat(tokens: Tokens) -> dict[str, int]:
    """The counts that are not zero, by their own name."""
    dumped = tokens.model_dump(by_alias=True, exclude={"total"})
    counts = {**dumped.pop("cache_read"), **dumped.pop("cache_write"), **dumped}
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize(("reader", "case"), CASES)
def test_a_recorded_usage(reader: Callable[..., Tokens], case: dict[str, Any]) -> None:
    assert ("source" in case) != ("constructed" in case), "every payload says where it comes from"
    more = [case["hits"]] if "hits" in case else []
    if "error" in case:
        with pytest.raises(UsageObjectError) as raised:
            reader(case["usage"], *more)
        assert type(raised.value).__name__ == case["error"]
        assert str(raised.value)
    else:
        assert flat(reader(case["usage"], *more)) == case["tokens"]


class SdkUsage(BaseModel):
    """What an SDK hands out."""

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: dict[str, int] | None = None


def test_an_sdk_object_is_read_like_its_json() -> None:
    usage = SdkUsage(prompt_tokens=9, completion_tokens=2, prompt_tokens_details={"cached_tokens": 4})
    assert flat(tokens_from_openai(usage)) == {"uncached_input": 5, "provider": 4, "output": 2}


@pytest.mark.parametrize("usage", [7, "usage", SdkUsage, SimpleNamespace(prompt_tokens=3), None, [{}]])
def test_what_is_no_object_is_named(usage: Any) -> None:
    with pytest.raises(UsageObjectError, match="openai: usage is not an object"):
        tokens_from_openai(usage)


def test_an_external_tier_can_be_the_disk() -> None:
    details = {"cached_tokens": 6, "external_cached_tokens": 4}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": details}
    assert flat(tokens_from_vllm(usage, external_tier="disk")) == {
        "uncached_input": 3,
        "gpu": 2,
        "disk": 4,
        "output": 1,
    }


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        # message_delta is cumulative; what it does not name stands as it began.
        ({"output_tokens": 15}, {"uncached_input": 472, "provider": 8, "1h": 2, "output": 15}),
        (
            {
                "output_tokens": 510,
                "input_tokens": 10_682,
                "cache_creation_input_tokens": 2,
                "cache_read_input_tokens": 9,
            },
            {"uncached_input": 10_682, "provider": 9, "1h": 2, "output": 510},
        ),
        # The split by lifetime was of another count.
        (
            {"output_tokens": 1, "cache_creation_input_tokens": 7},
            {"uncached_input": 472, "provider": 8, "5m": 7, "output": 1},
        ),
    ],
)
def test_a_stream_of_messages(delta: dict[str, Any], expected: dict[str, int]) -> None:
    start = {
        "input_tokens": 472,
        "output_tokens": 2,
        "cache_read_input_tokens": 8,
        "cache_creation_input_tokens": 2,
        "cache_creation": {"ephemeral_1h_input_tokens": 2},
    }
    assert flat(tokens_from_anthropic_stream(start, delta)) == expected


def test_errors_name_the_vendor_and_the_field() -> None:
    with pytest.raises(
        UsageObjectError, match=r"anthropic: usage\.cache_creation\.ephemeral_5m_input_tokens is not a number"
    ):
        tokens_from_anthropic(
            {"input_tokens": 1, "output_tokens": 1, "cache_creation": {"ephemeral_5m_input_tokens": "x"}}
        )
    with pytest.raises(UsageSumError, match="gemini: totalTokenCount is 9, the parts add up to 8"):
        tokens_from_gemini({"promptTokenCount": 5, "candidatesTokenCount": 3, "totalTokenCount": 9})


def test_the_public_face() -> None:
    assert {f"tokens_from_{vendor}" for vendor in READERS} < set(adapters.__all__)
    assert all(hasattr(adapters, name) for name in adapters.__all__)
