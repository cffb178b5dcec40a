-- A mutation: enter at any isolation level. The snapshot may be older than the lock.
CREATE OR REPLACE FUNCTION cellwall.enter_tenant(wanted bigint, at_epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  fence record;
BEGIN
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
