"""Accounts: the users of a tenant, their roles, and what they prove themselves with."""
