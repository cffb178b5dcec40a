-- The fence. Every transaction on a tenant's rows begins with it, as a statement of its own before any read: the
-- statement's own snapshot is older than the lock, the snapshots of what follows are not (READ COMMITTED, asserted).
-- Refuses by SQLSTATE: CW421 not ours (DETAIL: the signed new route, if known), CW503 frozen (DETAIL: 'busy' where only
-- the lock was not to be had), CW500 wrong isolation level.
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
  SELECT t.state, t.epoch, t.hint INTO fence FROM cellwall.tenants t WHERE t.tenant_id = wanted;
  IF fence.state = 'frozen' THEN
    RAISE EXCEPTION 'tenant % is frozen', wanted USING ERRCODE = 'CW503', DETAIL = 'frozen';
  END IF;
  IF fence.state IS DISTINCT FROM 'active' OR (at_epoch <> 0 AND at_epoch <> fence.epoch) THEN
    RAISE EXCEPTION 'tenant % is not ours at epoch %', wanted, at_epoch
      USING ERRCODE = 'CW421', DETAIL = coalesce(fence.hint, '');
  END IF;
  PERFORM set_config('cellwall.tenant', wanted::text, true);
END
$$;
