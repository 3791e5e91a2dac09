"""What operators do with the book, each in one call: from settings, on the real clock, published to the real log.

The command line and the launcher call these; the functions under them take the book, the time and the publisher as arguments.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from sqlalchemy import Engine, make_url

from taximeter_billing import keys
from taximeter_billing.book import ApiKeyRow, open_book
from taximeter_billing.declarations import Plan, apply_declarations, plan_file, read_file
from taximeter_billing.declarations.applying import Publish
from taximeter_billing.errors import LogAwayError, NotFoundError
from taximeter_billing.settings import BillingSettings
from taximeter_producers.control import publish
from taximeter_producers.errors import ControlError
from taximeter_schemas.control import ControlRecord

LOG_ANSWER_SECONDS_MAX = 5.0


@contextmanager
def opened(settings: BillingSettings) -> Iterator[Engine]:
    """The book of these settings, closed at the end. Raises NotFoundError where there is none yet: only applying makes one."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        raise NotFoundError(
            f"there is no book at {url.database} (TAXIMETER_DATABASE_URL): `taximeter apply` makes one; for a stack that runs, "
            "`source data/env.sh`"
        )
    with _opened_or_made(settings) as book:
        yield book


@contextmanager
def _opened_or_made(settings: BillingSettings) -> Iterator[Engine]:
    book = open_book(settings.database_url)
    try:
        yield book
    finally:
        book.dispose()


def publisher(settings: BillingSettings) -> Publish:
    """Publishes control records to the log of these settings, and waits for its acknowledgement. Raises ControlError."""

    def send(records: Iterable[ControlRecord]) -> int:
        return publish(settings.kafka_bootstrap_servers, records)

    return send


def require_log(settings: BillingSettings) -> None:
    """Ask whether the log of these settings answers. Raises LogAwayError.

    A person who waits is told so before anything is recorded: a key whose making is recorded and not published is lost with its
    secret.
    """
    if (why := _log_away(settings)) is not None:
        raise LogAwayError(f"{why}, so nothing was done")


def _log_away(settings: BillingSettings) -> str | None:
    """Why the log of these settings does not answer, or None."""
    servers = settings.kafka_bootstrap_servers
    try:
        AdminClient({"bootstrap.servers": servers, "log_level": 0}).list_topics(timeout=LOG_ANSWER_SECONDS_MAX)
    except KafkaException as error:
        return f"Kafka at {servers} does not answer (TAXIMETER_KAFKA_BOOTSTRAP_SERVERS): {error.args[0].str()}"
    return None


def plan_of_file(settings: BillingSettings, path: Path, *, prune: bool = False) -> Plan:
    """What applying the file would change. Raises DeclarationError or FrozenError."""
    with _opened_or_made(settings) as book:
        return plan_file(book, path, prune=prune)


def apply_file(settings: BillingSettings, path: Path, actor: str, *, prune: bool = False) -> Plan:
    """Bring the book to what the file declares and publish it; returns what was changed. Doing it again changes nothing.

    Raises DeclarationError, FrozenError or LogAwayError before anything is written, and ControlError when all is recorded but
    the log stopped answering: then the next apply, or the billing service, publishes it.
    """
    require_log(settings)
    with _opened_or_made(settings) as book:
        return apply_declarations(
            book, read_file(path), actor, datetime.now(UTC), publisher(settings), prune=prune
        ).plan


def create_key(settings: BillingSettings, tenant: str, actor: str) -> keys.CreatedKey:
    """Make an API key for a tenant. The secret is shown now and never again. Raises NotFoundError, LogAwayError, ControlError."""
    with opened(settings) as book:
        require_log(settings)
        return keys.create_key(book, tenant, actor, datetime.now(UTC), publisher(settings))


def list_keys(settings: BillingSettings) -> list[ApiKeyRow]:
    """All API keys, newest last, without their secrets."""
    with opened(settings) as book:
        return keys.list_keys(book)


def revoke_key(settings: BillingSettings, key_id: str, actor: str) -> None:
    """Disable an API key. Raises NotFoundError, and ControlError where it is recorded while the log is away: a key that leaked is
    not forgotten, and the billing service publishes it."""
    send = publisher(settings)

    def ask_and_send(records: Iterable[ControlRecord]) -> int:
        if (why := _log_away(settings)) is not None:
            raise ControlError(
                f"{why}; the billing service publishes it when it does, and so does the same command again"
            )
        return send(records)

    with opened(settings) as book:
        keys.revoke_key(book, key_id, actor, datetime.now(UTC), ask_and_send)
