"""How the ClickHouse face reads a statement."""

import pytest

from taximeter.embedded.clickhouse_face.failures import from_engine
from taximeter.embedded.clickhouse_face.statements import Insert, is_insert, read_insert, read_query


@pytest.mark.parametrize(
    ("text", "sql", "data_format", "data"),
    [
        (b"INSERT INTO t FORMAT Native\n\x01\x02", b"INSERT INTO t ", "Native", b"\x01\x02"),
        # Only one line end belongs to the statement.
        (b"INSERT INTO t (a, `b`) FORMAT CSV \r\n\n1", b"INSERT INTO t (a, `b`) ", "CSV", b"\n1"),
        (b"insert into t format JSONEachRow{}", b"insert into t ", "JSONEachRow", b"{}"),
        (b"INSERT INTO t VALUES (1), ('FORMAT')", b"INSERT INTO t ", "Values", b" (1), ('FORMAT')"),
        # A table and columns with the names of keywords.
        (b"INSERT INTO format (values, `select`) VALUES (1)", b"INSERT INTO format (values, `select`) ", "Values", b" (1)"),
        (b"INSERT INTO TABLE FUNCTION f('FORMAT x') FORMAT TSV\n", b"INSERT INTO TABLE FUNCTION f('FORMAT x') ", "TSV", b""),
        (b"INSERT INTO t SETTINGS a = 'x' FORMAT TSV\n1", b"INSERT INTO t SETTINGS a = 'x' ", "TSV", b"1"),
        (b"-- FORMAT A\nINSERT INTO t /* VALUES */ FORMAT B\n1", b"-- FORMAT A\nINSERT INTO t /* VALUES */ ", "B", b"1"),
        # Data that look like SQL, an open quote included, are left alone.
        (b"INSERT INTO t FORMAT Native\n' SELECT ; FORMAT", b"INSERT INTO t ", "Native", b"' SELECT ; FORMAT"),
    ],
)  # fmt: skip
def test_an_insert_is_split_from_its_data(text: bytes, sql: bytes, data_format: str, data: bytes) -> None:
    assert is_insert(text)
    insert = read_insert(text, None)
    assert insert == Insert(sql, data_format, len(text) - len(data))


@pytest.mark.parametrize(
    "text",
    [
        b"INSERT INTO t SELECT 1",
        b"INSERT INTO t (a) WITH 1 AS x SELECT x FORMAT Null",
        b"INSERT INTO t FROM INFILE 'x' FORMAT CSV",
        b"INSERT INTO t",
    ],
)
def test_an_insert_that_brings_no_data(text: bytes) -> None:
    assert read_insert(text, None) is None


def test_the_request_may_name_the_format() -> None:
    assert read_insert(b"INSERT INTO t (a)", "CSV") == Insert(b"INSERT INTO t (a)", "CSV", 17)


@pytest.mark.parametrize(
    ("text", "output_format", "selects", "statements"),
    [
        (b"SELECT 1", None, True, 1),
        (b"(SELECT 1) UNION ALL (SELECT 2) format JSON ;", "JSON", True, 1),
        (b"WITH 1 AS format SELECT format FROM t", None, True, 1),
        (b"SELECT 1 FORMAT CSV SETTINGS max_threads = 1", "CSV", True, 1),
        (b"SELECT ';', \"FORMAT\" FROM t -- ; FORMAT CSV", None, True, 1),
        (b"SELECT (SELECT 1 FORMAT x)", None, True, 1),
        (b"SHOW TABLES FORMAT TSV", "TSV", False, 1),
        (b"SELECT 1; DROP TABLE t", None, True, 2),
        (b"SELECT 1;;", None, True, 1),
        (b"", None, False, 1),
    ],
)
def test_what_is_read_of_a_query(text: bytes, output_format: str | None, selects: bool, statements: int) -> None:
    query = read_query(text)
    assert (query.output_format, query.selects, query.statements) == (output_format, selects, statements)


@pytest.mark.parametrize(
    ("text", "code", "status", "said"),
    [
        ("Code: 60. DB::Exception: no t. (UNKNOWN_TABLE)", 60, 404, "Code: 60. DB::Exception: no t. (UNKNOWN_TABLE)"),
        ("Streaming insert finish failed: Code: 33. DB::Exception: x", 33, 500, "Code: 33. DB::Exception: x"),
        ("Code: 73. DB::Exception: Code: 73. DB::Exception: x", 73, 404, "Code: 73. DB::Exception: x"),
        ("something else", 1001, 500, "Code: 1001. DB::Exception: something else"),
    ],
)
def test_an_error_of_the_engine(text: str, code: int, status: int, said: str) -> None:
    error = from_engine(RuntimeError(text))
    assert (error.code, error.status, str(error)) == (code, status, said)
