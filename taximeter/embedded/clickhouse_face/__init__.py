"""ClickHouse's engine in process (chDB) behind the HTTP interface of a ClickHouse server.

A chDB directory belongs to one process at a time; this is that process, and every client reaches it as it would reach a
server. Sessions (`session_id`), external tables and ClickHouse's own block compression (`compress`, `decompress`) are
not there; everything that `clickhouse_connect` sends otherwise is.
"""
