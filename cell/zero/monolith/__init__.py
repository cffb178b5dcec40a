"""The old shop: one process, one database, twenty years of both. It knows nothing of cells and imports nothing of ours.

It stands for the monolith that a platform team has. Its manners are kept on purpose: German file names for URLs, a
cookie session in the database, form posts without any key against doubles, 200 for a login that failed.
"""
