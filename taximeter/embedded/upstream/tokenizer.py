"""How the simulated server counts: a word is a token, and a marker stands for a whole prefix block of a recorded trace. Pure."""

import re
from dataclasses import dataclass
from hashlib import sha256

BLOCK_TOKENS = 16
_MARKER = re.compile(r"<\|block:([A-Za-z0-9_.-]{1,64}):(\d{1,7})\|>")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in prefix blocks (content key, tokens) and a tail that fills no block."""

    blocks: tuple[tuple[str, int], ...]
    tail_tokens: int
    block_size: int

    @property
    def tokens(self) -> int:
        """All its tokens."""
        return sum(tokens for _key, tokens in self.blocks) + self.tail_tokens


def read_prompt(text: str) -> Prompt:
    """Tokenize. `<|block:ID:N|>` is a block of N tokens named ID; other words fill blocks of BLOCK_TOKENS.

    Markers of the most common size are blocks; a marker of another size at the end (what was left over) is the tail.
    """
    words = text.split()
    markers = [_MARKER.fullmatch(word) for word in words]
    if not words or not all(markers):
        whole = len(words) // BLOCK_TOKENS
        chunks = [" ".join(words[n * BLOCK_TOKENS : (n + 1) * BLOCK_TOKENS]) for n in range(whole)]
        return Prompt(tuple((chunk, BLOCK_TOKENS) for chunk in chunks), len(words) - whole * BLOCK_TOKENS, BLOCK_TOKENS)
    found = [(match.group(1), int(match.group(2))) for match in markers if match]
    size = found[0][1]
    whole = next((index for index, (_id, tokens) in enumerate(found) if tokens != size), len(found))
    tail = sum(tokens for _id, tokens in found[whole:])
    return Prompt(tuple(found[:whole]), tail, size)


def chain(prompt: Prompt, model: str, salt: str) -> list[str]:
    """The hash of each block with all before it, under the cache salt: equal hashes are equal prefixes of one pool."""
    hashes = []
    parent = f"{model}\n{salt}"
    for key, tokens in prompt.blocks:
        parent = sha256(f"{parent}\n{key}\n{tokens}".encode()).hexdigest()[:32]
        hashes.append(parent)
    return hashes
