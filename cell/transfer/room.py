"""How many more streams of changes a shard's database server takes: a large move needs a place at both of its ends.

A sender's stream is a replication slot with a process of the server that reads it; a receiver's stream is a replication
origin. Both are counted over the whole server, whoever made them.
"""

from typing import Any, Final

from contracts.transfer import StreamRoom

# Before PostgreSQL 18 the number of slots bounds that of origins, too.
_ROOM: Final = """
SELECT least(current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int) AS slots_max,
  greatest((SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication))::int AS slots,
  coalesce(current_setting('max_active_replication_origins', true),
    current_setting('max_replication_slots'))::int AS origins_max,
  (SELECT count(*) FROM pg_replication_origin)::int AS origins
"""


async def room(connection: Any, shard: str) -> StreamRoom:
    """What the server of the connection has left."""
    found = await connection.fetchrow(_ROOM)
    return StreamRoom(shard, found["slots"], found["slots_max"], found["origins"], found["origins_max"])
