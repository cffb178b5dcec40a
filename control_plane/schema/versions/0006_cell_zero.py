"""The way out of cell zero: who answers for it, and until when; and who stays, in the batch that empties it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


_ELSEWHERE = "ck_batch_moves_elsewhere"


def upgrade() -> None:
    """Create the table of programmes; let a batch name who stays where it is."""
    op.drop_constraint(op.f(_ELSEWHERE), "batch_moves")
    op.create_check_constraint(op.f(_ELSEWHERE), "batch_moves", "source <> target OR state = 'skipped'")
    op.create_table(
        "zero_programmes",
        sa.Column("cell", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("due", sa.Date()),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["cell"], ["cells.name"], name=op.f("fk_zero_programmes_cell")),
        sa.PrimaryKeyConstraint("cell", name=op.f("pk_zero_programmes")),
    )


def downgrade() -> None:
    """Drop it, and what only the wider rule allows."""
    op.execute("DELETE FROM batch_moves WHERE source = target")
    op.drop_constraint(op.f(_ELSEWHERE), "batch_moves")
    op.create_check_constraint(op.f(_ELSEWHERE), "batch_moves", "source <> target")
    op.drop_table("zero_programmes")
