-- What cell zero keeps in the monolith's own database, beside its tables and never inside them. Safe to repeat.
--
-- cellwall.tenants is the fence row in the very shape that a shard of a cell has, so that cell.transfer.fence works on
-- it unchanged. It is also the ambassador's durable frozen set: a tenant without a row, or in any state but `active`,
-- is refused. cellwall_zero holds what only cell zero has. Both are written in the same transactions as rows that are
-- applied backwards to the monolith's tables (moves.md rule 22).

CREATE SCHEMA IF NOT EXISTS cellwall;
CREATE SCHEMA IF NOT EXISTS cellwall_zero;

CREATE TABLE IF NOT EXISTS cellwall.tenants (
    tenant_id  bigint PRIMARY KEY,
    bucket     smallint NOT NULL,
    epoch      bigint NOT NULL,
    state      text NOT NULL,
    min_epoch  bigint NOT NULL DEFAULT 0,
    move       text NOT NULL DEFAULT '',
    term       bigint NOT NULL DEFAULT 0,
    seq        bigint NOT NULL DEFAULT 0,
    command    text NOT NULL DEFAULT '',
    result     jsonb,
    hint       text NOT NULL DEFAULT '',
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tenants_state_check
        CHECK (state IN ('importing', 'active', 'frozen', 'standby', 'moved', 'aborted', 'gone'))
);

-- Always empty: the shop is one database, whose buckets move nowhere.
CREATE TABLE IF NOT EXISTS cellwall.shard_fences (
    bucket    smallint NOT NULL,
    tenant_id bigint NOT NULL,
    state     text NOT NULL,
    PRIMARY KEY (bucket, tenant_id)
);

-- Which of the monolith's customers a tenant is. The row stays when the tenant has left.
CREATE TABLE IF NOT EXISTS cellwall_zero.customers (
    tenant_id bigint PRIMARY KEY,
    knr       integer NOT NULL UNIQUE
);

-- Every integer that was ever given to a row of ours, or the other way round; also of rows that are gone. It outlives
-- the tenant's stays here, so that no integer ever means a second row. product.old_keys is what travels of it.
CREATE TABLE IF NOT EXISTS cellwall_zero.keys (
    tenant_id bigint NOT NULL,
    kind      text NOT NULL,
    old_id    bigint NOT NULL,
    new_id    uuid NOT NULL,
    PRIMARY KEY (tenant_id, kind, old_id),
    UNIQUE (tenant_id, kind, new_id)
);

-- The monolith's rows as the tenant's copy was made from them, or as its return left them: what differs from these
-- while the tenant lives elsewhere was written behind the ambassador's back.
CREATE TABLE IF NOT EXISTS cellwall_zero.marks (
    tenant_id bigint NOT NULL,
    tab       text NOT NULL,
    key       text NOT NULL,
    digest    bytea NOT NULL,
    PRIMARY KEY (tenant_id, tab, key)
);

-- Such writes, once each: what the row became (null: it is gone). Nobody applies them; a person decides.
CREATE TABLE IF NOT EXISTS cellwall_zero.quarantine (
    tenant_id bigint NOT NULL,
    tab       text NOT NULL,
    key       text NOT NULL,
    digest    bytea NOT NULL,
    row       jsonb,
    found_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, tab, key, digest)
);

-- Tenants under preparation whose reads are also asked of a modern cell, as the tenant `rehearsal_id` there.
CREATE TABLE IF NOT EXISTS cellwall_zero.shadows (
    tenant_id    bigint PRIMARY KEY REFERENCES cellwall_zero.customers,
    cell         text   NOT NULL,
    rehearsal_id bigint NOT NULL,
    epoch        bigint NOT NULL
);
