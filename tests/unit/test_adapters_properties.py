"""Laws of every adapter: what adds up still adds up, nothing is negative, and garbage is an error, never a silent zero."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taximeter_producers.adapters import (
    UsageObjectError,
    tokens_from_anthropic,
    tokens_from_gemini,
    tokens_from_lmcache,
    tokens_from_openai,
    tokens_from_openrouter,
    tokens_from_sglang,
    tokens_from_vllm,
)
from taximeter_schemas.events import Tokens, total_tokens

few = st.integers(0, 3_000_000)
Usage = Mapping[str, Any]


@given(few, few, few, few, few, few)
@settings(max_examples=60)
def test_inclusive_usage_adds_up(uncached: int, cached: int, short: int, long: int, text: int, reasoning: int) -> None:
    prompt, output = uncached + cached + short + long, text + reasoning
    details = {
        "cached_tokens": cached,
        "cache_write_tokens": short + long,
        "cache_write_tokens_details": {"ttl_30m_tokens": short, "ttl_12h_tokens": long},
    }
    chat: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    chat |= {"prompt_tokens_details": details, "completion_tokens_details": {"reasoning_tokens": reasoning}}
    response: dict[str, Any] = {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output}
    response |= {"input_tokens_details": details, "output_tokens_details": {"reasoning_tokens": reasoning}}
    beside = chat | {"completion_tokens": text}  # reasoning counted beside the completion: the same tokens
    for tokens in (tokens_from_openai(chat), tokens_from_openai(response), tokens_from_openrouter(chat)):
        assert tokens == tokens_from_openai(chat)
        assert total_tokens(tokens) == prompt + output
        assert (tokens.uncached_input, tokens.cache_read.provider) == (uncached, cached)
        assert (tokens.cache_write.five_minutes, tokens.cache_write.one_hour) == (short, long)
    assert tokens_from_openai(beside) == tokens_from_openai(chat)


@given(few, few, few, few, few, few)
@settings(max_examples=60)
def test_additive_usage_adds_up(uncached: int, read: int, short: int, long: int, output: int, thinking: int) -> None:
    usage = {
        "input_tokens": uncached,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": short + long,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
        "output_tokens": output + thinking,
        "output_tokens_details": {"thinking_tokens": thinking},
    }
    tokens = tokens_from_anthropic(usage)
    assert total_tokens(tokens) == uncached + read + short + long + output + thinking
    assert (tokens.uncached_input, tokens.reasoning) == (uncached, thinking)


@given(few, few, few, few, few)
@settings(max_examples=60)
def test_gemini_adds_up_to_its_own_total(
    uncached: int, cached: int, tools: int, candidates: int, thoughts: int
) -> None:
    usage = {
        "promptTokenCount": uncached + cached,
        "cachedContentTokenCount": cached,
        "toolUsePromptTokenCount": tools,
        "candidatesTokenCount": candidates,
        "thoughtsTokenCount": thoughts,
        "totalTokenCount": uncached + cached + tools + candidates + thoughts,
    }
    tokens = tokens_from_gemini(usage)
    assert total_tokens(tokens) == usage["totalTokenCount"]
    assert (tokens.output, tokens.reasoning) == (candidates + thoughts, thoughts)


@given(few, few, few, few, few)
@settings(max_examples=60)
def test_tiers_add_up_to_what_was_cached(uncached: int, gpu: int, cpu: int, disk: int, output: int) -> None:
    cached = gpu + cpu + disk
    usage: dict[str, Any] = {"prompt_tokens": uncached + cached, "completion_tokens": output}
    usage["prompt_tokens_details"] = {"cached_tokens": cached}
    sources = {"device": gpu, "host": cpu, "storage": disk}
    sglang = tokens_from_sglang(usage, sources)
    assert sglang == tokens_from_lmcache(usage, {"LocalCPUBackend": cpu, "LocalDiskBackend": disk})
    assert (sglang.cache_read.gpu, sglang.cache_read.cpu, sglang.cache_read.disk) == (gpu, cpu, disk)
    assert total_tokens(sglang) == total_tokens(tokens_from_vllm(usage)) == uncached + cached + output


NAMES = [
    "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "prompt_tokens_details",
    "completion_tokens_details", "input_tokens_details", "cached_tokens", "cache_write_tokens", "reasoning_tokens",
    "cache_write_tokens_details", "ttl_30m_tokens", "cache_creation", "cache_creation_input_tokens", "iterations", "type",
    "cache_read_input_tokens", "ephemeral_5m_input_tokens", "promptTokenCount", "candidatesTokenCount", "totalTokenCount",
    "thoughtsTokenCount", "cachedContentTokenCount", "cacheTokensDetails", "tokenCount", "cached_tokens_details", "device",
    "local_cached_tokens", "external_cached_tokens", "output_tokens_details", "thinking_tokens",
]  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats(0, 9)
    | st.sampled_from(["", "compaction"])
)
garbage = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=8),
    max_leaves=25,
)
REQUIRED: list[tuple[Callable[..., Tokens], tuple[str, ...]]] = [
    (tokens_from_openai, ("prompt_tokens", "input_tokens")),
    (tokens_from_openrouter, ("prompt_tokens", "input_tokens")),
    (tokens_from_anthropic, ("input_tokens",)),
    (tokens_from_gemini, ("promptTokenCount",)),
    (tokens_from_vllm, ("prompt_tokens", "input_tokens")),
    (tokens_from_sglang, ("prompt_tokens", "input_tokens")),
]


@pytest.mark.parametrize(("reader", "required"), REQUIRED)
@given(usage=garbage)
@settings(max_examples=100)
def test_garbage_is_a_named_error_and_never_a_silent_zero(
    reader: Callable[..., Tokens], required: tuple[str, ...], usage: Any
) -> None:
    try:
        tokens = reader(usage)
    except UsageObjectError as error:
        assert str(error)
        return
    # What was read without complaint said itself how much the input was, and the input is at least that.
    assert isinstance(usage, dict)
    stated = next(usage[name] for name in required if usage.get(name) is not None)
    assert type(stated) is int
    assert total_tokens(tokens) >= stated >= 0
    assert tokens.reasoning <= tokens.output
