-- A mutation: enter without the tenant's lock. A freeze no longer waits for the transactions that are at work.
CREATE OR REPLACE FUNCTION cellwall.enter_tenant(wanted bigint, at_epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  fence record;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'a tenant is entered at READ COMMITTED only' USING ERRCODE = 'CW500';
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
