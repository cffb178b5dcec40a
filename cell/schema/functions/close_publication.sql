-- Drop the publication of a stream; nothing happens where there is none.
CREATE OR REPLACE FUNCTION cellwall.close_publication(named text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF named !~ '^cellwall_t[0-9]{1,18}_[a-z0-9]{1,24}_(out|back)$' THEN
    RAISE EXCEPTION '% is not a stream', named USING ERRCODE = 'invalid_parameter_value';
  END IF;
  EXECUTE format('DROP PUBLICATION IF EXISTS %I', named);
END
$$;
