"""Catalog: what a merchant sells, at which price, and how many units of it were sold."""
