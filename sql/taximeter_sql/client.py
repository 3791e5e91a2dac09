"""Connects to ClickHouse: a server, a cluster's node, or the embedded engine behind the same HTTP interface."""

import socket
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

CONNECT_SECONDS_MAX = 10
QUERY_SECONDS_MAX = 300


class WarehouseError(ConnectionError):
    """ClickHouse cannot be reached, or refused the connection."""


def connect(url: str) -> Client:
    """A client for "http://user:password@host:port/database"; creates the database when it is missing. Raises WarehouseError."""
    parts = urlsplit(url)
    database = parts.path.strip("/") or "default"
    try:
        with _client(url, "default") as client:
            client.command("CREATE DATABASE IF NOT EXISTS {database:Identifier}", parameters={"database": database})
        return _client(url, database)
    except (ClickHouseError, OSError) as error:
        raise WarehouseError(f"ClickHouse at {parts.hostname}:{parts.port} does not answer: {_said(error)}") from error


def _said(error: BaseException) -> str:
    """What the system said at the bottom of the client's error ("Connection refused"), or the error's own text."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, ConnectionError | TimeoutError | socket.gaierror) and one.strerror:
            return str(one.strerror)
        one = one.__cause__ or one.__context__
    return str(error)


def _client(url: str, database: str) -> Client:
    parts = urlsplit(url)
    return clickhouse_connect.get_client(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or (8443 if parts.scheme == "https" else 8123),
        interface=parts.scheme,
        username=parts.username or "default",
        password=parts.password or "",
        database=database,
        connect_timeout=CONNECT_SECONDS_MAX,
        send_receive_timeout=QUERY_SECONDS_MAX,
        autogenerate_session_id=False,
    )
