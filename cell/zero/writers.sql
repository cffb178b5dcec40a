-- Refuses writes to rows of a tenant that the monolith does not own just now, whoever makes them. The owner of our schemas
-- runs it, so that the monolith's role needs no rights of ours. `shop.applying` lets an import through.
CREATE OR REPLACE FUNCTION cellwall_zero.refuse_foreign_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  written jsonb;
  customer integer;
  found_state text;
BEGIN
  IF current_setting('cellwall_zero.applying', true) = 'on' THEN
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
  END IF;
  FOREACH written IN ARRAY CASE TG_OP
    WHEN 'INSERT' THEN ARRAY[to_jsonb(NEW)]
    WHEN 'DELETE' THEN ARRAY[to_jsonb(OLD)]
    ELSE ARRAY[to_jsonb(OLD), to_jsonb(NEW)] END
  LOOP
    customer := CASE TG_TABLE_NAME
      WHEN 'aufp' THEN (SELECT a.knr FROM public.aufk a WHERE a.anr = (written->>'anr')::integer)
      WHEN 'sess' THEN (SELECT b.knr FROM public.ben b WHERE b.bnr = (written->>'bnr')::integer)
      ELSE (written->>'knr')::integer END;
    SELECT t.state INTO found_state FROM cellwall_zero.customers c JOIN cellwall.tenants t USING (tenant_id)
      WHERE c.knr = customer;
    IF found_state <> 'active' THEN
      RAISE EXCEPTION 'customer % is % here: a modern cell owns its rows', customer, found_state
        USING ERRCODE = 'CW421', HINT = 'Leave out customers who have moved; see cellwall_zero.customers.';
    END IF;
  END LOOP;
  RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END
$$;
