"""Forward-only migrations of the warehouse, the same files on the embedded engine, a server and a cluster.

A file names its engines in braces, `{MergeTree}`: one server gets them as they are, a cluster gets the replicated twin
(in a database of the engine Replicated, which carries the statements to every node).
"""

import re
from importlib.resources import files

from clickhouse_connect.driver.client import Client

_TABLE = """CREATE TABLE IF NOT EXISTS schema_migrations (name String, applied_at DateTime64(3, 'UTC') DEFAULT now64(3))
ENGINE = {MergeTree} ORDER BY name"""


def migrate(client: Client, *, replicated: bool = False) -> list[str]:
    """Apply the migrations that are missing, in order, and return their names. Running it again changes nothing.

    A statement that fails stops the run, and the next run repeats that file: statements create what is not there yet.
    """
    client.command(_render(_TABLE, replicated))
    done = {row[0] for row in client.query("SELECT name FROM schema_migrations").result_rows}
    applied = []
    for name, text in migration_files():
        if name in done:
            continue
        for statement in _statements(text):
            client.command(_render(statement, replicated))
        client.command("INSERT INTO schema_migrations (name) VALUES ({name:String})", parameters={"name": name})
        applied.append(name)
    return applied


def migration_files() -> list[tuple[str, str]]:
    """Name and text of every migration, in order."""
    entries = sorted(
        (entry for entry in files(__name__).iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name
    )
    return [(entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8")) for entry in entries]


def _statements(text: str) -> list[str]:
    return [part.strip() for part in re.split(r";\s*(?:\n|$)", text) if part.strip()]


def _render(statement: str, replicated: bool) -> str:
    prefix = "Replicated" if replicated else ""
    rendered = re.sub(r"\{(\w*MergeTree)\}", rf"{prefix}\1", statement)
    # A run that was cut off in mid-file is repeated; what it created stays.
    return re.sub(r"\bCREATE (TABLE|VIEW|MATERIALIZED VIEW) (?!IF)", r"CREATE \1 IF NOT EXISTS ", rendered)
