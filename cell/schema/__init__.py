"""The databases of a cell: roles, the directory, and one schema on every shard, by Alembic.

Revisions are named ``pre_`` (before the code that needs them: expand) or ``post_`` (after it: contract).
"""
