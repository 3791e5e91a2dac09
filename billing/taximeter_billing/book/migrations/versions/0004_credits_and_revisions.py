"""Credits as a ledger, credit notes, and revisions of voided invoices."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from taximeter_billing.book.tables import Pico

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NAMES = {"uq": "uq_%(table_name)s_%(column_0_name)s"}


def upgrade() -> None:
    """Create the tables; one invoice a tenant and period becomes one for each revision."""
    op.create_table(
        "credit_ledger",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("transaction", sa.String(length=200), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("amount_pico", Pico(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("transaction", "account", name="uq_credit_ledger_transaction_account"),
    )
    op.create_index(op.f("ix_credit_ledger_account"), "credit_ledger", ["account"], unique=False)
    op.create_index(op.f("ix_credit_ledger_tenant"), "credit_ledger", ["tenant"], unique=False)
    op.create_table(
        "credit_notes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.String(length=40), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("invoice", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("net_pico", Pico(length=64), nullable=False),
        sa.Column("total_minor", Pico(length=64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("document_sha256", sa.String(length=64), nullable=False),
        sa.Column("drafted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stripe_credit_note_id", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("number"),
    )
    for column in ("invoice", "period", "tenant"):
        op.create_index(op.f(f"ix_credit_notes_{column}"), "credit_notes", [column], unique=False)
    _revise_invoices()


def _revise_invoices() -> None:
    new: tuple[sa.Column[Any], ...] = (
        sa.Column("revision", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("adjustments_pico", Pico(length=64), nullable=False, server_default="0"),
        sa.Column("inputs_sha256", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("reviewed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reviewed_by", sa.String(length=200), nullable=True),
        sa.Column("voided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("void_reason", sa.Text(), nullable=True),
    )
    # The first migration left naming the constraints to the database: Postgres has names, SQLite has none, and gets the same
    # ones here while the table is copied.
    if op.get_bind().dialect.name == "postgresql":
        for column in new:
            op.add_column("invoices", column)
        op.drop_constraint("invoices_tenant_period_key", "invoices", type_="unique")
        op.drop_constraint("invoices_number_key", "invoices", type_="unique")
        op.create_unique_constraint("uq_invoices_number", "invoices", ["number"])
        op.create_unique_constraint("uq_invoices_tenant_period_revision", "invoices", ["tenant", "period", "revision"])
        return
    with op.batch_alter_table("invoices", naming_convention=_NAMES) as batch:
        for column in new:
            batch.add_column(column)
        batch.drop_constraint("uq_invoices_tenant", type_="unique")
        batch.drop_constraint("uq_invoices_number", type_="unique")
        batch.create_unique_constraint("uq_invoices_number", ["number"])
        batch.create_unique_constraint("uq_invoices_tenant_period_revision", ["tenant", "period", "revision"])
