"""A push that is killed at any point ends, once it is run again, with exactly one right invoice each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from taximeter_billing.book import open_book
from taximeter_billing.closing import close_period, finalize_period
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.warehouse import UsageReader
from taximeter_sql import connect, migrate
from tests.closing_killer import NOW, PERIOD
from tests.double_process import judged_double
from tests.face_process import FaceProcess
from tests.integration.test_billing import content, insert, publish, shared_prefix


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.faults)])
def test_a_killed_push_ends_with_one_right_invoice_each(
    tmp_path: Path, clickhouse: FaceProcess, unique_database: str, stride: int
) -> None:
    book_file = tmp_path / "book.db"
    book = open_book(f"sqlite:///{book_file}")
    apply_declarations(book, read_mapping(content()), "tester", NOW, publish)
    client = connect(clickhouse.url(unique_database))
    migrate(client)
    insert(client, *shared_prefix())
    close_period(book, UsageReader(client), PERIOD, NOW)
    assert len(finalize_period(book, PERIOD, "INV", NOW)) == 2
    client.close()
    book.dispose()
    with judged_double(tmp_path / "stripe.db") as double:
        done = subprocess.run(
            [sys.executable, "-m", "tests.pushing_killer", str(book_file), double.url, str(stride)],
            capture_output=True, text=True, timeout=3000, check=False,
        )  # fmt: skip
        assert double.problems == []
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len([run for run in runs if run["ended"] != 0]) >= 50 // stride
    for run in runs:
        found: list[list[object]] = [[number, "open", [], 1] for number in ("INV-000001", "INV-000002")]
        assert run["invoices"] == found, f"killed at step {run['step']}"
