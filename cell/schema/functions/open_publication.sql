-- The publication of one tenant's rows, made anew, for a stream of its changes. The transfer role owns no table, so the
-- owner of the schema does it here, for names and filters of this form only. The filter uses a column of every key:
-- whatever an UPDATE or DELETE says of a row, it says its tenant. Wrapped keys are a cell's own and do not travel so.
CREATE OR REPLACE FUNCTION cellwall.open_publication(named text, wanted bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tables text;
BEGIN
  IF named !~ ('^cellwall_t' || wanted || '_[a-z0-9]{1,24}_(out|back)$') THEN
    RAISE EXCEPTION '% is not a stream of tenant %', named, wanted USING ERRCODE = 'invalid_parameter_value';
  END IF;
  SELECT string_agg(format('%I.%I WHERE (tenant_id = %s)', n.nspname, c.relname, wanted), ', ' ORDER BY c.oid)
  INTO STRICT tables
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind = 'r' AND c.relrowsecurity AND c.relforcerowsecurity
    AND (n.nspname, c.relname) <> ('cellwall', 'tenant_keys');
  EXECUTE format('DROP PUBLICATION IF EXISTS %I', named);
  EXECUTE format('CREATE PUBLICATION %I FOR TABLE %s', named, tables);
END
$$;
