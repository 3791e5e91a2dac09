"""A late rating: asks the meter to rate an event that was counted while it had no price. Travels on usage.events.v1.

It carries the event again, as the warehouse holds it, under a type of its own, so that the meter stays the only writer of usage
and its dedupe index makes two askings one rating: the identity of a late rating is the event's and one word more. Producers
cannot send one: what they send has the type of a usage event.
"""

from typing import Literal

import msgspec

from taximeter_schemas import events, wire

LATE_RATING_TYPE: Literal["taximeter.rating.v1"] = "taximeter.rating.v1"
_MARK = LATE_RATING_TYPE.encode()

RATED_LATER = "rated_later"
"""The reason of a row that rates an earlier one, and of a repetition of it."""

STILL_UNRATED = "still_unrated"
"""The reason of a row that asked in vain: there is no price yet. It counts as a repetition of what is unrated."""


class LateRating(wire.UsageEvent, frozen=True, gc=False):
    """A usage event that was stored without a price, sent once more to be rated."""

    type: Literal["taximeter.rating.v1"] = LATE_RATING_TYPE  # type: ignore[assignment]  # that is what tells it apart

    @property
    def identity(self) -> tuple[str, str, str]:
        """The event's identity, marked: no event's id holds a line feed."""
        tenant, source, event_id = super().identity
        return tenant, source, f"{event_id}\nrating"


_DECODER = msgspec.json.Decoder(LateRating)
_ENCODER = msgspec.json.Encoder()


def encode(rating: LateRating) -> bytes:
    """As it travels."""
    return _ENCODER.encode(rating)


def decode(payload: bytes) -> LateRating | None:
    """The late rating in a message that is no usage event, or None when it is none."""
    if _MARK not in payload:
        return None
    try:
        rating = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return rating if events.inconsistency(rating) is None else None
