"""Payments: what an order is charged, once, at a gateway outside of the fleet."""
