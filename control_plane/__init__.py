"""The control plane: which tenant lives where, and moving tenants while they work."""
