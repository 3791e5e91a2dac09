"""Recorded traces of real LLM traffic as planned requests.

Mooncake (JSONL): {"timestamp": ms, "input_length", "output_length", "hash_ids": [prefix blocks of 512 tokens]}; the same
id is the same prefix block, so the trace's own reuse drives the cache.
Azure LLM inference (CSV): TIMESTAMP,ContextTokens,GeneratedTokens; no two requests share a prefix.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from taximeter.workload.requests import block_marker

MOONCAKE_BLOCK_TOKENS = 512


class TraceError(ValueError):
    """The file is not a trace that can be replayed; says the line and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request: when (ms since the trace began), tokens in and out, and its prompt as block markers."""

    at_ms: float
    input_tokens: int
    output_tokens: int
    prompt: str


def read_trace(path: Path) -> list[TraceRequest]:
    """Read a trace whole, told apart by its first line. Raises TraceError, and OSError when it cannot be read."""
    with path.open(newline="", encoding="utf-8") as lines:
        first = lines.readline()
        lines.seek(0)
        if first.startswith("{"):
            return list(_mooncake(lines, path.name))
        if first.strip().split(",") == ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]:
            return list(_azure(lines, path.name))
    raise TraceError(f"{path.name}: neither Mooncake JSONL nor an Azure CSV (TIMESTAMP,ContextTokens,GeneratedTokens)")


def _mooncake(lines: Iterator[str], name: str) -> Iterator[TraceRequest]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            at_ms, total, output = float(row["timestamp"]), int(row["input_length"]), int(row["output_length"])
            blocks = [int(block) for block in row["hash_ids"]]
        except (ValueError, KeyError, TypeError) as error:
            raise TraceError(f"{name}, line {number}: {error!r}") from None
        whole = min(total // MOONCAKE_BLOCK_TOKENS, len(blocks))
        words = [block_marker(block, MOONCAKE_BLOCK_TOKENS) for block in blocks[:whole]]
        # What does not fill a block is never shared: a prefix cache keeps whole blocks only.
        if rest := total - whole * MOONCAKE_BLOCK_TOKENS:
            words.append(block_marker(f"m{number}", rest))
        yield TraceRequest(at_ms, total, output, " ".join(words))


def _azure(lines: Iterator[str], name: str) -> Iterator[TraceRequest]:
    began: datetime | None = None
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            # Seven digits of a second are recorded; datetime holds six.
            moment = datetime.fromisoformat(row["TIMESTAMP"][:26])
            total, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (ValueError, KeyError, TypeError) as error:
            raise TraceError(f"{name}, line {number}: {error!r}") from None
        began = began or moment
        yield TraceRequest((moment - began).total_seconds() * 1000, total, output, block_marker(f"a{number}", total))
