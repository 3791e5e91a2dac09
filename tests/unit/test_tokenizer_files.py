"""Prompts counted by a model's own files; what they cannot tell is left to the model server."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from taximeter_inference.gateway.tokenizer_files import LONG_BYTES, TokenizerFiles, TokenizerFilesError
from tests.tokenizer_folder import write_tokenizer


@pytest.fixture
def files(tmp_path: Path) -> TokenizerFiles:
    write_tokenizer(tmp_path / "org" / "model")
    write_tokenizer(tmp_path / "base", None)
    return TokenizerFiles(tmp_path)


def count_chat(files: TokenizerFiles, *contents: object, model: str = "org/model", **fields: Any) -> int | None:
    messages = [{"role": "user", "content": content} for content in contents]
    return asyncio.run(files.count_chat(model, {"messages": messages, **fields}, 100))


def test_a_prompt_has_the_tokens_of_the_tokenizer_with_those_that_it_adds(files: TokenizerFiles) -> None:
    assert asyncio.run(files.count_text("org/model", "a b c")) == 4
    long = "word " * LONG_BYTES
    assert asyncio.run(files.count_text("org/model", long)) == LONG_BYTES + 1


def test_a_chat_is_put_as_its_template_says(files: TokenizerFiles) -> None:
    begin, assistant = 1, 1
    assert count_chat(files, "a b", "c") == begin + 3 + assistant
    assert count_chat(files, "a b", add_generation_prompt=False) == begin + 2
    # A tool's JSON as Python writes it: '{"name":' and '"<f>"}', after the word "tools" and a bracket on each side.
    assert count_chat(files, "a", tools=[{"name": "<f>"}]) == begin + 1 + 2 + 1 + assistant
    assert count_chat(files, "a", add_special_tokens=True) == begin + begin + 1 + assistant


@pytest.mark.parametrize(
    "chat",
    [
        {"messages": [{"role": "robot", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [{"role": "user"}]},
        {"messages": "a"},
        {"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ messages }}"},
        {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"messages": []}},
        {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": "a"},
    ],
)
def test_what_the_files_do_not_tell_is_left_to_the_server(files: TokenizerFiles, chat: dict[str, Any]) -> None:
    assert asyncio.run(files.count_chat("org/model", chat, 100)) is None


def test_only_models_that_are_there_are_counted(files: TokenizerFiles) -> None:
    for model in ("org", "other", "../org/model", "org/model/", ""):
        assert asyncio.run(files.count_text(model, "a")) is None
        assert count_chat(files, "a", model=model) is None
    assert asyncio.run(files.count_text("base", "a")) == 2
    assert count_chat(files, "a", model="base") is None


def test_a_template_in_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    assert count_chat(TokenizerFiles(tmp_path), "a b", "c", model="m") == 3


def test_a_folder_that_cannot_be_used_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(TokenizerFilesError, match=r"holds no MODEL/tokenizer\.json"):
        TokenizerFiles(tmp_path)
    write_tokenizer(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerFilesError, match="m cannot be read"):
        TokenizerFiles(tmp_path)
    assert asyncio.run(TokenizerFiles(None).count_text("m", "a")) is None
