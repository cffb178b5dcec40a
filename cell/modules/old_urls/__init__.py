"""The old shop's URLs and integer ids, served by a modern cell after the move (moves.md rule 23)."""
