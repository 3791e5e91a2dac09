"""What we noted on Stripe's objects: who and what they are for us. Pure."""

from typing import Any, Protocol


class _Entries(Protocol):
    def __contains__(self, name: object, /) -> bool: ...

    def __getitem__(self, name: str, /) -> Any: ...


class Noted(Protocol):
    """An object of Stripe's with metadata, or none yet."""

    @property
    def metadata(self) -> _Entries | None:
        """What was noted on it."""


def noted(thing: Noted, name: str) -> str | None:
    """An entry of the object's metadata, or None."""
    metadata = thing.metadata
    return str(metadata[name]) if metadata is not None and name in metadata else None
