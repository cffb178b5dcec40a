"""A move whose hold took too long gives the tenant back for a while and keeps its copy."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_STATES = (
    "state IN ('planned', 'preparing', 'copying', 'catching_up', 'holding', 'frozen'{0}, 'switching', 'standby',"
    " 'returning', 'purging', 'done', 'aborting', 'restoring', 'cancelled', 'failed', 'rolled_back')"
)
_UNFINISHED = (
    "state IN ('aborting', 'catching_up', 'copying', 'frozen', 'holding', 'planned', 'preparing', 'purging',"
    " 'restoring', 'standby', 'switching'{0})"
)
_INDEX = "uq_moves_tenant_unfinished"


def upgrade() -> None:
    """Allow the state ``thawing``, of at most one unfinished move of a tenant as all others."""
    _allow(", 'thawing'")


def downgrade() -> None:
    """Forbid it. A move that is thawing must be let come out of it first: it is refused here otherwise."""
    _allow("")


def _allow(more: str) -> None:
    op.drop_constraint(op.f("ck_moves_state"), "moves")
    op.create_check_constraint(op.f("ck_moves_state"), "moves", _STATES.format(more))
    op.drop_index(_INDEX, "moves")
    op.create_index(_INDEX, "moves", ["tenant"], unique=True, postgresql_where=sa.text(_UNFINISHED.format(more)))
