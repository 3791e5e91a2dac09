"""One table of statements, run by clickhouse_connect on whatever client it is given, each outcome put into words.

`python -m tests.face_statements DIR` runs it on the engine itself, without HTTP, and prints the outcomes as JSON.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

_COLUMNS = """
    id UInt64, wide Int128, widest UInt256, amount Decimal(38, 12), small Decimal(9, 2), at DateTime64(6, 'UTC'),
    second DateTime('UTC'), day Date, name String, code FixedString(4), kind LowCardinality(String),
    maybe Nullable(String), maybe_kind LowCardinality(Nullable(String)), counts Map(String, UInt64),
    tags Array(LowCardinality(String)), nested Array(Array(Nullable(Int32))), pair Tuple(String, Int64),
    unique UUID, flag Bool, choice Enum8('a' = 1, 'b' = 2), ratio Float64
"""
_AT = datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)
ROWS: Sequence[Sequence[object]] = (
    *(
        (
            *(number, sign * 10**38, 2**256 - 1 - number, Decimal(sign) * Decimal("12345678901234567890.123456789012")),
            *(
                Decimal("-0.01"),
                _AT,
                _AT.replace(microsecond=0),
                date(2026, 2, 28),
                "tab\tline\nquote'back\\",
                b"ab\x00c",
            ),
            *("chat", None, None, {"é": 2**64 - 1, "": 0}, ["x", "x", ""], [[1, None], []], ("é", -(2**63))),
            *(UUID(int=number + 1), True, "b", 0.1),
        )
        for number, sign in ((1, 1), (2, -1))
    ),
    (
        *(0, 0, 0, Decimal(0), Decimal(0), datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)),
        *(date(1970, 1, 1), "", b"\x00" * 4, "", "", "x", {}, [], [], ("", 0), UUID(int=0), False, "a", -0.0),
    ),
)

COMMANDS = (
    f"CREATE TABLE wide ({_COLUMNS}) ENGINE = MergeTree ORDER BY id",
    "CREATE TABLE format (select UInt8, `values` String) ENGINE = MergeTree ORDER BY tuple()",
    "INSERT INTO format VALUES (1, 'FORMAT Native'), (2, 'line\n\nline; select')",
    "INSERT INTO format (select, `values`) /* FORMAT CSV */ SELECT 3, 'from a query'",
    "/* a comment */ insert into format (`values`, select) settings async_insert = 0 values ('settings', 4)",
    "SELECT count() FROM format",
    "SELECT 1 WHERE 0",
    "EXISTS TABLE nowhere",
    "SHOW TABLES",
    "ALTER TABLE format ADD COLUMN later UInt8 DEFAULT 7",
    "SYSTEM FLUSH LOGS",
    # Refused: no such table, no such column, no such function, a syntax error, a type that does not fit.
    "SELECT * FROM nowhere",
    "SELECT nothing FROM format",
    "SELECT no_such_function(1)",
    "SELEC 1",
    "INSERT INTO format (select) VALUES ('text')",
    "SELECT 1 FORMAT NoSuchFormat",
    "CREATE TABLE format (x UInt8) ENGINE = MergeTree ORDER BY x",
)

QUERIES: Sequence[tuple[str, Mapping[str, object], Mapping[str, object]]] = (
    ("SELECT * FROM wide ORDER BY id", {}, {}),
    ("SELECT * FROM format ORDER BY select", {}, {}),
    ("SELECT sum(wide), max(widest), sum(amount), any(counts) FROM wide", {}, {}),
    ("SELECT id FROM wide WHERE id > 1000", {}, {}),
    ("SELECT * FROM wide LIMIT 0", {}, {}),
    ("SELECT kind, count() AS n FROM wide GROUP BY kind ORDER BY n, kind", {}, {}),
    ("SELECT {text:String}, length({text:String})", {"text": "tab\tline\nquote'back\\ é"}, {}),
    (
        "SELECT {n:Int128}, {d:Decimal(38, 12)}, {u:UUID}",
        {"n": -(10**38), "d": Decimal("1.000000000001"), "u": UUID(int=7)},
        {},
    ),
    ("SELECT {at:DateTime64(6, 'UTC')}, {day:Date}", {"at": _AT, "day": date(2026, 2, 28)}, {}),
    ("SELECT {list:Array(String)}", {"list": ["a'b", "c\\d", "tab\t"]}, {}),
    ("SELECT {nothing:Nullable(String)}", {"nothing": None}, {}),
    ("SELECT count() FROM {table:Identifier}", {"table": "wide"}, {}),
    ("SELECT %(text)s", {"text": "bound by the client's own quotes"}, {}),
    ("SELECT length({long:String})", {"long": "é" * 40_000}, {}),
    ("SELECT getSetting('max_block_size')", {}, {"max_block_size": 1234}),
    ("SELECT number FROM numbers(100000) ORDER BY number DESC LIMIT 3", {}, {"max_threads": 1}),
    ("SELECT sum(number) FROM numbers(1000000)", {}, {"max_rows_to_read": 10}),
)

RAW = (
    *((f"SELECT * EXCEPT (ratio) FROM wide ORDER BY id FORMAT {name}") for name in ("JSON", "JSONEachRow", "CSV")),
    *((f"SELECT * EXCEPT (ratio) FROM wide ORDER BY id FORMAT {name}") for name in ("TSVWithNamesAndTypes", "Values")),
    "SELECT * EXCEPT (ratio) FROM wide ORDER BY id",
    "SELECT number % 2 AS k, count() FROM numbers(9) GROUP BY k WITH TOTALS ORDER BY k FORMAT TabSeparated",
)


# Last of all: on one connection of chDB the beginning of a result that broke off shows up in the next result.
LAST = "SELECT throwIf(number = 3, 'thrown on purpose') FROM numbers(5)"


def outcomes(client: Client) -> list[str]:
    """Run the whole table in the client's own database; what came of each statement, as text that can be compared."""
    found = [_command(client, sql) for sql in COMMANDS]
    described = client.query("SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 'wide'")
    client.insert("wide", ROWS, column_names=[str(row[0]) for row in described.result_rows])
    found += [_query(client, sql, parameters, settings) for sql, parameters, settings in QUERIES]
    # Without the elapsed times, which differ from run to run.
    settings = {"output_format_write_statistics": 0}
    found += [f"{sql} -> {client.raw_query(sql, settings=settings)!r}" for sql in RAW]
    found.append(_command(client, LAST))
    return found


def _command(client: Client, sql: str) -> str:
    try:
        answer = client.command(sql)
    except ClickHouseError as error:
        return f"{sql} -> refused {_code(error)}"
    return f"{sql} -> {answer if isinstance(answer, (str, int, list)) else 'done'!r}"


def _query(client: Client, sql: str, parameters: Mapping[str, object], settings: Mapping[str, object]) -> str:
    try:
        result = client.query(sql, parameters=dict(parameters), settings=dict(settings))
    except ClickHouseError as error:
        return f"{sql} -> refused {_code(error)}"
    types = [kind.name for kind in result.column_types]
    return f"{sql} -> {result.column_names} {types} {result.result_rows!r}"


def _code(error: ClickHouseError) -> str:
    return f"{getattr(error, 'code', None)} {getattr(error, 'name', None)}"


def main() -> None:
    """Run the table on the engine itself."""
    with clickhouse_connect.get_client(dsn=f"chdb://{sys.argv[1]}") as client:
        print(json.dumps(outcomes(client)))


if __name__ == "__main__":
    main()
