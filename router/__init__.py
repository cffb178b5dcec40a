"""The thin stateless router: one tenant's request in, the one cell that owns it out."""
