"""Who warmed which cache block, as vLLM's KV events tell it, and which blocks each sequence's prompt is made of. Pure.

A block stored for a sequence is either new or, where the sequence found it in the cache, reported again; which of the two is
known once the engine's count of its cached tokens is. A hash that is not resident when it is first stored begins a residency,
whoever stored it then warmed it; its removal ends the residency, unless a KV connector still keeps a copy: what is loaded from
there is still whose it was. Only hashes are kept, never token ids.
"""

from collections import OrderedDict
from dataclasses import dataclass

LABELS_MAX = 100_000
ENDED_MAX = 100_000
KEPT_MAX = 1_000_000
"""With so many residencies a block ends its own when it leaves the engine, whatever a connector keeps."""


@dataclass(frozen=True, slots=True)
class Label:
    """Whose a sequence is."""

    tenant: str
    pool: str


@dataclass(slots=True)
class Residency:
    """A block's stay in the cache: who warmed it (None: nobody that was seen), the sequence that it was first stored for, how
    many copies of it the engine has, and whether a connector keeps one in the host's memory."""

    warmed_by: Label | None
    session: str | None = None
    copies: int = 1
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class HitOrigin:
    """What is known about the blocks of a prompt that were found in the cache, or had been there before."""

    warmers: tuple[Label | None, ...]
    evicted_at: float | None
    rewarmed_blocks: int


class BlockTable:
    """All residencies, and the chains of the sequences that are not joined with their events yet."""

    def __init__(self) -> None:
        self._labels: OrderedDict[str, Label] = OrderedDict()
        self._chains: dict[str, list[bytes]] = {}
        self._resident: dict[bytes, Residency] = {}
        self._evicted_at: OrderedDict[bytes, float] = OrderedDict()
        self.tainted: set[str] = set()
        """Sequences that were open when messages were lost."""

    def expect(self, session: str, label: Label) -> None:
        """A sequence is about to enter the engine."""
        self._labels[session] = label
        self._chains[session] = []
        if len(self._labels) > LABELS_MAX:
            self._labels.popitem(last=False)

    def stored(self, session: str | None, parent: bytes | None, hashes: list[bytes]) -> None:
        """Blocks were stored, or found, for a sequence; the first follows `parent` (None: it is the prompt's first)."""
        label = self._labels.get(session) if session is not None else None
        for block in hashes:
            residency = self._resident.get(block)
            if residency is None:
                self._resident[block] = Residency(label, session)
            elif residency.copies == 0:
                residency.copies = 1  # Loaded from a connector, or computed beside its copy.
        chain = self._chains.get(session) if session is not None else None
        if chain is None:
            return
        if parent is None:
            place = 0
        elif parent in chain:
            place = chain.index(parent) + 1
        else:
            return
        chain[place : place + len(hashes)] = hashes

    def removed(self, hashes: list[bytes], at: float) -> None:
        """Blocks left the cache at that time (seconds since the epoch)."""
        for block in hashes:
            residency = self._resident.get(block)
            if residency is None:
                continue
            residency.copies = max(0, residency.copies - 1)
            self._end(block, residency, at)

    def kept(self, hashes: list[bytes]) -> None:
        """A connector keeps copies of blocks that the engine has, too. Of others it is not known whose they are."""
        for block in hashes:
            residency = self._resident.get(block)
            if residency is not None:
                residency.is_kept = len(self._resident) < KEPT_MAX

    def dropped(self, hashes: list[bytes], at: float) -> None:
        """A connector has let go of them."""
        for block in hashes:
            residency = self._resident.get(block)
            if residency is not None:
                residency.is_kept = False
                self._end(block, residency, at)

    def cleared(self, at: float) -> None:
        """The whole cache was cleared."""
        for residency in self._resident.values():
            residency.copies = 0
            residency.is_kept = False
        self.removed(list(self._resident), at)

    def lost(self) -> None:
        """Messages were lost: what was known about residencies may be wrong, and about sequences under way too."""
        self._resident.clear()
        self._evicted_at.clear()
        self.tainted.update(self._chains)

    def _end(self, block: bytes, residency: Residency, at: float) -> None:
        if residency.copies or residency.is_kept:
            return
        del self._resident[block]
        self._evicted_at[block] = at
        self._evicted_at.move_to_end(block)
        if len(self._evicted_at) > ENDED_MAX:
            self._evicted_at.popitem(last=False)

    def chain(self, session: str) -> list[bytes]:
        """A sequence's blocks in order, as far as they are told."""
        return self._chains.get(session, [])

    def join(self, session: str, blocks: int, hit_blocks: int) -> HitOrigin:
        """What is known about the first `blocks` blocks of a sequence, of which `hit_blocks` were hit."""
        chain = self.chain(session)[:blocks]
        warmers = []
        for block in chain[:hit_blocks]:
            residency = self._resident.get(block)
            if residency is not None and residency.session == session:
                # It was there before anything was seen of it: messages were lost, or a connector had it from elsewhere.
                residency.warmed_by = None
            warmers.append(residency.warmed_by if residency is not None else None)
        evicted: list[float] = []
        for block in chain[hit_blocks:]:
            residency = self._resident.get(block)
            if residency is not None and residency.session != session:
                # Computed beside a copy that was there already.
                residency.copies += 1
            if block in self._evicted_at:
                evicted.append(self._evicted_at.pop(block))
        return HitOrigin(tuple(warmers), max(evicted, default=None), len(evicted))

    def forget(self, session: str) -> None:
        """The sequence is joined. Whom it belonged to is remembered: what it warmed may be hit later."""
        self._chains.pop(session, None)
        self.tainted.discard(session)
