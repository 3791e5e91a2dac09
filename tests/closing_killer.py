"""Closes and finalizes a month while being killed at one database statement after another, and says what each run ended with.

`python -m tests.closing_killer BOOK_FILE CLICKHOUSE_URL STRIDE`: for every STRIDE-th statement, a process works on a copy of the
book and is killed (SIGKILL) just before that statement; another then does the work again. Prints a JSON object a line: the
first of a run that nobody killed.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session

from taximeter_billing import closing
from taximeter_billing.book import CreditEntryRow, CreditNoteRow, InvoiceRow, SeriesRow, open_book
from taximeter_billing.declarations import state
from taximeter_billing.warehouse import UsageReader
from taximeter_sql import connect

NOW = datetime(2026, 12, 5, tzinfo=UTC)
PERIOD = "2026-11"


def work(url: str, clickhouse: str, prepare: Callable[[Engine], None]) -> None:
    """Close and finalize, in small batches so that there is much to cut in between."""
    state.BATCH_TENANTS = 2
    book = open_book(url)
    prepare(book)
    client = connect(clickhouse)
    closing.close_period(book, UsageReader(client), PERIOD, NOW)
    closing.finalize_period(book, PERIOD, "INV", NOW)
    client.close()
    book.dispose()


def killed_before(statement: int) -> Callable[[Engine], None]:
    """Listens to a book, and kills its own process before the given statement or commit."""

    def prepare(book: Engine) -> None:
        seen = 0

        def count(*_anything: object) -> None:
            nonlocal seen
            seen += 1
            if seen == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(book, "before_cursor_execute", count)
        event.listen(book, "commit", count)

    return prepare


def in_a_process(task: Callable[[], None]) -> int:
    """Run it in a process of its own; returns how that ended (0, or minus the signal)."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            task()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(url: str) -> dict[str, object]:
    """Everything that must not depend on what was cut off."""
    book = open_book(url)
    with Session(book) as session:
        found = {
            "invoices": [[row.number, row.tenant, row.status, row.document_sha256] for row in
                         session.scalars(select(InvoiceRow).order_by(InvoiceRow.number))],
            "series": [[row.name, row.last] for row in session.scalars(select(SeriesRow).order_by(SeriesRow.name))],
            "ledger": sorted([row.transaction, row.account, str(row.amount_pico)] for row in
                             session.scalars(select(CreditEntryRow))),
            "notes": [row.number for row in session.scalars(select(CreditNoteRow).order_by(CreditNoteRow.number))],
        }  # fmt: skip
    book.dispose()
    return found


def main() -> None:
    """Run until a process lives to its end."""
    template, clickhouse, stride = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def run(statement: int) -> int:
        copy = template.with_name(f"killed-{statement}.db")
        shutil.copy(template, copy)
        url = f"sqlite:///{copy}"
        ended = in_a_process(lambda: work(url, clickhouse, killed_before(statement)))
        if ended == -signal.SIGKILL:
            assert in_a_process(lambda: work(url, clickhouse, lambda _book: None)) == 0
        print(json.dumps({"statement": statement, "ended": ended, **outcome(url)}), flush=True)
        assert ended in {0, -signal.SIGKILL}
        return ended

    run(0)
    statement = 1
    while run(statement) != 0:
        statement += stride


if __name__ == "__main__":
    main()
