"""Who asks: the tenant behind an API key, and nothing that the client says about itself. Pure."""

from dataclasses import dataclass
from hashlib import sha256

from taximeter_inference.gateway.errors import InvalidApiKeyError, TenantSuspendedError
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.tenants import ApiKey, Tenant, TenantStatus

_SCHEME = b"bearer "
KEY_BYTES_MAX = 512


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant, known by one of its keys."""

    tenant: Tenant
    key: ApiKey


def authenticate(authorization: bytes | None, snapshot: ControlSnapshot) -> Caller:
    """The caller behind an Authorization header.

    A key is looked up by its SHA-256, so the time that this takes says nothing about the keys there are. Raises
    InvalidApiKeyError, and TenantSuspendedError for a valid key of a suspended tenant.
    """
    header = authorization or b""
    secret = header[len(_SCHEME) :].strip() if header[: len(_SCHEME)].lower() == _SCHEME else b""
    digest = sha256(secret[:KEY_BYTES_MAX]).hexdigest()
    key = snapshot.api_keys.get(digest)
    tenant = snapshot.tenants.get(key.tenant) if key is not None else None
    if not secret or len(secret) > KEY_BYTES_MAX or key is None or key.disabled or tenant is None:
        raise InvalidApiKeyError
    if tenant.status is TenantStatus.SUSPENDED:
        raise TenantSuspendedError
    return Caller(tenant, key)
