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

-- Which of the monolith's customers a tenant is. The row stays when the tenant has left.
CREATE TABLE IF NOT EXISTS cellwall_zero.customers (
    tenant_id bigint PRIMARY KEY,
    knr       integer NOT NULL UNIQUE
);
