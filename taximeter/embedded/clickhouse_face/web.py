"""The HTTP side: routes, response headers, errors before and in the middle of an answer, and clients that go away."""

import asyncio
import json
import secrets
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from taximeter.embedded.clickhouse_face.bodies import spooled
from taximeter.embedded.clickhouse_face.engine import Engine, ResultPieces, Summary
from taximeter.embedded.clickhouse_face.failures import SYNTAX_ERROR, FaceError, refusal
from taximeter.embedded.clickhouse_face.requests import (
    Credentials,
    InsertRequest,
    QueryRequest,
    Request,
    authorize,
    read_statement,
)
from taximeter.embedded.clickhouse_face.statements import read_query

STATEMENTS_MAX = 32
"""So many statements run at once; more wait their turn."""

# The formats whose pieces, put behind each other, are one valid result.
_PIECEWISE = frozenset({"Native", "TabSeparated", "TSV", "CSV", "RowBinary", "JSONEachRow"})
_DISPLAY_NAME = "taximeter-embedded"

T = TypeVar("T")
Answer = tuple[str | None, bytes | ResultPieces, Summary]
"""The format (None when the statement has no result), the result, and what was read and written."""


class Face:
    """A ClickHouse server's HTTP interface over an engine."""

    def __init__(self, engine: Engine, credentials: Credentials) -> None:
        self._engine = engine
        self._credentials = credentials
        self._threads = ThreadPoolExecutor(STATEMENTS_MAX, thread_name_prefix="statement")

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/ping", self._ping),
            Route("/replicas_status", self._ping),
            Route("/", self._statement, methods=["GET", "POST"]),
        ]
        return Starlette(routes=routes)

    def close(self) -> None:
        """Wait for the statements that still run."""
        self._threads.shutdown(wait=True)

    async def _ping(self, _request: HttpRequest) -> Response:
        return PlainTextResponse("Ok.\n")

    async def _statement(self, http: HttpRequest) -> Response:
        if http.method != "POST" and "query" not in http.query_params:
            return await self._ping(http)
        query_id = http.query_params.get("query_id") or str(uuid.uuid4())
        try:
            body = await spooled(http.stream())
        except ClientDisconnect:
            return Response(status_code=499)
        request = Request(http.method, http.query_params, http.headers, body)
        try:
            answer = await self._in_thread(lambda: self._answer(request))
        except FaceError as error:
            return _failure(error, query_id)
        finally:
            body.close()
        return self._response(answer, query_id)

    def _answer(self, request: Request) -> Answer:
        authorize(request, self._credentials)
        statement = read_statement(request)
        if isinstance(statement, InsertRequest):
            insert = statement.insert
            summary = self._engine.insert(insert.sql, insert.data_format, statement.pieces, statement.session)
            return None, b"", summary
        return self._query(request, statement)

    def _query(self, request: Request, statement: QueryRequest) -> Answer:
        query = read_query(statement.sql)
        if query.statements > 1:
            raise refusal(SYNTAX_ERROR, "Syntax error (Multi-statements are not allowed)", "SYNTAX_ERROR")
        output = query.output_format or request.default_format
        if output in _PIECEWISE and query.selects and not query.totals and not request.waits:
            return output, self._engine.stream(statement.sql, output, statement.session), Summary()
        # The line of names tells an empty result from a statement that has none.
        result, summary = self._engine.query(statement.sql, output or "TabSeparatedWithNames", statement.session)
        if output is None and result:
            return "TabSeparated", result[result.index(b"\n") + 1 :], summary
        return output, result, summary

    def _response(self, answer: Answer, query_id: str) -> Response:
        output, result, summary = answer
        headers = _headers(query_id)
        if output is not None:
            headers["X-ClickHouse-Format"] = output
        media_type = "application/json" if output and output.startswith("JSON") else "application/octet-stream"
        if isinstance(result, ResultPieces):
            tag = headers["X-ClickHouse-Exception-Tag"] = secrets.token_hex(8)
            return StreamingResponse(self._pieces(result, tag), headers=headers, media_type=media_type)
        headers["X-ClickHouse-Summary"] = json.dumps({name: str(value) for name, value in asdict(summary).items()})
        return Response(result, headers=headers, media_type=media_type)

    async def _pieces(self, result: ResultPieces, tag: str) -> AsyncIterator[bytes]:
        try:
            while piece := await self._in_thread(result.next_piece):
                yield piece
        except FaceError as error:
            # The status has been sent; a server then ends the body with the error, between marks the client knows.
            text = f"{error}\n".encode()
            mark = tag.encode()
            yield b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (mark, text, len(text), mark)
        finally:
            # Not awaited: when the client went away this task is being cancelled, and the engine must still stop.
            self._threads.submit(result.close)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _headers(query_id: str) -> dict[str, str]:
    return {
        "X-ClickHouse-Query-Id": query_id,
        "X-ClickHouse-Server-Display-Name": _DISPLAY_NAME,
        "X-ClickHouse-Timezone": "UTC",
    }


def _failure(error: FaceError, query_id: str) -> Response:
    headers = {**_headers(query_id), "X-ClickHouse-Exception-Code": str(error.code)}
    return PlainTextResponse(f"{error}\n", error.status, headers)
