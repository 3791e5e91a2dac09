"""Taximeter's warehouse in ClickHouse: migrations, and the named queries that services and finance run."""

from taximeter_sql.client import WarehouseError, connect
from taximeter_sql.migrations import migrate
from taximeter_sql.queries import query, query_names

__all__ = ["WarehouseError", "connect", "migrate", "query", "query_names"]
