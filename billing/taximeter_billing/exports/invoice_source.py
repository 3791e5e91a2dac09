"""An invoice as exports see it: its document, and what the book knows beside it. Pure."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_TURNS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that change the direction of what follows: in them an amount could be read from its end."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who sends the invoice; `address` may have several lines."""

    name: str = "Taximeter"
    address: str = ""
    tax_id: str = ""


@dataclass(frozen=True, slots=True)
class ExportedInvoice:
    """One invoice. `number` is None of a draft; `sha256` is the document's receipt."""

    document: Mapping[str, Any]
    status: str
    number: str | None
    sha256: str
    finalized_at: datetime | None
    issuer: Issuer
    canonical: str
    """The document's own bytes, as text: what the receipt is the hash of."""

    @property
    def reference(self) -> str:
        """The number, or of a draft TENANT/PERIOD."""
        return self.number or f"{self.tenant}/{self.document['period']['label']}"

    @property
    def tenant(self) -> str:
        """The tenant's id."""
        return str(self.document["tenant"]["id"])

    @property
    def customer(self) -> str:
        """The tenant's name, or its id, without characters that would turn or break the text around it."""
        return _TURNS.sub("", str(self.document["tenant"]["name"])) or self.tenant

    @property
    def currency(self) -> str:
        """Its currency code."""
        return str(self.document["currency"])


def from_document(
    document: str, status: str, number: str | None, sha256: str, finalized_at: datetime | None, issuer: Issuer
) -> ExportedInvoice:
    """An invoice from its canonical JSON."""
    return ExportedInvoice(json.loads(document), status, number, sha256, finalized_at, issuer, document)
