-- A mutation: a tenant table without row-level security. What keeps tenants apart is the WHERE clause alone.
ALTER TABLE cellwall.counters NO FORCE ROW LEVEL SECURITY;
ALTER TABLE cellwall.counters DISABLE ROW LEVEL SECURITY;
