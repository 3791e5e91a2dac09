"""A prefix cache as vLLM has one: blocks chained by hash, the least recently used one leaves first.

A block's hash covers its parent's hash, its content and, in the first block, the request's cache salt; so a block is
found only behind the very same prefix, and requests with different salts share nothing.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from taximeter.embedded.upstream.prompts import Block, Prompt


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What one prompt found in the cache: the hashes of its whole blocks, and how many leading ones were there.

    `uniform_blocks` counts the leading blocks of one size, `block_tokens`: what follows them is of another size.
    """

    hashes: tuple[bytes, ...]
    hit_blocks: int
    cached_tokens: int
    block_tokens: int
    uniform_blocks: int

    def to_usage(self) -> dict[str, object]:
        """The extension object in a usage report: the leading blocks of one size."""
        return {
            "block_size": self.block_tokens,
            "hit_blocks": min(self.hit_blocks, self.uniform_blocks),
            "blocks": [block.hex() for block in self.hashes[: self.uniform_blocks]],
        }


class PrefixCache:
    """The cache of one model, which holds `capacity_blocks` blocks."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._held: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def use(self, prompt: Prompt, salt: str) -> CacheUse:
        """Look the prompt up and keep its blocks. The last token is always computed, so it is never a hit."""
        hashes = chain(prompt.blocks, salt)
        hits = cached = 0
        for block, key in zip(prompt.blocks, hashes, strict=True):
            if key not in self._held or cached + block.tokens >= prompt.tokens:
                break
            hits += 1
            cached += block.tokens
        self._keep(hashes)
        size = prompt.blocks[0].tokens if prompt.blocks else 0
        uniform = next((i for i, block in enumerate(prompt.blocks) if block.tokens != size), len(prompt.blocks))
        return CacheUse(hashes, hits, cached, size, uniform)

    def _keep(self, hashes: Sequence[bytes]) -> None:
        # From the deepest to the root, so that a prefix outlives what hangs on it.
        for key in reversed(hashes):
            self._held[key] = None
            self._held.move_to_end(key)
        while len(self._held) > self._capacity_blocks:
            self._held.popitem(last=False)


def chain(blocks: Sequence[Block], salt: str) -> tuple[bytes, ...]:
    """The hash of each block behind its prefix, 16 bytes each."""
    parent = blake2b(salt.encode(), digest_size=16).digest()
    hashes = []
    for block in blocks:
        parent = blake2b(block.content.encode(), key=parent, digest_size=16).digest()
        hashes.append(parent)
    return tuple(hashes)
