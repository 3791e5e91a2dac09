"""How an event becomes bytes: every constraint looked at, defaults left out, its worker's mark put in.

The structs of `taximeter_schemas.wire` look at each text with a pattern of its own, which takes half of their time. The twins
that are made of them here have all their constraints but the patterns, and one pattern looks at all texts together. It only
answers for what it is sure of: whatever it does not take goes through `wire`, which then says what is wrong.
"""

import re
import types
from typing import Annotated, Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from taximeter_producers.errors import InvalidEventError
from taximeter_schemas import UsageEvent, events, wire
from taximeter_schemas.rejections import EVENT_BYTES_MAX

_ENVELOPE = ("specversion", "type", "id", "source", "time", "subject", "datacontenttype", "data")
"""In this order; `data` comes last, so that a worker can be put at its end."""

_ALWAYS = frozenset({"specversion", "type"})
"""CloudEvents wants these even where they are what we take for granted."""


class Payload(NamedTuple):
    """An event's bytes, before a producer has put its mark on those that name no worker."""

    key: bytes
    body: bytes
    has_worker: bool

    def stamped(self, mark: bytes, sequence: int) -> bytes:
        """The bytes with the worker's id (`mark`, as it stands in JSON) and its number for this event."""
        return b'%b,"worker":{"id":"%b","sequence":%d}}}' % (self.body[:-2], mark, sequence)


def payload_of(event: UsageEvent | wire.UsageEvent) -> Payload:
    """The event as it travels. Raises InvalidEventError: a struct or a model may have been made or copied unchecked."""
    plain = _plain(event)
    if plain is None:
        plain = _decode(wire.encode(_strict(event)))
    return Payload(plain.id.encode(), bounded(_encode(plain)), plain.data.worker is not None)


def _plain(event: UsageEvent | wire.UsageEvent) -> wire.UsageEvent | None:
    """The event as the twin, or None where that is not sure to be right."""
    try:
        if isinstance(event, wire.UsageEvent):
            plain = _decode(wire.encode(event))
        else:
            plain = msgspec.convert(event, _TWIN, from_attributes=True)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return plain if _is_sure(plain) else None


def bounded(body: bytes) -> bytes:
    """The bytes of an event. Raises InvalidEventError when they are too many."""
    if len(body) > EVENT_BYTES_MAX:
        raise InvalidEventError(f"the event has {len(body)} bytes; {EVENT_BYTES_MAX} is the limit")
    return body


def _is_sure(plain: wire.UsageEvent) -> bool:
    data = plain.data
    texts = (
        f"{plain.id}\n{plain.source}\n{data.tenant}\n{data.feature}\n{data.model}\n{data.adapter}\n{plain.subject}\n"
        f"{data.cache.pool}\n{data.request_id}\n{data.root_request_id}\n{data.lease_id}"
    )
    return (
        _matches(texts) is not None
        and (not data.cache.blocks or _matches_hashes("\n".join(data.cache.blocks)) is not None)
        and (data.worker is None or _matches_id(data.worker.id) is not None)
        and events.inconsistency(plain) is None
    )


def _strict(event: UsageEvent | wire.UsageEvent) -> wire.UsageEvent:
    try:
        return wire.decode(wire.encode(wire.from_model(event) if isinstance(event, UsageEvent) else event))
    except wire.WireError as error:
        raise InvalidEventError(str(error)) from None


def _bare(pattern: str) -> str:
    """A pattern of the schema without its anchors. None of these lets a line feed pass, which parts the texts."""
    return pattern.removeprefix("^").removesuffix(r"$(?!\n)")


# An absent text reads "None", which every one of these takes.
_ID, _TAG, _HASH = map(_bare, (events.ID_PATTERN, events.TAG_PATTERN, events.HASH_PATTERN))
_matches = re.compile("\n".join([_ID] * 2 + [_TAG] * 6 + [_ID] * 3)).fullmatch
_matches_id, _matches_hashes = re.compile(_ID).fullmatch, re.compile(f"{_HASH}(?:\n{_HASH})*").fullmatch


def _twin(struct: type[msgspec.Struct], made: dict[type, type[msgspec.Struct]]) -> type[msgspec.Struct]:
    """The struct without patterns, which leaves out its defaults when it is encoded."""
    if struct not in made:
        hints = get_type_hints(struct, include_extras=True)
        found = {field.name: field for field in msgspec.structs.fields(struct)}
        members: list[Any] = []
        for name in _ENVELOPE if struct is wire.UsageEvent else found:
            field, kind = found[name], _without_pattern(hints[name], made)
            default = made[type(field.default)]() if type(field.default) in made else field.default
            default = None if default is msgspec.UNSET else default
            if name in _ALWAYS or field.required:
                members.append((name, kind, msgspec.field(name=field.encode_name)))
            elif default is msgspec.NODEFAULT:
                members.append((name, kind, msgspec.field(default_factory=field.default_factory)))
            else:
                members.append((name, kind, msgspec.field(default=default, name=field.encode_name)))
        made[struct] = msgspec.defstruct(
            struct.__name__,
            members,
            frozen=True,
            gc=False,
            kw_only=True,
            omit_defaults=True,
            forbid_unknown_fields=struct.__struct_config__.forbid_unknown_fields,
        )
    return made[struct]


def _without_pattern(kind: Any, made: dict[type, type[msgspec.Struct]]) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *notes = get_args(kind)
        kept = [note for note in notes if not (isinstance(note, msgspec.Meta) and note.pattern)]
        bare = _without_pattern(inner, made)
        return Annotated[(bare, *kept)] if kept else bare
    if origin in (types.UnionType, Union):
        return Union[tuple(_without_pattern(part, made) for part in get_args(kind))]  # noqa: UP007 # parts as values
    if origin is list:
        return list[_without_pattern(get_args(kind)[0], made)]  # type: ignore[misc] # a type made at run time
    return _twin(kind, made) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else kind


# Its members are those of the struct, so that is what it is to a type checker.
_TWIN = cast("type[wire.UsageEvent]", _twin(wire.UsageEvent, {}))
_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(_TWIN).decode
