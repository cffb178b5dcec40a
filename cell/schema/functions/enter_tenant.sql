-- The fence. Every transaction on a tenant's rows begins with it, as a statement of its own before any read: the
-- statement's own snapshot is older than the lock, the snapshots of what follows are not (READ COMMITTED, asserted).
-- Refuses by SQLSTATE: CW421 not ours (DETAIL: the signed new route, if known; HINT: 'unknown' where there is no row,
-- as at a shard that its bucket has left), CW503 frozen (DETAIL: 'busy' where only the lock was not to be had; 'moving'
-- while its bucket moves between shards of this cell), CW308 it lives on another shard of this cell, CW500 wrong
-- isolation level. Whoever moves a bucket first commits the bucket's fence, then passes through the lock of each of its
-- tenants: who is in here by then either has seen that fence or is waited for.
CREATE OR REPLACE FUNCTION cellwall.enter_tenant(wanted bigint, at_epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  fence record;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'a tenant is entered at READ COMMITTED only' USING ERRCODE = 'CW500';
  END IF;
  -- A try, not a wait: no pooled connection stands in line behind a freeze.
  IF NOT pg_try_advisory_xact_lock_shared(wanted) THEN
    RAISE EXCEPTION 'tenant % is busy', wanted USING ERRCODE = 'CW503', DETAIL = 'busy';
  END IF;
  SELECT t.state, t.epoch, t.hint, f.state AS shard INTO fence
  FROM cellwall.tenants t
  LEFT JOIN LATERAL (
    SELECT s.state FROM cellwall.shard_fences s
    WHERE s.bucket = t.bucket AND s.tenant_id IN (0, wanted) ORDER BY s.tenant_id DESC LIMIT 1
  ) f ON true
  WHERE t.tenant_id = wanted;
  IF fence.shard IN ('frozen', 'arriving') THEN
    RAISE EXCEPTION 'the bucket of tenant % is moving', wanted USING ERRCODE = 'CW503', DETAIL = 'moving';
  END IF;
  IF fence.shard = 'away' THEN
    RAISE EXCEPTION 'tenant % lives on another shard', wanted USING ERRCODE = 'CW308';
  END IF;
  IF fence.state = 'frozen' THEN
    RAISE EXCEPTION 'tenant % is frozen', wanted USING ERRCODE = 'CW503', DETAIL = 'frozen';
  END IF;
  IF fence.state IS DISTINCT FROM 'active' OR (at_epoch <> 0 AND at_epoch <> fence.epoch) THEN
    RAISE EXCEPTION 'tenant % is not ours at epoch %', wanted, at_epoch
      USING ERRCODE = 'CW421', DETAIL = coalesce(fence.hint, ''),
        HINT = CASE WHEN fence.state IS NULL THEN 'unknown' ELSE '' END;
  END IF;
  PERFORM set_config('cellwall.tenant', wanted::text, true);
END
$$;
