-- End the transactions that hold the tenant's lock: their statement, or with `terminate` their connection (a holder
-- that is idle in its transaction has no statement to cancel). Naming and ending happen in one statement, so that a
-- pooled backend has next to no time to be at work for somebody else by then.
CREATE OR REPLACE FUNCTION cellwall.end_holders(wanted bigint, terminate boolean) RETURNS integer[]
LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(array_agg(h), '{}')
  FROM cellwall.lock_holders(wanted) h
  WHERE CASE WHEN terminate THEN pg_terminate_backend(h) ELSE pg_cancel_backend(h) END
$$;
