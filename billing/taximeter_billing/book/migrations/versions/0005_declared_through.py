"""Up to which declaration an invoice was computed: clocks need not agree for it to be derived again."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; 0 on older invoices, which go by the time they were drafted."""
    op.add_column("invoices", sa.Column("declared_through", sa.Integer(), nullable=False, server_default="0"))
