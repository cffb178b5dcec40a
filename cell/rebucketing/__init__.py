"""Buckets, and tenants with a shard of their own, moved between the shards of one cell (docs/shards.md, ADR 0024)."""
