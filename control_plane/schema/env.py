"""Alembic's entry: migrates the connection that `control_plane.schema.upgrade` hands over."""

import sqlalchemy as sa
from alembic import context

from control_plane.models import metadata
from control_plane.schema import LOCK_TIMEOUT_MS

connection: sa.Connection = context.config.attributes["connection"]
connection.execute(sa.text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('cellwall control_plane schema'))"))
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
