-- What every command of the transfer API does before it looks at a tenant's row: nobody gives the bucket to another
-- shard before this transaction ends. The bucket's lock stands below zero, where no tenant is. Refuses by SQLSTATE:
-- CW503 while the bucket (or this one tenant) is moving between shards, CW308 where it lives on another shard.
CREATE OR REPLACE FUNCTION cellwall.hold_bucket(wanted bigint, of_bucket integer) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  found text;
BEGIN
  IF NOT pg_try_advisory_xact_lock_shared(-1 - of_bucket::bigint) THEN
    RAISE EXCEPTION 'bucket % is moving', of_bucket USING ERRCODE = 'CW503', DETAIL = 'moving';
  END IF;
  SELECT s.state INTO found FROM cellwall.shard_fences s
  WHERE s.bucket = of_bucket AND s.tenant_id IN (0, wanted) ORDER BY s.tenant_id DESC LIMIT 1;
  IF found IN ('frozen', 'arriving') THEN
    RAISE EXCEPTION 'bucket % is moving', of_bucket USING ERRCODE = 'CW503', DETAIL = 'moving';
  END IF;
  IF found = 'away' THEN
    RAISE EXCEPTION 'bucket % lives on another shard', of_bucket USING ERRCODE = 'CW308';
  END IF;
END
$$;
