"""Inventory: how many units of a product a merchant has, and which of them are promised to orders."""
