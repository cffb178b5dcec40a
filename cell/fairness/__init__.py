"""Fairness among the tenants of a cell: levels, queues, seats, limits. A platform part: it imports no module."""
