"""What a person is told when a part cannot be reached, a setting is wrong or a file cannot be used: one line, never a stack.

A command names the refusals of its own subject; this is what any of them may meet. What is not named here is a fault of ours
and stays loud.
"""

import socket
from collections.abc import Iterator

from confluent_kafka import KafkaException
from pydantic import ValidationError


def told(error: Exception) -> str | None:
    """The line for people, or None for what nobody expects."""
    if isinstance(error, ValidationError):
        return _setting(error)
    if isinstance(error, KafkaException):
        return f"Kafka does not answer (TAXIMETER_KAFKA_BOOTSTRAP_SERVERS): {error.args[0].str()}"
    package = type(error).__module__.partition(".")[0]
    if package == "sqlalchemy":
        return _book(error)
    if package == "clickhouse_connect":
        return f"ClickHouse does not answer (TAXIMETER_CLICKHOUSE_URL): {root_cause(error)}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def root_cause(error: BaseException) -> str:
    """What the system said at the bottom of an error ("Connection refused"), or the error's own first line."""
    for one in _chain(error):
        if isinstance(one, ConnectionError | TimeoutError | socket.gaierror) and one.strerror:
            return str(one.strerror)
    return (str(error).splitlines() or [type(error).__name__])[0]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _setting(error: ValidationError) -> str | None:
    if not error.title.endswith("Settings"):
        return None
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"TAXIMETER_{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']}" for fault in faults)


def _book(error: Exception) -> str | None:
    """Of the book: it cannot be reached, or its address is none. Anything else about SQL is a fault of ours."""
    if type(error).__name__ not in {"OperationalError", "ArgumentError", "NoSuchModuleError"}:
        return None
    said = str(getattr(error, "orig", None) or error)
    return f"the book cannot be opened (TAXIMETER_DATABASE_URL): {said.splitlines()[0]}"
