"""Two at work on one book: whoever changes it does so alone, and on what it holds then."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypeVar

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import CreditEntryRow, CreditNoteRow, DeclaredRow, open_book, writing
from taximeter_billing.closing import close_period, find_invoice, list_invoices
from taximeter_billing.credit_notes import list_notes
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.errors import DeclarationError, FrozenError
from taximeter_billing.lifecycle import finalize_period, review, void_invoice
from taximeter_billing.numbering import next_number
from taximeter_billing.top_ups import Wanted, top_up
from taximeter_billing.warehouse import Obstacle, TenantSpan, UsageReader
from taximeter_sql import connect, migrate
from tests.face_process import FaceProcess
from tests.integration.test_billing import NOW, PERIOD, content, insert, publish

T = TypeVar("T")
WORKERS = 6
SECONDS_MAX = 120.0


@pytest.fixture
def warehouse(clickhouse: FaceProcess, unique_database: str) -> Iterator[Client]:
    client = connect(clickhouse.url(unique_database))
    migrate(client)
    yield client
    client.close()


@pytest.fixture
def book(book_url: str) -> Iterator[Engine]:
    engine = open_book(book_url)
    apply_declarations(engine, read_mapping(content()), "tester", NOW, publish)
    yield engine
    engine.dispose()


def at_once(*tasks: Callable[[], T]) -> list[T | Exception]:
    """Start them at one moment; what each returned or raised."""
    together = threading.Barrier(len(tasks))

    def run(task: Callable[[], T]) -> T | Exception:
        together.wait(SECONDS_MAX)
        try:
            return task()
        except Exception as error:  # noqa: BLE001 - it is looked at
            return error

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks, timeout=SECONDS_MAX))


class Interrupted(UsageReader):
    """A reader that lets somebody else act when all is looked at and nothing is written yet."""

    def __init__(self, client: Client, act: Callable[[], object]) -> None:
        super().__init__(client)
        self._act: Callable[[], object] | None = act

    def obstacles(self, spans: Sequence[TenantSpan]) -> dict[str, Obstacle]:
        """The last look before the writing."""
        found = super().obstacles(spans)
        act, self._act = self._act, None
        if act is not None:
            act()
        return found


def use(warehouse: Client, event_id: str, output: int, day: int = 3, month: int = 11, **more: object) -> None:
    """An event of acme's."""
    time = datetime(2026, month, day, tzinfo=UTC)
    insert(warehouse, {"event_id": event_id, "tenant": "acme", "time": time, "output": output, **more})


def test_several_may_open_a_new_book(book_url: str) -> None:
    """Each finds all tables; the migrations ran once."""
    opened = at_once(*[lambda: open_book(book_url)] * WORKERS)
    for engine in opened:
        assert isinstance(engine, Engine), engine
        assert list_invoices(engine) == []
        engine.dispose()


def test_numbers_have_no_gaps_and_no_twins(book: Engine) -> None:
    """The first of a series included, and whoever fails gives the number back."""

    def draw(fails: bool) -> str:
        with writing(book) as session:
            number = next_number(session, "INV")
            if fails:
                raise FrozenError(number)
        return number

    drawn = at_once(*[lambda fails=fails: draw(fails) for fails in (False, True, False, False, True, False)])
    numbers = sorted(number for number in drawn if isinstance(number, str))
    assert numbers == ["INV-000001", "INV-000002", "INV-000003", "INV-000004"]
    assert all(isinstance(failed, str | FrozenError) for failed in drawn)


def test_closing_and_finalizing_at_once_make_one_invoice_each(
    book: Engine, clickhouse: FaceProcess, unique_database: str, warehouse: Client
) -> None:
    """Whoever comes second finds it done. The sums are those of one run alone."""
    for number in range(3):
        use(warehouse, f"e{number}", 1_000_000)

    def work() -> int:
        client = connect(clickhouse.url(unique_database))
        try:
            close_period(book, UsageReader(client), PERIOD, NOW)
            return len(finalize_period(book, PERIOD, "INV", NOW))
        finally:
            client.close()

    found = at_once(*[work] * 4)
    assert sum(count for count in found if isinstance(count, int)) == 1, found
    (row,) = list_invoices(book, PERIOD)
    assert (row.number, row.status, row.total_minor) == ("INV-000001", "final", 450)


def test_what_was_finalized_while_another_closed_stays_as_it_is(book: Engine, warehouse: Client) -> None:
    """The close had computed another draft, of usage that came in between."""
    use(warehouse, "first", 1_000_000)
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    use(warehouse, "second", 1_000_000, offset=1)
    (drafted,) = list_invoices(book, PERIOD)
    closed = close_period(book, Interrupted(warehouse, lambda: finalize_period(book, PERIOD, "INV", NOW)), PERIOD, NOW)
    assert closed.overtaken == ["acme"]
    (row,) = list_invoices(book, PERIOD)
    assert (row.number, row.status, row.document) == ("INV-000001", "final", drafted.document)
    assert close_period(book, UsageReader(warehouse), PERIOD, NOW).late.keys() == {"acme"}


def test_a_voided_invoice_does_not_come_back_by_a_close_that_was_under_way(book: Engine, warehouse: Client) -> None:
    use(warehouse, "first", 1_000_000)
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    finalize_period(book, PERIOD, "INV", NOW)
    voids = Interrupted(warehouse, lambda: void_invoice(book, "INV-000001", "wrong", "tester", NOW))
    assert close_period(book, voids, PERIOD, NOW).overtaken == ["acme"]
    assert [row.status for row in list_invoices(book, PERIOD)] == ["void"]


def test_a_draft_that_was_finalized_is_not_reviewed(book: Engine, warehouse: Client) -> None:
    """Both at once: the invoice is final with its number, whoever came first."""
    use(warehouse, "first", 1_000_000)
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    reviewed, finalized = at_once(
        lambda: review(book, f"acme/{PERIOD}", "eve", NOW).status,
        lambda: finalize_period(book, PERIOD, "INV", NOW)[0].status,
    )
    assert finalized == "final"
    assert reviewed in ("draft", "final") or isinstance(reviewed, FrozenError)
    assert find_invoice(book, f"acme/{PERIOD}").number == "INV-000001"


def test_late_usage_is_given_back_once_though_two_months_close_at_once(book: Engine, warehouse: Client) -> None:
    """The close of November had found what that of December gave back meanwhile."""
    use(warehouse, "october", 2_000_000, month=10)
    close_period(book, UsageReader(warehouse), "2026-10", NOW)
    finalize_period(book, "2026-10", "INV", NOW)
    use(warehouse, "void", 0, month=10, offset=1, attributes={"voids": "october"})
    later = datetime(2027, 1, 5, tzinfo=UTC)

    def december() -> None:
        close_period(book, UsageReader(warehouse), "2026-12", later)
        finalize_period(book, "2026-12", "INV", later)

    close_period(book, Interrupted(warehouse, december), PERIOD, later)
    finalize_period(book, PERIOD, "INV", later)
    close_period(book, UsageReader(warehouse), PERIOD, later)
    finalize_period(book, PERIOD, "INV", later)
    notes = list_notes(book)
    assert [(note.status, note.total_minor) for note in notes] == [("final", -300)]


def test_a_wallet_gives_back_what_it_was_given_once(book: Engine) -> None:
    wallet = {"id": "wallet", "tenant": "acme", "limit": "0", "period": "lifetime"}
    apply_declarations(book, read_mapping({**content(), "budgets": [wallet]}), "tester", NOW, publish)
    top_up(book, Wanted("in", "acme", 10 * 10**12, "USD"), "tester", NOW, publish)
    takes = [Wanted(f"out-{number}", "acme", -10 * 10**12, "USD") for number in range(WORKERS)]
    found = at_once(*[lambda wanted=wanted: top_up(book, wanted, "tester", NOW, publish) for wanted in takes])
    assert sum(isinstance(one, DeclarationError) for one in found) == WORKERS - 1, found


def test_versions_count_up_whoever_declares(book: Engine) -> None:
    """Each change is one on top of the last, and the last one holds."""

    def rename(number: int) -> int:
        declared = content()
        declared["tenants"][1]["name"] = f"Globex {number}"
        return len(apply_declarations(book, read_mapping(declared), "tester", NOW, publish).plan.changes)

    assert at_once(*[lambda number=number: rename(number) for number in range(WORKERS)]) == [1] * WORKERS
    with Session(book) as session:
        rows = session.scalars(select(DeclaredRow).where(DeclaredRow.key == "globex").order_by(DeclaredRow.id))
        assert [row.version for row in rows] == list(range(1, WORKERS + 2))


def test_readers_see_one_moment(book: Engine) -> None:
    """A reader that began before a change does not see half of it."""
    with Session(book) as session:
        before = session.scalars(select(CreditNoteRow.id)).all()
        with writing(book) as other:
            other.add(
                CreditEntryRow(transaction="grant:a", at=NOW, tenant="acme", currency="USD", account="a", amount_pico=1)
            )
        assert session.scalars(select(CreditEntryRow.id)).all() == [] == before
    with Session(book) as session:
        assert len(session.scalars(select(CreditEntryRow.id)).all()) == 1
