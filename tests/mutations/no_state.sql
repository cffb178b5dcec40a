-- A mutation: enter without asking for the state. A tenant that is frozen, or lives elsewhere, is served.
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
  PERFORM set_config('cellwall.tenant', wanted::text, true);
END
$$;
