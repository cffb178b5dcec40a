"""Tenants on shards: the bucket map, pools, the fence and tenant sessions. A platform part: imports no module."""
