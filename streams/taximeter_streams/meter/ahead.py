"""The dedupe index as it will be once the batch that is being written is marked. It only reads.

So the next batch can be folded while the insert of this one is under way. When this one is given up, so is that folding.
"""

from collections.abc import Sequence

from taximeter_streams.meter.dedupe import Counted, KnownIdentities, unpacked


class IndexAhead:
    """The index, and what a batch in hand will add to it: identities, and their entries as the index packs them."""

    def __init__(self, index: KnownIdentities, identities: Sequence[bytes], entries: Sequence[bytes]) -> None:
        self._index = index
        self._places = dict(zip(identities, range(len(identities)), strict=True))
        self._entries = entries

    def find(self, identities: Sequence[bytes]) -> list[Counted | None]:
        """See DedupeIndex."""
        found = self._index.find(identities)
        if self._places.keys().isdisjoint(identities):
            return found
        places = map(self._places.get, identities)
        return [
            known if known is not None or place is None else unpacked(self._entries[place])
            for known, place in zip(found, places, strict=True)
        ]
