"""What is known about the cache blocks of a request: names (HMACs per pool), and how many of them were hit. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from taximeter_schemas.events import Attribution


@dataclass(frozen=True, slots=True)
class BlockReport:
    """The prompt's full blocks in order; the first `hit_blocks` came from the cache."""

    block_size: int = 0
    blocks: tuple[str, ...] = ()
    hit_blocks: int = 0
    attribution: Attribution = Attribution.NONE
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What else is known, for the event's attributes."""


NOTHING_KNOWN = BlockReport()
COUNTS_ONLY = BlockReport(attribution=Attribution.INFERRED)
"""The engine says how many tokens were cached, not which blocks."""
