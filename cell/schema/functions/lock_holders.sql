-- Who holds the tenant's lock, in either mode. A bigint key stands in pg_locks as its two halves with objsubid 1.
CREATE OR REPLACE FUNCTION cellwall.lock_holders(wanted bigint) RETURNS SETOF integer
LANGUAGE sql VOLATILE AS $$
  SELECT l.pid
  FROM pg_locks l
  WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    AND l.classid = ((wanted >> 32) & 4294967295)::oid AND l.objid = (wanted & 4294967295)::oid
    AND l.pid <> pg_backend_pid()
$$;
