"""The double's memory in one SQLite file: objects by id, answers by idempotency key, and webhooks to deliver."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (id TEXT PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, number INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS objects_by_kind ON objects (kind, number);
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, request TEXT NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (event TEXT NOT NULL, endpoint TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'waiting', PRIMARY KEY (event, endpoint));
"""


class Store:
    """Objects, answers and deliveries. Its user keeps one lock around it: a request is handled whole before the next."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.executescript("PRAGMA journal_mode=WAL;" + _SCHEMA)

    def close(self) -> None:
        """Give the file back."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: an effect, its events and the kept answer belong together."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def next_number(self) -> int:
        """A running number, for ids and order."""
        return int(self._database.execute("SELECT coalesce(max(number), 0) + 1 FROM objects").fetchone()[0])

    def put(self, body: dict[str, Any], kind: str | None = None) -> None:
        """Keep an object, new or changed, under its own kind or another."""
        row = self._database.execute("SELECT number FROM objects WHERE id = ?", (body["id"],)).fetchone()
        number = row[0] if row else self.next_number()
        values = (body["id"], kind or body["object"], json.dumps(body), number)
        self._database.execute("INSERT OR REPLACE INTO objects (id, kind, body, number) VALUES (?, ?, ?, ?)", values)

    def get(self, object_id: str, kind: str) -> dict[str, Any] | None:
        """An object by its id and kind."""
        query = "SELECT body FROM objects WHERE id = ? AND kind = ?"
        row = self._database.execute(query, (object_id, kind)).fetchone()
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

    def forget_answers(self) -> None:
        """Forget every key, as Stripe may after a day."""
        self._database.execute("DELETE FROM answers")

    def add_delivery(self, event_id: str, endpoint_id: str) -> None:
        """An event that an endpoint has to hear of."""
        self._database.execute(
            "INSERT OR IGNORE INTO deliveries (event, endpoint) VALUES (?, ?)", (event_id, endpoint_id)
        )

    def waiting_deliveries(self) -> list[tuple[str, str, int]]:
        """Event, endpoint and tries so far, oldest first."""
        query = "SELECT event, endpoint, tries FROM deliveries WHERE state = 'waiting' ORDER BY rowid"
        return [(row[0], row[1], row[2]) for row in self._database.execute(query)]

    def note_delivery(self, event_id: str, endpoint_id: str, state: str) -> None:
        """One more try, and how it stands: waiting, done, failed."""
        query = "UPDATE deliveries SET tries = tries + 1, state = ? WHERE event = ? AND endpoint = ?"
        self._database.execute(query, (state, event_id, endpoint_id))
