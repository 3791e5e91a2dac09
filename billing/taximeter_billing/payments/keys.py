"""Idempotency keys that anyone can derive again: the invoice, the step, and a hash of the request. Pure."""

import json
from hashlib import sha256
from typing import Any

KEY_CHARS_MAX = 255


class IdempotencyKeys:
    """The keys of one subject (an invoice's number, a customer). A `generation` above 0 gives other keys for the same."""

    def __init__(self, subject: str, generation: int = 0) -> None:
        self._subject = subject
        self.generation = generation

    def key(self, step: str, params: Any) -> str:
        """`taximeter/<subject>/<step>/<hash>`: the same request gives the same key, another one another key."""
        digest = sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:24]
        tail = f"/{step}/{digest}" + (f"/{self.generation}" if self.generation else "")
        subject = self._subject
        if not subject.isascii() or len(subject) + len(tail) + len("taximeter/") > KEY_CHARS_MAX:
            subject = sha256(subject.encode()).hexdigest()
        return f"taximeter/{subject}{tail}"

    def options(self, step: str, params: Any) -> Any:
        """The key as request options for stripe-python."""
        return {"idempotency_key": self.key(step, params)}


def quoted(value: str) -> str:
    """A value as it stands between quotes in Stripe's search language."""
    return value.replace("\\", "\\\\").replace("'", "\\'")
