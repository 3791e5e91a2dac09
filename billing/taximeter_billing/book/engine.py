"""Opens the book and brings its tables up to date.

Whoever changes the book does so alone: writers come one after the other, on both databases, whatever process they are in. So what
a transaction has read still holds when it writes (the last number of a series, what is left of a credit, the version of a thing),
and versions are numbered in the order in which they came. Readers see the book as it stood at one moment, and wait for nobody.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

_WRITES = "taximeter_writes"
_WAIT_SECONDS_MAX = 30
"""A writer that waits longer for the one before gives up with an error."""
_IDLE_SECONDS_MAX = 60
"""PostgreSQL ends a writer that does nothing for this long: its process is stopped or gone, and others wait."""
_POSTGRES_TURN = (
    f"SELECT set_config('lock_timeout', '{_WAIT_SECONDS_MAX}s', true),"
    f" set_config('idle_in_transaction_session_timeout', '{_IDLE_SECONDS_MAX}s', true)",
    "SELECT pg_advisory_xact_lock(1952545901)",  # "taxm"
)


def open_book(url: str) -> Engine:
    """An engine for the book at that SQLAlchemy URL, its tables up to date. SQLite's folder is made when missing."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database not in (None, "", ":memory:"):
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_pre_ping=True)
        event.listen(engine, "connect", _prepare_sqlite)
    else:
        engine = create_engine(parsed, pool_pre_ping=True, isolation_level="REPEATABLE READ")
    event.listen(engine, "begin", _begin)
    upgrade(engine)
    return engine


@contextmanager
def writing(book: Engine) -> Iterator[Session]:
    """A session that changes the book, alone; it commits at the end, or nothing has happened. Never open a second one within."""
    with Session(_for_writing(book), expire_on_commit=False) as session, session.begin():
        yield session


def upgrade(engine: Engine) -> None:
    """Apply the migrations that are missing. Running it again, or twice at once, changes nothing."""
    config = Config()
    config.set_main_option("script_location", str(files("taximeter_billing.book") / "migrations"))
    with _for_writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _for_writing(book: Engine) -> Engine:
    if book.dialect.name == "sqlite":
        return book.execution_options(**{_WRITES: True})
    # Not a snapshot: it would be of before the wait for the writer ahead.
    return book.execution_options(isolation_level="READ COMMITTED", **{_WRITES: True})


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif writes:
        for statement in _POSTGRES_TURN:
            connection.exec_driver_sql(statement)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin transactions by itself, and late; we begin them, and a writer's at once, so that writers queue up.
    connection.isolation_level = None
    cursor = connection.cursor()
    busy = f"busy_timeout={_WAIT_SECONDS_MAX * 1_000}"
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", busy):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
