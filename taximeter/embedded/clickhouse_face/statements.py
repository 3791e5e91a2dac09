"""Reads as much of a statement as the HTTP interface must know: whether it is an INSERT that brings data, where the

data begin, which format it names, and whether a second statement follows. The engine's own parser judges the rest.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

HEAD_BYTES_MAX = 1 << 20
"""The text of an INSERT up to its data must lie within this many bytes."""

_TOKEN = re.compile(
    rb"""(?P<skip>\s+|--[^\n]*|\#!?[^\n]*|/\*.*?\*/)
       |(?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
       |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
       |(?P<number>[0-9][A-Za-z0-9_.]*)
       |(?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)
# The data begin behind the name, blanks and one line end.
_FORMAT_NAME = re.compile(rb"\s*([A-Za-z][A-Za-z0-9]*)[ \t\f]*\r?\n?")
_AS_QUERY = frozenset({b"SELECT", b"WITH", b"FROM", b"WATCH", b"EXPLAIN"})
_RESULT_STREAMS = frozenset({b"SELECT", b"WITH"})


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT that brings data: its text without FORMAT, the data's format, and where in the text the data begin."""

    sql: bytes
    data_format: str
    data_offset: int


@dataclass(frozen=True, slots=True)
class Query:
    """Any other statement: the output format it names, whether it selects, and whether another statement follows."""

    output_format: str | None
    selects: bool
    totals: bool
    statements: int


@dataclass(frozen=True, slots=True)
class _Token:
    text: bytes
    kind: str
    start: int
    end: int
    depth: int

    @property
    def keyword(self) -> bytes:
        """The word in capitals, when it is a bare word outside of parentheses."""
        return self.text.upper() if self.kind == "word" and self.depth == 0 else b""


def _tokens(text: bytes) -> Iterator[_Token]:
    depth = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "sign"
        if kind == "skip":
            continue
        piece = match.group()
        if kind == "sign" and piece in b")]}":
            depth = max(0, depth - 1)
        yield _Token(piece, kind, match.start(), match.end(), depth)
        if kind == "sign" and piece in b"([{":
            depth += 1


def is_insert(text: bytes) -> bool:
    """Whether the text (its beginning suffices) is an INSERT."""
    first = next(_tokens(text), None)
    return first is not None and first.keyword == b"INSERT"


def read_insert(text: bytes, default_format: str | None) -> Insert | None:
    """How an INSERT brings its data, or None when it takes them from a query. `text` may be cut off within the data."""
    tokens = _tokens(text)
    for token in tokens:
        if token.keyword == b"INTO":
            break
    # The table's own name is no keyword, whatever it is.
    for token in tokens:
        if token.keyword not in {b"TABLE", b"FUNCTION"}:
            break
    for token in tokens:
        if token.keyword == b"FORMAT":
            name = _FORMAT_NAME.match(text, token.end)
            return Insert(text[: token.start], name[1].decode(), name.end()) if name else None
        if token.keyword == b"VALUES":
            return Insert(text[: token.start], "Values", token.end)
        if token.keyword in _AS_QUERY:
            return None
    return Insert(text, default_format, len(text)) if default_format else None


def read_query(text: bytes) -> Query:
    """What the interface must know of a statement that brings no data."""
    tokens = list(_tokens(text))
    while tokens and tokens[-1].text == b";":
        del tokens[-1]
    first = next((token for token in tokens if token.text != b"("), None)
    return Query(
        output_format=_output_format(tokens),
        selects=first is not None and first.text.upper() in _RESULT_STREAMS,
        totals=any(token.text.upper() == b"TOTALS" for token in tokens),
        statements=1 + sum(token.text == b";" for token in tokens),
    )


def _output_format(tokens: list[_Token]) -> str | None:
    """The name behind FORMAT. A column called "format" is not followed by a word and then the end or SETTINGS."""
    for index, token in enumerate(tokens[:-1]):
        name = tokens[index + 1]
        ends = index + 2 == len(tokens) or tokens[index + 2].keyword == b"SETTINGS"
        if token.keyword == b"FORMAT" and name.kind == "word" and ends:
            return name.text.decode()
    return None
