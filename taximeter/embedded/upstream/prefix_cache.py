"""A prefix cache of limited size: leading blocks that are still there are hits, the others are filled; least used go first."""

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Blocks by chained hash, least recently used first out. Not thread-safe: one event loop owns it."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks: OrderedDict[str, None] = OrderedDict()
        self._blocks_max = blocks_max

    def use(self, hashes: Sequence[str]) -> int:
        """How many leading blocks were there; all of them are afterwards (as far as there is room)."""
        hits = 0
        for block in hashes:
            if block not in self._blocks:
                break
            hits += 1
        for block in hashes:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._blocks_max:
            self._blocks.popitem(last=False)
        return hits
