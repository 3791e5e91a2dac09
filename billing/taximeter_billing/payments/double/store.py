"""The double's memory: objects by id, and the answers given under each idempotency key, in one SQLite file."""

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (id TEXT PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, request TEXT NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL);
"""


class Store:
    """Objects and answers. One lock: a request is handled whole before the next, as the double needs no more."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.executescript("PRAGMA journal_mode=WAL;" + _SCHEMA)
        self.lock = threading.RLock()

    def next_number(self) -> int:
        """A running number, for ids and order."""
        return int(self._database.execute("SELECT coalesce(max(number), 0) + 1 FROM objects").fetchone()[0])

    def put(self, body: dict[str, Any]) -> None:
        """Keep an object, new or changed."""
        row = self._database.execute("SELECT number FROM objects WHERE id = ?", (body["id"],)).fetchone()
        number = row[0] if row else self.next_number()
        values = (body["id"], body["object"], json.dumps(body), number)
        self._database.execute("INSERT OR REPLACE INTO objects (id, kind, body, number) VALUES (?, ?, ?, ?)", values)

    def get(self, object_id: str) -> dict[str, Any] | None:
        """An object by its id."""
        row = self._database.execute("SELECT body FROM objects WHERE id = ?", (object_id,)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def all(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind, newest first, as Stripe lists them."""
        rows = self._database.execute("SELECT body FROM objects WHERE kind = ? ORDER BY number DESC", (kind,))
        return [json.loads(row[0]) for row in rows]

    def answer(self, key: str) -> tuple[str, int, str] | None:
        """What was answered under an idempotency key: the request's print, the status and the body."""
        row = self._database.execute("SELECT request, status, body FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else (row[0], row[1], row[2])

    def keep_answer(self, key: str, request: str, status: int, body: str) -> None:
        """Remember an answer under its idempotency key."""
        self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (key, request, status, body))
