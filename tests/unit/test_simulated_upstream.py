"""The simulated model server's tokenizer and prefix cache."""

import pytest

from taximeter.embedded.upstream.engine import Engine
from taximeter.embedded.upstream.prefix_cache import PrefixCache
from taximeter.embedded.upstream.prompts import Block, read_prompt, token_ids
from taximeter.embedded.upstream.refusals import RefusedError
from taximeter.embedded.upstream.requests import read_embedding, read_generation
from taximeter.embedded.upstream.settings import UpstreamSettings

WORDS = " ".join(f"word{n}" for n in range(40))


@pytest.mark.parametrize(
    ("text", "blocks", "tokens"),
    [
        ("", [], 0),
        ("one two three", [], 3),  # a rest is no block
        ("a b c d e", [Block("a b c d", 4)], 5),
        ("<|block:7:512|> <|block:8:512|>", [Block("<|block:7:512|>", 512), Block("<|block:8:512|>", 512)], 1024),
        ("a b <|block:7:9|> c", [Block("a b", 2), Block("<|block:7:9|>", 9)], 12),  # a marker ends a run
        ("<|block:7:0|> a", [], 1),  # a block of nothing is nothing
        ("<|block:7:x|>", [], 1),  # not a marker: a word
    ],
)
def test_words_and_markers_become_blocks(text: str, blocks: list[Block], tokens: int) -> None:
    prompt = read_prompt([text], block_tokens=4)
    assert (list(prompt.blocks), prompt.tokens) == (blocks, tokens)
    assert len(list(token_ids([text]))) == tokens


def test_a_hit_is_a_leading_run_of_blocks_under_the_same_salt() -> None:
    cache = PrefixCache(capacity_blocks=100)
    prompt = read_prompt([WORDS], 16)
    assert cache.use(prompt, "salt").cached_tokens == 0
    assert cache.use(prompt, "salt").cached_tokens == 32
    assert cache.use(prompt, "other").cached_tokens == 0
    assert cache.use(read_prompt(["other " + WORDS], 16), "salt").cached_tokens == 0


def test_the_last_token_is_always_computed() -> None:
    cache = PrefixCache(capacity_blocks=100)
    prompt = read_prompt(["<|block:1:64|> <|block:2:64|>"], 16)
    cache.use(prompt, "")
    assert cache.use(prompt, "").cached_tokens == 64


def test_the_least_recently_used_block_leaves_first_and_the_deepest_before_its_prefix() -> None:
    cache = PrefixCache(capacity_blocks=3)
    first, second = (
        read_prompt(["<|block:a:8|> <|block:b:8|> end"], 16),
        read_prompt(["<|block:c:8|> <|block:d:8|> end"], 16),
    )
    cache.use(first, "")
    cache.use(second, "")
    assert len(cache) == 3
    assert cache.use(first, "").hit_blocks == 1


def test_usage_lists_the_leading_blocks_of_one_size() -> None:
    use = PrefixCache(10).use(read_prompt(["<|block:a:8|> <|block:b:8|> <|block:c:3|>"], 16), "")
    usage = use.to_usage()
    assert (usage["block_size"], len(use.hashes)) == (8, 3)
    assert usage["blocks"] == [block.hex() for block in use.hashes[:2]]


def test_an_answer_is_as_long_as_asked_for_and_never_longer_than_its_bound() -> None:
    engine = Engine(UpstreamSettings(upstream_models="m"))
    exact = read_generation(b'{"model":"m","prompt":"a b","vllm_xargs":{"simulated_output_tokens":7}}')
    cut = read_generation(b'{"model":"m","prompt":"a b","max_tokens":3,"vllm_xargs":{"simulated_output_tokens":7}}')
    drawn = read_generation(b'{"model":"m","prompt":"a b"}')
    assert (engine.begin(exact).length, engine.begin(exact).reason) == (7, "stop")
    assert (engine.begin(cut).length, engine.begin(cut).reason) == (3, "length")
    assert engine.begin(drawn).length == engine.begin(drawn).length


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"model":"m","prompt":"a","n":2}', 400),
        (b'{"model":"m"}', 400),  # no prompt
        (b'{"model":"other","prompt":"a"}', 404),
        (b'{"model":"m","prompt":"a b c"}', 400),  # longer than the context
    ],
)
def test_what_it_does_not_take(body: bytes, status: int) -> None:
    engine = Engine(UpstreamSettings(upstream_models="m", upstream_context_tokens=2))
    with pytest.raises(RefusedError) as refused:
        engine.begin(read_generation(body))
    assert refused.value.status == status


def test_embeddings_are_counted_without_a_cache() -> None:
    engine = Engine(UpstreamSettings(upstream_models="e"))
    request = read_embedding(b'{"model":"e","input":["a b","c"]}')
    assert engine.embed(request) == 3
    assert engine.stats()["prompt_tokens"] == 3
    assert engine.stats()["cached_tokens"] == 0
