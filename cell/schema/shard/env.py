"""Alembic's entry for a shard. The caller hands a connection over: `cell.schema.migrate`."""

from alembic import context

from cell.schema.migrate import run_revisions

run_revisions(context, version_schema="cellwall")
