"""What a request's body holds: the raw JSON of each event, from any of the shapes that CloudEvents over HTTP has. Pure."""

from collections.abc import Mapping
from urllib.parse import unquote

import msgspec

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
PLAIN = "application/json"
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class BodyError(Exception):
    """The request's body cannot be read; it has the answer's status and a code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def raw_events(body: bytes, headers: Mapping[str, str]) -> tuple[list[bytes], bool]:
    """The JSON of each event, and whether the body is a list of them. `headers` has lower-case names.

    Raises BodyError: 415 for a type or encoding that is not known, 400 for what is not JSON or of another shape.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise BodyError(415, "unsupported_encoding", "send the body without a Content-Encoding")
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (STRUCTURED, BATCH, PLAIN):
        raise BodyError(415, "unsupported_media_type", f"send {STRUCTURED}, {BATCH} or {PLAIN}")
    try:
        if media_type == PLAIN and "ce-specversion" in headers:
            return [_from_headers(body, headers)], False
        if media_type == BATCH or (media_type == PLAIN and body.lstrip()[:1] == b"["):
            return [bytes(raw) for raw in _LIST.decode(body)], True
        _OBJECT.decode(body)
    except msgspec.ValidationError as error:
        raise BodyError(400, "wrong_shape", f"the body is not what {media_type} stands for: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BodyError(400, "malformed_json", f"the body is not JSON: {error}") from None
    return [body], False


def event_id(raw: bytes) -> str | None:
    """The id of an event that may be wrong in every other way, so that its sender finds it again."""
    try:
        value = msgspec.json.decode(_OBJECT.decode(raw).get("id", msgspec.Raw(b"null")))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _from_headers(data: bytes, headers: Mapping[str, str]) -> bytes:
    """Binary mode: the attributes are headers (ce-id, percent-encoded), the body is the event's data."""
    envelope: dict[str, object] = {
        name.removeprefix("ce-"): unquote(value) for name, value in headers.items() if name.startswith("ce-")
    }
    msgspec.json.decode(data)
    return msgspec.json.encode(envelope | {"data": msgspec.Raw(data)})
