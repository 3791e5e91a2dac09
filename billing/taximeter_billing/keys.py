"""API keys: made, listed, revoked. A key is shown once; the book and the log know its SHA-256 only."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import ApiKeyRow, writing
from taximeter_billing.declarations.applying import Publish, current, record_change, send_outbox
from taximeter_billing.declarations.plan import Change
from taximeter_billing.errors import NotFoundError
from taximeter_schemas.control import ControlKind
from taximeter_schemas.tenants import ApiKey

_PREFIX = "tk_"


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key: its id, and the secret that is never shown again."""

    id: str
    tenant: str
    secret: str


def create_key(book: Engine, tenant: str, actor: str, now: datetime, publish: Publish) -> CreatedKey:
    """Make a key for a tenant. Raises NotFoundError when there is no such tenant."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    digest = sha256(secret.encode()).hexdigest()
    key_id = f"key-{secrets.token_hex(6)}"
    with writing(book) as session:
        if (ControlKind.TENANT, tenant) not in current(session):
            raise NotFoundError(f"no tenant is called {tenant!r}; declare it and run `taximeter apply`")
        session.add(
            ApiKeyRow(id=key_id, tenant=tenant, key_sha256=digest, hint=secret[:8], created_at=now, disabled=False)
        )
        body = ApiKey(id=key_id, tenant=tenant, key_sha256=digest).model_dump(mode="json")
        record_change(session, Change("create", ControlKind.API_KEY, digest, None, body), actor, now)
    send_outbox(book, publish)
    return CreatedKey(key_id, tenant, secret)


def list_keys(book: Engine) -> list[ApiKeyRow]:
    """All keys, newest last; without their secrets, which nobody has."""
    with Session(book, expire_on_commit=False) as session:
        return list(session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at)))


def revoke_key(book: Engine, key_id: str, actor: str, now: datetime, publish: Publish) -> None:
    """Disable a key; gateways refuse it within seconds. Raises NotFoundError.

    Revoking it again changes nothing, and publishes what could not be published before.
    """
    with writing(book) as session:
        row = session.get(ApiKeyRow, key_id)
        if row is None:
            raise NotFoundError(f"no key is called {key_id!r}")
        if not row.disabled:
            row.disabled = True
            body = ApiKey(id=row.id, tenant=row.tenant, key_sha256=row.key_sha256).model_dump(mode="json")
            change = Change("change", ControlKind.API_KEY, row.key_sha256, body, {**body, "disabled": True})
            record_change(session, change, actor, now)
    send_outbox(book, publish)
