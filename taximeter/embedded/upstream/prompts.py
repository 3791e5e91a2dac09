"""The tokenizer: a word is a token, and a marker word `<|block:ID:N|>` stands for N tokens that form one prefix block.

Markers let a recorded trace of block ids be replayed with short prompts. A run of words is cut into blocks of a fixed
size; a run that a marker ends early leaves a shorter block. The rest of the last run is no block: caches keep whole blocks.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MARKER = re.compile(r"<\|block:([^:|]{1,128}):([0-9]{1,9})\|>")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a prompt that a prefix cache keeps whole."""

    content: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the cache sees it: whole blocks in order, then a rest that is never cached."""

    blocks: tuple[Block, ...]
    tokens: int


def read_prompt(texts: Sequence[str], block_tokens: int) -> Prompt:
    """Cut texts that follow each other into blocks of `block_tokens` words and markers."""
    blocks: list[Block] = []
    run: list[str] = []
    total = 0
    for text in texts:
        for word in text.split():
            marker = _MARKER.fullmatch(word) if word.startswith("<|block:") else None
            if marker is None:
                run.append(word)
                total += 1
                if len(run) == block_tokens:
                    blocks.append(Block(" ".join(run), block_tokens))
                    run.clear()
                continue
            if run:
                blocks.append(Block(" ".join(run), len(run)))
                run.clear()
            tokens = int(marker[2])
            if tokens:
                blocks.append(Block(word, tokens))
                total += tokens
    return Prompt(tuple(blocks), total)


def token_ids(texts: Sequence[str]) -> Iterator[int]:
    """A number for each token, the same for the same word."""
    for text in texts:
        for word in text.split():
            marker = _MARKER.fullmatch(word)
            yield from range(int(marker[2])) if marker else (zlib.crc32(word.encode()) & 0xFFFF,)
