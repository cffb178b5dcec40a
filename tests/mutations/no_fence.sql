-- A mutation: the fence as a no-op. It still names the tenant to row-level security, and asks nothing: no lock, no
-- epoch, no state. With it in place the books must find lost or misplaced writes after a move.
CREATE OR REPLACE FUNCTION cellwall.enter_tenant(wanted bigint, at_epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM set_config('cellwall.tenant', wanted::text, true);
END
$$;
