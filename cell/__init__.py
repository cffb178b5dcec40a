"""A cell: a whole copy of the product with its own shards, cache, API and worker."""
