"""The ClickHouse face does what a ClickHouse server does, as far as an unmodified client can tell."""

import asyncio
import base64
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

from tests.face_process import FaceProcess
from tests.face_statements import outcomes

WAIT_SECONDS_MAX = 60.0
TOKEN = {"insert_deduplication_token": "topic/0/1-3", "deduplicate_blocks_in_dependent_materialized_views": 1}
ENGINE = "ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 100"


@pytest.fixture
def client(clickhouse: FaceProcess, unique_database: str) -> Iterator[Client]:
    with clickhouse.client(unique_database) as client:
        yield client


def post(
    face: FaceProcess, query: str, body: bytes = b"", method: str = "POST", headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    """One request without any client library: status, headers (in lower case), body."""
    connection = http.client.HTTPConnection(face.host, face.port, timeout=WAIT_SECONDS_MAX)
    try:
        connection.request(method, f"/?{query}", body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def rows(client: Client, table: str = "usage") -> int:
    count = client.command(f"SELECT count() FROM {table}")
    assert isinstance(count, int)
    return count


def test_every_statement_ends_as_on_the_engine_itself(client: Client, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.face_statements", str(tmp_path / "engine")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for over_http, on_engine in zip(outcomes(client), json.loads(done.stdout), strict=True):
        assert over_http == on_engine


@pytest.mark.parametrize("compression", [False, "lz4", "zstd", "gzip"])
def test_an_insert_is_one_block_in_every_compression(
    clickhouse: FaceProcess, unique_database: str, compression: bool | str
) -> None:
    client = clickhouse_connect.get_client(
        host=clickhouse.host, port=clickhouse.port, database=unique_database, compress=compression
    )
    client.command(f"CREATE TABLE usage (id UInt64, name String) {ENGINE}")
    # More rows than the client puts into one piece of its Native body.
    data = [(number, f"name-{number}" * 10) for number in range(60_000)]
    summary = client.insert("usage", data, column_names=["id", "name"])
    assert summary.written_rows == len(data)
    assert client.query("SELECT sum(id), uniqExact(name) FROM usage").first_row == (1_799_970_000, 60_000)
    parts = "SELECT count() FROM system.parts WHERE active AND database = currentDatabase() AND table = 'usage'"
    assert client.command(parts) == 1


def test_a_replayed_token_changes_nothing_in_the_table_and_its_views(client: Client) -> None:
    client.command(f"CREATE TABLE usage (id UInt64, tokens UInt64) {ENGINE}")
    client.command(
        "CREATE TABLE hourly (id UInt64, tokens UInt64) ENGINE = SummingMergeTree ORDER BY id "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    client.command("CREATE MATERIALIZED VIEW fold TO hourly AS SELECT id, sum(tokens) AS tokens FROM usage GROUP BY id")
    block = [(1, 10), (2, 20), (1, 5)]
    for _ in range(3):
        client.insert("usage", block, column_names=["id", "tokens"], settings=TOKEN)
    assert rows(client) == 3
    totals = "SELECT id, sum(tokens) FROM hourly GROUP BY id ORDER BY id"
    assert client.query(totals).result_rows == [(1, 15), (2, 20)]
    client.insert("usage", block, column_names=["id", "tokens"], settings={**TOKEN, "insert_deduplication_token": "2"})
    assert client.query(totals).result_rows == [(1, 30), (2, 40)]


@pytest.mark.parametrize(
    ("query", "status", "code", "name"),
    [
        ("SELECT+*+FROM+nowhere", 404, 60, "UNKNOWN_TABLE"),
        ("SELEC+1", 400, 62, "SYNTAX_ERROR"),
        ("SELECT+1;+SELECT+2", 400, 62, "SYNTAX_ERROR"),
        ("SELECT+1&database=nowhere", 404, 81, "UNKNOWN_DATABASE"),
        ("SELECT+1&no_such_setting=1", 404, 115, "UNKNOWN_SETTING"),
        ("SELECT+1&max_threads%3D1,readonly=1", 404, 115, "UNKNOWN_SETTING"),
        ("SELECT+toUInt8('x')", 400, 6, "CANNOT_PARSE_TEXT"),
        ("SELECT+throwIf(1)", 500, 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("SELECT+throwIf(1)+FORMAT+Native", 500, 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("SELECT+{missing:String}", 500, 456, "UNKNOWN_QUERY_PARAMETER"),
        ("SELECT+1&compress=1", 501, 48, "NOT_IMPLEMENTED"),
        ("SELECT+sleepEachRow(1)+FROM+numbers(9)&max_execution_time=1&max_block_size=1", 408, 159, "TIMEOUT_EXCEEDED"),
    ],
)
def test_an_error_has_its_status_code_and_text(
    clickhouse: FaceProcess, query: str, status: int, code: int, name: str
) -> None:
    found_status, headers, body = post(clickhouse, f"query={query}")
    assert body.startswith(f"Code: {code}. DB::Exception: ".encode()), body
    assert f"({name})".encode() in body
    assert headers["x-clickhouse-exception-code"] == str(code)
    assert found_status == status


def test_a_get_changes_nothing(clickhouse: FaceProcess, client: Client, unique_database: str) -> None:
    client.command(f"CREATE TABLE usage (id UInt64) {ENGINE}")
    status, headers, _body = post(clickhouse, f"database={unique_database}&query=DROP+TABLE+usage", method="GET")
    assert (status, headers["x-clickhouse-exception-code"]) == (500, "164")
    status, headers, body = post(clickhouse, "query=SELECT+41%2B1&query_id=mine", method="GET")
    assert (status, body) == (200, b"42\n")
    assert headers["x-clickhouse-format"] == "TabSeparated"
    assert headers["x-clickhouse-query-id"] == "mine"
    assert json.loads(headers["x-clickhouse-summary"])["result_rows"] == "1"
    assert post(clickhouse, "", method="GET")[2] == b"Ok.\n"


def test_an_insert_that_breaks_off_leaves_nothing(
    clickhouse: FaceProcess, client: Client, unique_database: str
) -> None:
    client.command(f"CREATE TABLE usage (id UInt64) {ENGINE}")
    native = client.raw_query("SELECT number AS id FROM numbers(100000)", fmt="Native")
    with pytest.raises(DatabaseError, match="CANNOT_READ_ALL_DATA"):
        client.raw_insert("usage", ["id"], native[:-5], fmt="Native")
    with pytest.raises(DatabaseError, match="CANNOT_DECOMPRESS"):
        client.raw_insert("usage", ["id"], native, fmt="Native", compression="zstd")
    head = f"POST /?database={unique_database}&query=INSERT+INTO+usage+FORMAT+Native HTTP/1.1\r\nHost: face\r\n"
    with socket.create_connection((clickhouse.host, clickhouse.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(native)}\r\n\r\n".encode() + native[: len(native) // 2])
    assert rows(client) == 0
    client.raw_insert("usage", ["id"], native, fmt="Native")
    assert rows(client) == 100_000


def test_what_goes_wrong_at_an_inserts_very_end_is_told(client: Client) -> None:
    """A view that throws, and a disk without room: the engine's own `finish` says nothing of either."""
    client.command("CREATE TABLE late (n UInt64) ENGINE = MergeTree ORDER BY n")
    client.command("CREATE TABLE seen (n UInt64) ENGINE = MergeTree ORDER BY n")
    client.command("CREATE MATERIALIZED VIEW feed TO seen AS SELECT n + throwIf(n = 7, 'seven') AS n FROM late")
    client.insert("late", [[1]], column_names=["n"])
    with pytest.raises(DatabaseError, match="seven"):
        client.insert("late", [[7]], column_names=["n"])
    client.insert("late", [[2]], column_names=["n"])
    client.command("ALTER TABLE seen MODIFY SETTING min_free_disk_ratio_to_perform_insert = 1")
    with pytest.raises(DatabaseError, match="NOT_ENOUGH_SPACE"):
        client.insert("late", [[3]], column_names=["n"])
    client.command("ALTER TABLE seen RESET SETTING min_free_disk_ratio_to_perform_insert")
    client.insert("late", [[4]], column_names=["n"])
    assert client.query("SELECT groupArray(n) FROM (SELECT n FROM seen ORDER BY n)").result_rows == [([1, 2, 4],)]


def test_inserts_that_fail_side_by_side_are_each_told(
    clickhouse: FaceProcess, client: Client, unique_database: str
) -> None:
    """The engine remembers one error of a kind: that of the insert that failed last."""
    client.command("CREATE TABLE full (n UInt64) ENGINE = MergeTree ORDER BY n")
    client.command("ALTER TABLE full MODIFY SETTING min_free_disk_ratio_to_perform_insert = 1")

    def failures(times: int) -> int:
        failed = 0
        with clickhouse.client(unique_database) as own:
            for number in range(times):
                with suppress(DatabaseError):
                    own.insert("full", [[number]], column_names=["n"])
                    continue
                failed += 1
        return failed

    with ThreadPoolExecutor(4) as several:
        assert list(several.map(failures, [100] * 4)) == [100] * 4
    assert client.query("SELECT count() FROM full").first_row == (0,)


def test_a_body_of_64_mb(client: Client) -> None:
    client.command(f"CREATE TABLE usage (id UInt64) {ENGINE}")
    native = client.raw_query("SELECT number AS id FROM numbers(8388608)", fmt="Native")
    assert len(native) > 64 << 20
    assert client.raw_insert("usage", ["id"], native, fmt="Native").written_rows == 8_388_608
    assert client.query("SELECT count(), sum(id) FROM usage").first_row == (8_388_608, 35_184_367_894_528)


def test_a_stream_that_nobody_reads_on_holds_up_nobody(clickhouse: FaceProcess, client: Client) -> None:
    client.command(f"CREATE TABLE usage (id UInt64) {ENGINE}")
    running = (
        "SELECT count() FROM system.processes WHERE query LIKE '%numbers(1000000000000)%' AND query NOT LIKE '%LIKE%'"
    )
    reader = http.client.HTTPConnection(clickhouse.host, clickhouse.port, timeout=WAIT_SECONDS_MAX)
    reader.request("POST", "/", b"SELECT number FROM numbers(1000000000000) FORMAT Native")
    response = reader.getresponse()
    assert len(response.read(1000)) == 1000
    client.insert("usage", [(1,)], column_names=["id"])
    assert rows(client) == 1
    assert client.command(running) == 1
    # Going away ends the query.
    response.close()
    reader.close()
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while client.command(running) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.command(running) == 0


def test_an_error_in_the_middle_of_a_stream_reaches_the_client(client: Client) -> None:
    sql = "SELECT number, throwIf(number = 5000000, 'halfway') FROM numbers(10000000)"
    with (
        pytest.raises(StreamFailureError, match="halfway") as caught,
        client.query_row_block_stream(sql, settings={"max_threads": 1}) as stream,
    ):
        for _block in stream:
            pass
    assert caught.value.code == 395


def test_many_clients_at_once(clickhouse: FaceProcess, client: Client, unique_database: str) -> None:
    client.command(f"CREATE TABLE usage (id UInt64, worker UInt8) {ENGINE}")
    failures: list[Exception] = []

    def work(worker: int) -> None:
        try:
            with clickhouse.client(unique_database) as mine:
                for number in range(20):
                    mine.insert("usage", [(number, worker)] * 50, column_names=["id", "worker"])
                    found = mine.query(
                        "SELECT count(), getSetting('max_block_size') FROM usage WHERE worker = {worker:UInt8}",
                        parameters={"worker": worker},
                        settings={"max_block_size": 1000 + worker},
                    )
                    assert found.first_row == ((number + 1) * 50, 1000 + worker)
        except (AssertionError, DatabaseError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert rows(client) == 6 * 20 * 50


def test_the_async_client(clickhouse: FaceProcess, unique_database: str) -> None:
    async def use() -> None:
        client = await clickhouse_connect.get_async_client(
            host=clickhouse.host, port=clickhouse.port, database=unique_database
        )
        await client.command(f"CREATE TABLE usage (id UInt64, name LowCardinality(String)) {ENGINE}")
        await client.insert("usage", [(number, "x") for number in range(1000)], column_names=["id", "name"])
        result = await client.query("SELECT sum(id), any(name) FROM usage WHERE id >= {least:UInt64}", {"least": 500})
        assert result.first_row == (374_750, "x")
        with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
            await client.query("SELECT * FROM nowhere")
        await client.close()

    asyncio.run(use())


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    face = FaceProcess(tmp_path)
    face.start()
    with face.client() as client:
        client.command(f"CREATE TABLE usage (id UInt64) {ENGINE}")
        for number in range(5):
            settings = {"insert_deduplication_token": str(number)}
            client.insert("usage", [(number,)] * 1000, column_names=["id"], settings=settings)
    face.kill()
    face.start()
    with face.client() as client:
        assert rows(client) == 5000
        # What it remembers of tokens survives too.
        client.insert("usage", [(4,)] * 1000, column_names=["id"], settings={"insert_deduplication_token": "4"})
        assert rows(client) == 5000
        other = FaceProcess(tmp_path)
        with pytest.raises(RuntimeError, match="another process may have it"):
            other.start()
        assert rows(client) == 5000
    face.stop()


def test_a_password_is_asked_for(tmp_path: Path) -> None:
    face = FaceProcess(tmp_path, {"TAXIMETER_CLICKHOUSE_PASSWORD": "gæheim"})
    face.start()
    try:
        client = clickhouse_connect.get_client(host=face.host, port=face.port, username="default", password="gæheim")
        assert client.command("SELECT 1") == 1
        client.close()
        basic = base64.b64encode(b"other:g\xc3\xa6heim").decode()
        for headers in ({}, {"X-ClickHouse-Key": "wrong"}, {"Authorization": f"Basic {basic}"}):
            status, found, body = post(face, "query=SELECT+1", headers=headers)
            assert (status, found["x-clickhouse-exception-code"]) == (403, "516")
            assert b"AUTHENTICATION_FAILED" in body
    finally:
        face.stop()
