"""What tests of billing share: an empty warehouse, what billing reads from it, and an empty book."""

from collections.abc import Iterator

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from taximeter_billing.book import open_book
from taximeter_billing.warehouse import UsageReader
from taximeter_sql import connect, migrate
from tests.face_process import FaceProcess


@pytest.fixture
def warehouse(clickhouse: FaceProcess, unique_database: str) -> Iterator[Client]:
    """A database of its own with all tables, and nothing in them."""
    with connect(clickhouse.url(unique_database)) as client:
        migrate(client)
        yield client


@pytest.fixture
def reader(warehouse: Client) -> UsageReader:
    """Usage as billing reads it."""
    return UsageReader(warehouse)


@pytest.fixture
def book(book_url: str) -> Iterator[Engine]:
    """A book in which nothing is declared."""
    engine = open_book(book_url)
    yield engine
    engine.dispose()
