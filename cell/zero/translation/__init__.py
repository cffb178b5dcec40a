"""The anti-corruption layer of cell zero: rows of the old shop to rows of ours and back, as pure functions.

A symmetric lens (Hofmann, Pierce and Wagner, "Symmetric lenses", 2011): each side holds what the other cannot say, so
each direction also takes the row that the other side had before, and takes from it whatever still says the same.

| Law | What it prevents |
|---|---|
| there and back changes no row of the old shop | a rollback that rewrites dates, prices and names in another spelling |
| back and there changes no row of ours | a second leaving that loses microseconds, versions and password hashes |
| what cannot be said is a `Fault` with its key and reason | a row that arrives as something else |
"""
