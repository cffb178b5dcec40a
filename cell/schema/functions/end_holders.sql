-- End the transactions that hold the tenant's lock: their statement, or with `terminate` their connection (a holder
-- that is idle in its transaction has no statement to cancel). Answers whom it ended. A holder that the caller may not
-- end (a superuser's session) is left alone and does not protect the others. Naming and ending happen in one call, so
-- that a pooled backend has next to no time to be at work for somebody else by then.
CREATE OR REPLACE FUNCTION cellwall.end_holders(wanted bigint, terminate boolean) RETURNS integer[]
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  holder integer;
  ended integer[] := '{}';
BEGIN
  FOR holder IN SELECT h FROM cellwall.lock_holders(wanted) h LOOP
    BEGIN
      IF (CASE WHEN terminate THEN pg_terminate_backend(holder) ELSE pg_cancel_backend(holder) END) THEN
        ended := ended || holder;
      END IF;
    EXCEPTION WHEN insufficient_privilege THEN
      NULL;
    END;
  END LOOP;
  RETURN ended;
END
$$;
