"""What the command line tells where a word, a file, a setting or a service is not right: one line and status 2, never a stack."""

import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException
from sqlalchemy import func, select
from typer.testing import CliRunner, Result

from taximeter.cli.main import app
from taximeter.cli.told_errors import told
from taximeter.embedded.stack import PORTS
from taximeter_billing.book import AuditRow, OutboxRow, open_book
from taximeter_billing.declarations import apply_declarations, read_file
from taximeter_billing.keys import create_key, list_keys

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "taximeter.yaml"


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which nobody answers, for as long as the test runs."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def book(tmp_path: Path) -> str:
    """The address of an empty book."""
    url = f"sqlite:///{tmp_path / 'book.db'}"
    open_book(url).dispose()
    return url


def run(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(app, words, env={"COLUMNS": "200", **environment})


def one_line(result: Result) -> str:
    """The only line that was told. A stack would be an exception that left the command."""
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception
    [line] = result.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize(
    "words",
    [
        ("invoice", "close"),
        ("invoice", "finalize"),
        ("invoice", "push"),
        ("invoice", "list"),
        ("invoice", "notes"),
        ("stripe", "reconcile"),
        ("stripe", "meter-events", "--meter", "m"),
        ("parked", "list"),
        ("margin",),
        ("what-if", "--policy", "retain"),
        ("export",),
    ],
)
@pytest.mark.parametrize("period", ["November", "2026-13", "٢٠٢٦-11", "9999-12", "0001-01"])
def test_what_is_no_month_is_told_before_anything_is_opened(words: tuple[str, ...], period: str) -> None:
    result = run(*words, "--period", period, TAXIMETER_DATABASE_URL="nonsense")
    assert result.exit_code == 2 and "not a month (YYYY-MM)" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("invoice", "finalize"),
        ("invoice", "push"),
        ("stripe", "payments", "nobody"),
    ],
)
def test_a_tenant_or_invoice_that_nobody_knows_is_named(words: tuple[str, ...], book: str) -> None:
    more = () if words[0] == "stripe" else ("--period", "2026-11", "--tenant", "nobody")
    assert "is called 'nobody'" in one_line(run(*words, *more, TAXIMETER_DATABASE_URL=book))


@pytest.mark.parametrize("words", [("invoice", "list"), ("verify", "INV-1"), ("stripe", "events"), ("keys", "list")])
def test_a_book_that_is_not_there_is_not_made_by_looking(words: tuple[str, ...], tmp_path: Path) -> None:
    line = one_line(run(*words, TAXIMETER_DATABASE_URL=f"sqlite:///{tmp_path / 'none.db'}"))
    assert "there is no book at" in line and "source data/env.sh" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (("verify", "INV-1"), "TAXIMETER_CLICKHOUSE_URL"),
        (("unrated", "list"), "TAXIMETER_CLICKHOUSE_URL"),
        (("invoice", "list"), "TAXIMETER_DATABASE_URL"),
    ],
)
def test_a_part_that_does_not_answer_is_named(words: tuple[str, ...], setting: str, nowhere: str, book: str) -> None:
    addresses = {
        "TAXIMETER_DATABASE_URL": book,
        "TAXIMETER_CLICKHOUSE_URL": f"http://default:@{nowhere}/taximeter",
    }
    if setting == "TAXIMETER_DATABASE_URL":
        addresses[setting] = f"postgresql+psycopg://taximeter@{nowhere}/taximeter"
    assert "efused" in one_line(run(*words, **addresses))


@pytest.mark.parametrize(
    "words",
    [
        ("budget", "list"),
        ("reconcile",),
        ("apply", "--yes", str(EXAMPLE)),
        ("keys", "create", "acme"),
        ("topup", "acme", "5.00", "--id", "order-1"),
    ],
)
def test_without_kafka_nothing_is_done_and_its_address_is_named(
    words: tuple[str, ...], nowhere: str, book: str
) -> None:
    line = one_line(run(*words, TAXIMETER_DATABASE_URL=book, TAXIMETER_KAFKA_BOOTSTRAP_SERVERS=nowhere))
    assert line.startswith(f"error: Kafka at {nowhere} does not answer (TAXIMETER_KAFKA_BOOTSTRAP_SERVERS)")
    opened = open_book(book)
    with opened.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(AuditRow)) == 0
    opened.dispose()


def test_a_key_is_revoked_without_kafka_and_it_is_told_what_is_still_to_come(nowhere: str, book: str) -> None:
    now = datetime(2026, 12, 1, tzinfo=UTC)
    opened = open_book(book)
    apply_declarations(opened, read_file(EXAMPLE), "tester", now, lambda records: len(list(records)))
    key = create_key(opened, "acme", "tester", now, lambda records: len(list(records)))
    result = run("keys", "revoke", key.id, TAXIMETER_DATABASE_URL=book, TAXIMETER_KAFKA_BOOTSTRAP_SERVERS=nowhere)
    told = result.stderr.strip()
    assert result.exit_code == 1
    assert told.startswith(f"recorded, not yet published: Kafka at {nowhere} does not answer")
    assert told.endswith("; the billing service publishes it when it does, and so does the same command again")
    assert [row.disabled for row in list_keys(opened)] == [True]
    with opened.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(OutboxRow)) == 1
    opened.dispose()


def test_a_stack_whose_ports_are_taken_names_them_and_how_to_take_others(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        words = ("up", "--port-offset", str(port - PORTS["Kafka"]), "--data", str(tmp_path / "data"))
        done = subprocess.run(
            [sys.executable, "-m", "taximeter", *words], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert f"{port} (Kafka)" in line
    assert f"taximeter up --port-offset {port - PORTS['Kafka'] + 1000} --data {tmp_path / 'data'}-2" in line


def test_a_pdf_is_not_written_to_a_terminal(book: str) -> None:
    ours, theirs = pty.openpty()
    words = ("export", "INV-1", "--format", "pdf")
    environment = {**os.environ, "TAXIMETER_DATABASE_URL": book, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "taximeter", *words],
        stdout=theirs, stderr=subprocess.PIPE, text=True, check=False, timeout=60, env=environment,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2 and "--out invoice.pdf" in done.stderr


def test_kafka_that_stops_answering_is_named() -> None:
    line = told(KafkaException(KafkaError(KafkaError._TRANSPORT)))
    assert line is not None and line.startswith("Kafka does not answer (TAXIMETER_KAFKA_BOOTSTRAP_SERVERS)")


def test_what_nobody_expects_stays_loud() -> None:
    assert told(ValueError("ours")) is None


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("TAXIMETER_DATABASE_URL", "nonsense", "the book cannot be opened (TAXIMETER_DATABASE_URL)"),
        ("TAXIMETER_KAFKA_PARTITIONS", "many", "TAXIMETER_KAFKA_PARTITIONS: Input should be a valid integer"),
        ("TAXIMETER_GRACE_HOURS", "-1", "TAXIMETER_GRACE_HOURS: Input should be greater than"),
    ],
)
def test_a_setting_that_is_wrong_is_named(setting: str, value: str, expected: str) -> None:
    assert expected in one_line(run("invoice", "list", **{setting: value}))


def test_each_command_brings_its_own_packages_alone() -> None:
    script = (
        "import json, sys\nfrom taximeter.cli.main import app\n"
        "try:\n    app(['savings', '--help'])\nexcept SystemExit:\n    print(json.dumps(sorted(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    modules = {name.partition(".")[0] for name in json.loads(shown.stdout.splitlines()[-1])}
    assert not modules & {"faust", "fastapi", "sqlalchemy", "aiohttp", "clickhouse_connect", "stripe", "chdb"}


def test_every_command_is_listed_and_teaches() -> None:
    listed = run("--help").stdout
    for name in ("run", "up", "savings", "what-if", "explain", "verify", "stripe", "reconcile", "rejected", "unrated"):
        assert f" {name} " in listed
        help_of = run(name, "--help", COLUMNS="80")
        assert help_of.exit_code == 0 and max(map(len, help_of.stdout.splitlines())) <= 80
