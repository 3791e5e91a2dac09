"""A close that is killed at any point ends, once it is run again, exactly as one that was not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taximeter_billing.book import open_book
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_sql import connect, migrate
from tests.closing_killer import NOW
from tests.face_process import FaceProcess
from tests.integration.test_billing import content, insert, publish, shared_prefix


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.faults)])
def test_a_killed_close_goes_on_where_it_stopped(
    tmp_path: Path, clickhouse: FaceProcess, unique_database: str, stride: int
) -> None:
    book_file = tmp_path / "book.db"
    book = open_book(f"sqlite:///{book_file}")
    more: dict[str, Any] = {
        "contracts": [{"id": "b", "tenant": "berlin", "starts": "2026-01-01T00:00:00Z", "minimum": {"amount": "3"}}],
        "credits": [{"id": "g", "tenant": "acme", "amount": "0.05", "effective_at": "2026-11-01T00:00:00Z"}],
    }
    apply_declarations(book, read_mapping({**content(), **more}), "tester", NOW, publish)
    book.dispose()
    client = connect(clickhouse.url(unique_database))
    migrate(client)
    insert(client, *shared_prefix())
    client.close()
    arguments = [str(book_file), clickhouse.url(unique_database), str(stride)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.closing_killer", *arguments],
        capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    untouched = {name: value for name, value in runs[0].items() if name not in {"statement", "ended"}}
    assert [row[0] for row in untouched["invoices"]] == ["INV-000001", "INV-000002", "INV-000003"]
    killed = [run for run in runs if run["ended"] != 0]
    assert len(killed) >= 5
    for run in runs:
        assert {name: run[name] for name in untouched} == untouched, f"killed before statement {run['statement']}"
