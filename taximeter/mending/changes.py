"""Changes to a rejected message before it is sent again: `data.feature=chat` sets one field. Pure."""

import json
from collections.abc import Sequence


class ChangeError(ValueError):
    """The change cannot be made to that message."""


def changed(payload: bytes, changes: Sequence[str]) -> bytes:
    """The message with every change made; each is PATH=VALUE, the value JSON or else a text. Raises ChangeError."""
    if not changes:
        return payload
    try:
        document = json.loads(payload)
    except ValueError:
        raise ChangeError("the message is not JSON, so nothing in it can be set; send the event anew instead") from None
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path:
            raise ChangeError(f"{change!r} is no change; write PATH=VALUE, as in data.feature=chat")
        _set(document, path.split("."), _value(text))
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _set(document: object, path: list[str], value: object) -> None:
    place = document
    for name in path[:-1]:
        if not isinstance(place, dict):
            break
        place = place.setdefault(name, {})
    if not isinstance(place, dict):
        raise ChangeError(f"{'.'.join(path)} leads through something that is no object")
    place[path[-1]] = value
