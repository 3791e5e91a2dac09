"""The tables of the book. Amounts are pico-units kept as text: they outgrow 64 bits, and no database may round them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Boolean, DateTime, Integer, String, Text, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Pico(TypeDecorator[int]):
    """A whole number of any size, kept as text."""

    impl = String(64)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else str(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:
        """From the database."""
        return None if value is None else int(value)


class Instant(TypeDecorator[datetime]):
    """An aware time, kept in UTC. SQLite forgets the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database. A time without a zone is a mistake of ours."""
        assert value is None or value.tzinfo is not None, "a time without a zone"
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        if not isinstance(value, datetime):
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Root of the mapped classes."""

    type_annotation_map = {datetime: Instant, dict[str, Any]: JSON}  # noqa: RUF012 - SQLAlchemy's own form


class DeclaredRow(Base):
    """One version of one declared thing. A change is a new row; `body` None is a deletion."""

    __tablename__ = "declared"
    __table_args__ = (UniqueConstraint("kind", "key", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), index=True)
    key: Mapped[str] = mapped_column(String(200))
    version: Mapped[int] = mapped_column(Integer)
    body: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    recorded_at: Mapped[datetime]


class AuditRow(Base):
    """Who changed what, when, from what, to what. Nothing here is ever updated."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(32))
    kind: Mapped[str] = mapped_column(String(32))
    key: Mapped[str] = mapped_column(String(200))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class OutboxRow(Base):
    """A control record that the log has yet to acknowledge; written in the transaction of the change itself."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(primary_key=True)
    record: Mapped[str] = mapped_column(Text)


class ApiKeyRow(Base):
    """An API key: its hash, and the first letters by which people know it."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(128), index=True)
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)


class SeriesRow(Base):
    """The last number given out in a series; raised in the transaction that finalizes, so numbers have no gap."""

    __tablename__ = "series"

    name: Mapped[str] = mapped_column(String(12), primary_key=True)
    last: Mapped[int] = mapped_column(Integer)


class InvoiceRow(Base):
    """An invoice: one for each tenant and period, and one more (a revision) for each that was voided.

    `document` is its canonical JSON; a finalized one never changes, and a voided one keeps its number.
    """

    __tablename__ = "invoices"
    __table_args__ = (
        UniqueConstraint("tenant", "period", "revision", name="uq_invoices_tenant_period_revision"),
        UniqueConstraint("number", name="uq_invoices_number"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(128), index=True)
    period: Mapped[str] = mapped_column(String(16), index=True)
    status: Mapped[str] = mapped_column(String(16))
    number: Mapped[str | None] = mapped_column(String(40))
    currency: Mapped[str] = mapped_column(String(3))
    list_pico: Mapped[int] = mapped_column(Pico)
    savings_pico: Mapped[int] = mapped_column(Pico)
    net_pico: Mapped[int] = mapped_column(Pico)
    total_minor: Mapped[int] = mapped_column(Pico)
    document: Mapped[str] = mapped_column(Text)
    document_sha256: Mapped[str] = mapped_column(String(64))
    drafted_at: Mapped[datetime]
    revision: Mapped[int] = mapped_column(Integer, default=1)
    adjustments_pico: Mapped[int] = mapped_column(Pico, default=0)
    inputs_sha256: Mapped[str] = mapped_column(String(64), default="")
    declared_through: Mapped[int] = mapped_column(Integer, default=0)
    reviewed_at: Mapped[datetime | None]
    reviewed_by: Mapped[str | None] = mapped_column(String(200))
    voided_at: Mapped[datetime | None]
    void_reason: Mapped[str | None] = mapped_column(Text)
    finalized_at: Mapped[datetime | None]
    stripe_invoice_id: Mapped[str | None] = mapped_column(String(64))
    stripe_status: Mapped[str | None] = mapped_column(String(32))


class CreditNoteRow(Base):
    """A sum given back on a finalized invoice. A draft until the period it was found in is finalized; then it has a number."""

    __tablename__ = "credit_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str | None] = mapped_column(String(40), unique=True)
    status: Mapped[str] = mapped_column(String(16))
    tenant: Mapped[str] = mapped_column(String(128), index=True)
    period: Mapped[str] = mapped_column(String(16), index=True)
    invoice: Mapped[str] = mapped_column(String(40), index=True)
    reason: Mapped[str] = mapped_column(Text)
    currency: Mapped[str] = mapped_column(String(3))
    net_pico: Mapped[int] = mapped_column(Pico)
    total_minor: Mapped[int] = mapped_column(Pico)
    document: Mapped[str] = mapped_column(Text)
    document_sha256: Mapped[str] = mapped_column(String(64))
    drafted_at: Mapped[datetime]
    issued_at: Mapped[datetime | None]
    stripe_credit_note_id: Mapped[str | None] = mapped_column(String(64))


class CreditEntryRow(Base):
    """One entry of the credit ledger. Entries are only ever added, and those of one transaction sum to zero.

    Accounts: "grant:ID" (what is left of a grant), "source:KIND" (where granted sums come from), "invoice:NUMBER" (what was
    paid), "expired".
    """

    __tablename__ = "credit_ledger"
    __table_args__ = (UniqueConstraint("transaction", "account", name="uq_credit_ledger_transaction_account"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    transaction: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime]
    tenant: Mapped[str] = mapped_column(String(128), index=True)
    currency: Mapped[str] = mapped_column(String(3))
    account: Mapped[str] = mapped_column(String(200), index=True)
    amount_pico: Mapped[int] = mapped_column(Pico)


class ParkedRow(Base):
    """A tenant whose period cannot be invoiced until something agrees again, and why."""

    __tablename__ = "parked"

    tenant: Mapped[str] = mapped_column(String(128), primary_key=True)
    period: Mapped[str] = mapped_column(String(16), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    parked_at: Mapped[datetime]


class FindingRow(Base):
    """What reconciliation found about a tenant. While one stands that nobody waived, the tenant is parked."""

    __tablename__ = "reconcile_findings"

    tenant: Mapped[str] = mapped_column(String(128), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    finding: Mapped[str] = mapped_column(Text)
    found_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    waived_at: Mapped[datetime | None]
    waived_by: Mapped[str | None] = mapped_column(String(200))
    waived_because: Mapped[str | None] = mapped_column(Text)


class StripeEventRow(Base):
    """A webhook that Stripe delivered: noted before it is answered, by its id once, and handled after."""

    __tablename__ = "stripe_events"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    kind: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[datetime]
    received_at: Mapped[datetime]
    invoice_id: Mapped[str | None] = mapped_column(String(255))
    payment_intent: Mapped[str | None] = mapped_column(String(255))
    handled_at: Mapped[datetime | None] = mapped_column(index=True)
    outcome: Mapped[str] = mapped_column(Text, default="")
    tries: Mapped[int] = mapped_column(Integer, default=0)
    retry_at: Mapped[datetime]


class PaymentRow(Base):
    """How an invoice stood at Stripe when it was asked last. `seen` counts the looks, so that an older one cannot win."""

    __tablename__ = "payments"

    stripe_invoice_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    number: Mapped[str] = mapped_column(String(40), index=True)
    status: Mapped[str] = mapped_column(String(16))
    paid_minor: Mapped[int] = mapped_column(Pico)
    remaining_minor: Mapped[int] = mapped_column(Pico)
    credited_minor: Mapped[int] = mapped_column(Pico)
    attempts: Mapped[int] = mapped_column(Integer)
    disputes: Mapped[str] = mapped_column(Text)
    seen: Mapped[int] = mapped_column(Integer)
    checked_at: Mapped[datetime]
