"""Cache isolation: salts and block hashes per cache pool, derived from a secret. Pure.

Two tenants share cached blocks only when they are in one pool, for the salt is an HMAC of the pool. A client's own salt can
only split its pool further: it goes into the HMAC beside the pool, so no client can reach another's salt.
"""

import hmac
from base64 import urlsafe_b64encode
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

    def salt(self, pool: str, client_salt: str | None = None) -> str:
        """The cache salt of a pool (43 characters, base64url), or of the part of it that a client asked for."""
        salt, part_key, _ = self._of_pool(pool)
        return salt if client_salt is None else _text(hmac.digest(part_key, client_salt.encode(), "sha256"))

    def block_hash(self, pool: str, block: bytes) -> str:
        """The name of a cache block in events: the same within a pool, unrelated across pools."""
        return hmac.digest(self._of_pool(pool)[2], block, "sha256").hex()[:BLOCK_HASH_CHARACTERS]

    def _derive(self, pool: str) -> tuple[str, bytes, bytes]:
        def of(purpose: str) -> bytes:
            return hmac.digest(self._secret, f"{purpose}\n{self._key_id}\n{pool}".encode(), "sha256")

        return _text(of("salt")), of("part"), of("block")


def _text(digest: bytes) -> str:
    return urlsafe_b64encode(digest).rstrip(b"=").decode()
