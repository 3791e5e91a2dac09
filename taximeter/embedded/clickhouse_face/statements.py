"""Reads as much of a statement as the HTTP interface must know: whether it is an INSERT that brings data, where the

data begin, which format it names, and whether a second statement follows. The engine's own parser judges the rest.
"""

import re
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
_DATA_START = re.compile(rb"[ \t\f]*\r?\n?")
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


def _tokens(text: bytes) -> "list[_Token]":
    found = []
    depth = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "sign"
        if kind == "skip":
            continue
        piece = match.group()
        if kind == "sign" and piece in b")]}":
            depth = max(0, depth - 1)
        found.append(_Token(piece, kind, match.start(), match.end(), depth))
        if kind == "sign" and piece in b"([{":
            depth += 1
    return found


def is_insert(text: bytes) -> bool:
    """Whether the text (its beginning suffices) is an INSERT."""
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "skip":
            return match.group().upper() == b"INSERT"
    return False


def read_insert(text: bytes, default_format: str | None) -> Insert | None:
    """How an INSERT brings its data, or None when it takes them from a query. `text` may be cut off within the data."""
    position = 0
    depth = 0
    after_into = 0
    for match in _TOKEN.finditer(text):
        kind, piece = match.lastgroup, match.group()
        if kind == "skip":
            continue
        position = match.end()
        word = piece.upper() if kind == "word" and depth == 0 else b""
        if kind == "sign" and piece in b"([{":
            depth += 1
        elif kind == "sign" and piece in b")]}":
            depth -= 1
        if after_into == 0:
            after_into = 1 if word == b"INTO" else 0
        elif after_into == 1:
            # The table's own name is no keyword, whatever it is.
            after_into = 1 if word in {b"TABLE", b"FUNCTION"} else 2
        elif word == b"FORMAT":
            name = re.compile(rb"\s*([A-Za-z][A-Za-z0-9]*)").match(text, position)
            if name is None:
                return None
            start = _DATA_START.match(text, name.end())
            return Insert(text[: match.start()], name[1].decode(), start.end() if start else name.end())
        elif word == b"VALUES":
            return Insert(text[: match.start()], "Values", position)
        elif word in _AS_QUERY:
            return None
    return Insert(text, default_format, len(text)) if default_format else None


def read_query(text: bytes) -> Query:
    """What the interface must know of a statement that brings no data."""
    tokens = _tokens(text)
    output = None
    keywords = [token.keyword for token in tokens]
    for index, token in enumerate(tokens[:-1]):
        follows = tokens[index + 1]
        # A column called "format" is followed by a sign or a keyword; the clause by a name and the end or SETTINGS.
        rest = keywords[index + 2] if index + 2 < len(tokens) else b""
        ends = index + 2 == len(tokens) or tokens[index + 2].text == b";" or rest in {b"SETTINGS", b"INTO"}
        if token.keyword == b"FORMAT" and follows.kind == "word" and ends:
            output = follows.text.decode()
    first = next((token for token in tokens if token.text != b"("), None)
    parts = 1
    for index, token in enumerate(tokens[:-1]):
        if token.text == b";" and token.kind == "sign" and tokens[index + 1].text != b";":
            parts += 1
    return Query(
        output_format=output,
        selects=first is not None and first.text.upper() in _RESULT_STREAMS,
        totals=b"TOTALS" in {token.text.upper() for token in tokens},
        statements=parts,
    )
