"""Who may call: whoever holds the admin token, as a bearer token or, for a browser, as the password of HTTP Basic."""

import binascii
from base64 import b64decode
from hmac import compare_digest

from fastapi import HTTPException, Request


def authorize(request: Request, token: str) -> str:
    """The caller's name for the audit log. Raises HTTPException 401 for a missing or wrong token."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    name, given = "api", value.strip()
    if kind.lower() == "basic":
        name, given = _basic(value)
    if kind.lower() not in {"bearer", "basic"} or not compare_digest(given.encode(), token.encode()) or not token:
        raise HTTPException(401, "the admin token is missing or wrong", {"WWW-Authenticate": 'Basic realm="Taximeter"'})
    return f"api:{name}" if name != "api" else "api"


def _basic(value: str) -> tuple[str, str]:
    try:
        name, _, password = b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name[:100] or "api", password
