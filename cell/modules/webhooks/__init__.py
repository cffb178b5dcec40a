"""Webhooks: a merchant's own servers are told what happened to its orders, signed and until they have it."""
