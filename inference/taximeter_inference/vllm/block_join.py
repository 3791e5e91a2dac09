"""Joins KV events with requests: each event's blocks by name, its hits, who warmed them, and the audit of isolation.

Runs in the sink thread, but for `expect`, which the event loop calls for each sequence on its way in.
"""

import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.vllm.block_table import LABELS_MAX, BlockTable, HitOrigin, Label
from taximeter_inference.vllm.blocks import COUNTS_ONLY, NOTHING_KNOWN, BlockReport
from taximeter_inference.vllm.exchange import Part
from taximeter_inference.vllm.incidents import Report
from taximeter_inference.vllm.kv_source import AllBlocksCleared, BlockRemoved, BlockStored, KvBatch, Lost, as_bytes
from taximeter_inference.vllm.metrics import INCIDENTS
from taximeter_inference.vllm.tags import untagged
from taximeter_inference.vllm.usage import billed_sequences
from taximeter_schemas.events import Attribution

JOIN_SECONDS_MAX = 2.0
"""How long an event waits for the KV events of its request."""
BLOCKS_MAX = 65_536
ENGINE_MEDIA, HOST_MEDIUM = ("GPU", None), "CPU"
"""Where KV events say that a block is: in the engine's own cache (also where that is on a CPU), in a connector's in memory."""
INCIDENT_ATTRIBUTE = "cache.incident"
_log = logging.getLogger(__name__)

Poll = Callable[[], Iterable[KvBatch | Lost]]


class BlockJoin:
    """The blocks of each part. `audit` looks for hits on blocks that another pool warmed, and tells `tell` of them."""

    def __init__(self, poll: Poll, keys: PoolKeys, audit: bool = True, tell: Report | None = None) -> None:
        self._poll = poll
        self._keys = keys
        self._audit = audit
        self._tell = tell
        self._table = BlockTable()
        self._labels: dict[tuple[str, str], Label] = {}
        self._block_size = 0
        self._asked: dict[int, float] = {}

    def expect(self, session: str, tenant: str, pool: str) -> None:
        """A sequence of that tenant enters the engine."""
        label = self._labels.get((tenant, pool))
        if label is None:
            label = Label(tenant, pool)
            if len(self._labels) < LABELS_MAX:
                self._labels[tenant, pool] = label
        self._table.expect(session, label)

    def report(self, part: Part, time_is_up: bool) -> BlockReport | None:
        """What is known about a part's blocks; None while some of them are still to be told."""
        self._take_in()
        billed = billed_sequences(part.sequences)
        if not billed:
            return self._done(part, NOTHING_KNOWN)
        if len(billed) > 1:
            # An event has one prefix; several prompts keep their counts.
            return self._done(part, COUNTS_ONLY)
        session, counted = billed[0].request_id, billed[0]
        blocks = counted.prompt // self._block_size if self._block_size else 0
        if not self._block_size or len(self._table.chain(session)) < blocks:
            began = self._asked.setdefault(part.number, time.monotonic())
            if not time_is_up and time.monotonic() - began < JOIN_SECONDS_MAX:
                return None
            return self._done(part, COUNTS_ONLY)
        if session in self._table.tainted or blocks > BLOCKS_MAX or counted.cached % self._block_size:
            return self._done(part, COUNTS_ONLY)
        hit_blocks = counted.cached // self._block_size
        pool = (part.tags or untagged(part.path)).pool
        names = tuple(self._keys.block_hash(pool, block) for block in self._table.chain(session)[:blocks])
        origin = self._table.join(session, blocks, hit_blocks)
        attributes = _described(origin)
        if self._audit and (foreign := _foreign_pools(origin, pool)):
            attributes[INCIDENT_ATTRIBUTE] = "foreign_pool"
            self._alert(part, pool, foreign)
        return self._done(part, BlockReport(self._block_size, names, hit_blocks, Attribution.ENGINE, attributes))

    def _done(self, part: Part, report: BlockReport) -> BlockReport:
        self._asked.pop(part.number, None)
        for closed in part.sequences:
            self._table.forget(closed.request_id)
        return report

    def _take_in(self) -> None:
        for batch in self._poll():
            if isinstance(batch, Lost):
                self._table.lost()
                continue
            for event in batch.events:
                if isinstance(event, AllBlocksCleared):
                    self._table.cleared(batch.ts)
                elif event.group_idx:
                    continue  # Other kinds of attention of a hybrid model repeat the same prefix.
                elif event.medium not in ENGINE_MEDIA:
                    self._take_in_kept(event, batch.ts)
                elif isinstance(event, BlockRemoved):
                    self._table.removed([as_bytes(block) for block in event.block_hashes], batch.ts)
                elif isinstance(event, BlockStored):
                    self._block_size = event.block_size or self._block_size
                    parent = event.parent_block_hash
                    self._table.stored(
                        event.session_id,
                        as_bytes(parent) if parent is not None else None,
                        [as_bytes(block) for block in event.block_hashes],
                    )

    def _take_in_kept(self, event: BlockStored | BlockRemoved, at: float) -> None:
        if event.medium != HOST_MEDIUM:
            return  # Of disks and other nodes the engine need not tell when a block goes.
        blocks = [as_bytes(block) for block in event.block_hashes]
        if isinstance(event, BlockRemoved):
            self._table.dropped(blocks, at)
        else:
            self._table.kept(blocks)

    def _alert(self, part: Part, pool: str, foreign: list[Label]) -> None:
        tags = part.tags or untagged(part.path)
        for label in foreign:
            INCIDENTS.labels(tags.tenant, pool, label.pool).inc()
            _log.critical(
                "cache isolation incident: %s (pool %s) hit blocks that %s warmed in pool %s, request %s",
                tags.tenant,
                pool,
                label.tenant,
                label.pool,
                tags.request_id,
            )
            if self._tell is not None:
                self._tell(tags, label, datetime.now(UTC))


def _foreign_pools(origin: HitOrigin, pool: str) -> list[Label]:
    """Whoever warmed a hit block in another pool, each once."""
    return list({label: None for label in origin.warmers if label is not None and label.pool != pool})


def _described(origin: HitOrigin) -> dict[str, str]:
    """For the event's attributes: who warmed the hit blocks, in runs ("acme*3,?*1"), and what had been evicted before."""
    runs: list[tuple[str, int]] = []
    for label in origin.warmers:
        name = label.tenant if label is not None else "?"
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    described = {}
    if runs:
        described["cache.warmed_by"] = ",".join(f"{name}*{times}" for name, times in runs)[:256]
    if origin.evicted_at is not None:
        described["cache.rewarmed_blocks"] = str(origin.rewarmed_blocks)
        described["cache.evicted_at"] = f"{origin.evicted_at:.3f}"
    return described
