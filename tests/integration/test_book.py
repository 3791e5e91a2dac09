"""The book of record on a real database: migrations, versions that only add, an outbox that a crash cannot empty, keys."""

import json
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from taximeter_billing.book import AuditRow, DeclaredRow, OutboxRow, upgrade
from taximeter_billing.book.tables import Base
from taximeter_billing.declarations import apply_declarations, read_mapping, republish
from taximeter_billing.errors import FrozenError, NotFoundError
from taximeter_billing.keys import create_key, list_keys, revoke_key
from taximeter_producers.errors import ControlError
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.control_snapshot import ControlSnapshot

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)


class Log:
    """A control topic in memory."""

    def __init__(self) -> None:
        self.records: list[ControlRecord] = []

    def publish(self, records: Iterable[ControlRecord]) -> int:
        """Take the records."""
        new = list(records)
        self.records += new
        return len(new)

    def snapshot(self) -> ControlSnapshot:
        """What a follower makes of it."""
        snapshot = ControlSnapshot()
        for record in self.records:
            snapshot = snapshot.apply(record)
        return snapshot


def unreachable(_records: Iterable[ControlRecord]) -> int:
    """A log that does not answer."""
    raise ControlError("the log does not answer")


def content(limit: str = "10", output: str = "1.50") -> dict[str, Any]:
    """One tenant with a card and a budget."""
    price = {"model": "m", "uncached_input": "0.50", "output": output}
    return {
        "rate_cards": [{"id": "default", "version": 1, "effective_from": "2026-01-01T00:00:00Z", "prices": [price]}],
        "tenants": [{"id": "acme"}],
        "budgets": [{"id": "month", "tenant": "acme", "limit": limit}],
    }


@pytest.fixture
def log() -> Log:
    return Log()


def apply(book: Engine, declared: dict[str, Any], log: Log, *, prune: bool = False) -> int:
    """Apply, and say how many changes there were."""
    done = apply_declarations(book, read_mapping(declared), "tester", NOW, log.publish, prune=prune)
    return len(done.plan.changes)


def test_migrations_build_the_very_tables(book: Engine) -> None:
    upgrade(book)  # again: nothing happens
    with book.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_applying_again_changes_and_publishes_nothing(book: Engine, log: Log) -> None:
    assert apply(book, content(), log) == 3
    published = len(log.records)
    assert apply(book, content(), log) == 0
    assert len(log.records) == published == 3
    assert log.snapshot().budgets["acme"][0].limit_pico == 10 * 10**12


def test_a_change_is_a_new_version_with_an_entry_in_the_audit_log(book: Engine, log: Log) -> None:
    apply(book, content(), log)
    apply(book, content(limit="20"), log)
    with Session(book) as session:
        versions = session.scalars(select(DeclaredRow).where(DeclaredRow.key == "month").order_by(DeclaredRow.version))
        limits = [(row.version, row.body["limit_pico"]) for row in versions if row.body]
        entry = session.scalars(select(AuditRow).order_by(AuditRow.id.desc()).limit(1)).one()
    assert limits == [(1, 10 * 10**12), (2, 20 * 10**12)]
    assert (entry.actor, entry.action, entry.key) == ("tester", "change", "month")
    assert entry.before is not None and entry.before["limit_pico"] == 10 * 10**12
    assert entry.after is not None and entry.after["limit_pico"] == 20 * 10**12
    assert log.snapshot().budgets["acme"][0].limit_pico == 20 * 10**12


def test_a_refused_plan_writes_nothing(book: Engine, log: Log) -> None:
    apply(book, content(), log)
    with pytest.raises(FrozenError):
        apply(book, content(limit="20", output="9"), log)
    with Session(book) as session:
        assert session.scalar(select(func.count()).select_from(DeclaredRow)) == 3
    assert len(log.records) == 3


def test_the_moment_of_recording_stands_on_the_rate_card(book: Engine, log: Log) -> None:
    apply(book, content(), log)
    card = log.snapshot().card_for("acme", NOW)
    assert card is not None and card.recorded_at == NOW


def test_deleting_and_declaring_again(book: Engine, log: Log) -> None:
    apply(book, content(), log)
    without = content()
    del without["budgets"]
    assert apply(book, without, log, prune=True) == 1
    assert log.snapshot().budgets == {}
    assert apply(book, content(), log) == 1
    assert log.snapshot().budgets["acme"][0].id == "month"


def test_what_the_log_did_not_take_goes_out_with_the_next_apply(book: Engine, log: Log) -> None:
    with pytest.raises(ControlError):
        apply_declarations(book, read_mapping(content()), "tester", NOW, unreachable)
    assert apply(book, content(), log) == 0  # all of it was recorded
    assert set(log.snapshot().tenants) == {"acme"}
    with Session(book) as session:
        assert session.scalar(select(func.count()).select_from(OutboxRow)) == 0


def test_two_senders_at_once_leave_the_newest_word_last(book: Engine, log: Log) -> None:
    """The first is overtaken between reading its outbox and publishing: its old words arrive after the newer ones."""
    overtaken: list[int] = []

    def slow(records: Iterable[ControlRecord]) -> int:
        held = list(records)
        if not overtaken:
            overtaken.append(apply(book, content(limit="20"), log))
        return log.publish(held)

    apply_declarations(book, read_mapping(content(limit="10")), "tester", NOW, slow)
    assert overtaken == [1]
    assert log.snapshot().budgets["acme"][0].limit_pico == 20 * 10**12


_DIES_WHILE_PUBLISHING = """
import os, sys, json
from datetime import UTC, datetime
from taximeter_billing.book import open_book
from taximeter_billing.declarations import apply_declarations, read_mapping
book, declared = open_book(sys.argv[1]), read_mapping(json.loads(sys.argv[2]))
apply_declarations(book, declared, "tester", datetime.now(UTC), lambda _: os._exit(9))
"""


def test_a_process_that_dies_between_book_and_log(book: Engine, log: Log) -> None:
    command = [sys.executable, "-c", _DIES_WHILE_PUBLISHING, str(book.url), json.dumps(content())]
    assert subprocess.run(command, check=False, timeout=120).returncode == 9
    assert apply(book, content(), log) == 0
    assert set(log.snapshot().tenants) == {"acme"}


def test_an_emptied_log_is_filled_again(book: Engine, log: Log) -> None:
    apply(book, content(), log)
    create_key(book, "acme", "tester", NOW, log.publish)
    emptied = Log()
    republish(book, emptied.publish)
    assert emptied.snapshot() == log.snapshot()


def test_a_key_is_known_by_its_hash_alone(book: Engine, log: Log) -> None:
    apply(book, content(), log)
    key = create_key(book, "acme", "tester", NOW, log.publish)
    known = log.snapshot().api_keys[sha256(key.secret.encode()).hexdigest()]
    assert (known.tenant, known.disabled) == ("acme", False)
    with book.connect() as connection:
        stored = str([connection.execute(select(table)).all() for table in Base.metadata.tables.values()])
    assert sha256(key.secret.encode()).hexdigest() in stored
    assert key.secret not in stored


def test_a_revoked_key_is_disabled_and_stays_so(book: Engine, log: Log) -> None:
    apply(book, content(), log)
    key = create_key(book, "acme", "tester", NOW, log.publish)
    revoke_key(book, key.id, "tester", NOW, log.publish)
    published = len(log.records)
    revoke_key(book, key.id, "tester", NOW, log.publish)
    assert len(log.records) == published
    assert [row.disabled for row in list_keys(book)] == [True]
    assert log.snapshot().api_keys[sha256(key.secret.encode()).hexdigest()].disabled


def test_revoking_again_publishes_what_could_not_be_published(book: Engine, log: Log) -> None:
    apply(book, content(), log)
    key = create_key(book, "acme", "tester", NOW, log.publish)
    with pytest.raises(ControlError):
        revoke_key(book, key.id, "tester", NOW, unreachable)
    assert not log.snapshot().api_keys[sha256(key.secret.encode()).hexdigest()].disabled
    revoke_key(book, key.id, "tester", NOW, log.publish)
    assert log.snapshot().api_keys[sha256(key.secret.encode()).hexdigest()].disabled


def test_keys_of_nobody(book: Engine, log: Log) -> None:
    with pytest.raises(NotFoundError, match="no tenant is called 'nobody'"):
        create_key(book, "nobody", "tester", NOW, log.publish)
    with pytest.raises(NotFoundError, match="no key is called 'key-0'"):
        revoke_key(book, "key-0", "tester", NOW, log.publish)


def test_pruning_leaves_keys_alone(book: Engine, log: Log) -> None:
    apply(book, content(), log)
    create_key(book, "acme", "tester", NOW, log.publish)
    assert apply(book, content(), log, prune=True) == 0
    assert {record.kind for record in log.records if record.body is None} == set()
    assert ControlKind.API_KEY in {record.kind for record in log.records}
