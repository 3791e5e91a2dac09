"""Cache isolation: salts and block hashes per cache pool, derived from a secret. Pure.

Two tenants share cached blocks only when they are in one pool, for the salt is an HMAC of the pool. A client's own salt can
only split its pool further: it goes into the HMAC beside the pool, so no client can reach another's salt.
"""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable
from functools import lru_cache

STRIPPED_FIELDS = ("cache_salt", "priority", "kv_transfer_params")
"""What a client may not say to the model server: whose cache, before whom, and from where."""
BLOCK_HASH_CHARACTERS = 32


class PoolKeys:
    """Derives what belongs to a pool. `key_id` names the secret, so that a rotated secret gives other salts."""

    def __init__(self, secret: bytes, key_id: str) -> None:
        self._secret = secret
        self._key_id = key_id
        self._of_pool = lru_cache(maxsize=10_000)(self._derive)
        self.pool_salt: Callable[[str], str] = lru_cache(maxsize=10_000)(self.salt)
        """The cache salt of a pool, without a call of Python once it is known."""

    def salt(self, pool: str, client_salt: str | None = None) -> str:
        """The cache salt of a pool (43 characters, base64url), or of the part of it that a client asked for."""
        salt, parts, _ = self._of_pool(pool)
        return salt if client_salt is None else _text(_over(parts, client_salt.encode()).digest())

    def block_hash(self, pool: str, block: bytes) -> str:
        """The name of a cache block in events: the same within a pool, unrelated across pools."""
        return _over(self._of_pool(pool)[2], block).hexdigest()[:BLOCK_HASH_CHARACTERS]

    def _derive(self, pool: str) -> tuple[str, hmac.HMAC, hmac.HMAC]:
        def of(purpose: str) -> bytes:
            return hmac.digest(self._secret, f"{purpose}\n{self._key_id}\n{pool}".encode(), "sha256")

        return _text(of("salt")), hmac.new(of("part"), digestmod="sha256"), hmac.new(of("block"), digestmod="sha256")


def _over(keyed: hmac.HMAC, message: bytes) -> hmac.HMAC:
    # A copy of a keyed state costs 2 us, a new HMAC twenty times that; a long prompt has hundreds of blocks.
    state = keyed.copy()
    state.update(message)
    return state


def _text(digest: bytes) -> str:
    return urlsafe_b64encode(digest).rstrip(b"=").decode()
