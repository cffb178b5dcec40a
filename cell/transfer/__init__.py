"""Moving tenants in and out of this cell, by the commands of contracts/transfer.py (moves.md rules 1 to 4 and 9).

A platform part: it finds tenant tables in the database's catalogue and imports no module of the product.
"""
