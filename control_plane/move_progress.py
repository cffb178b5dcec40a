"""How far the stream of a large move is: what a new leader goes on from, and what people watch.

Stored as one document in the move's row, written with the same compare-and-set as its state. Everything in it is what
cells answered; nothing of it is needed for safety, because both cells keep their own position (moves.md rule 8).
"""

import msgspec

from control_plane.move import Stream


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sizes are bytes of row data; times are seconds."""

    rows_expected: int = 0  # the source's estimate when the move was planned
    bytes_expected: int = 0
    copies: int = 0  # how often the copy was begun
    copied_bytes: int = 0  # of the present copy
    copied_rows: int | None = None  # known once the target committed the copy
    copy_s: float = 0.0  # how long the present copy takes so far
    blobs: int = 0
    blob_bytes: int = 0
    markers: int = 0  # given out, so that no two have the same name
    verified: int = 0  # comparisons of the present copy that found both sides equal
    changes: int = 0  # changed rows carried over since the snapshot
    lag_bytes: int | None = None  # None: not measured since something took long
    touched: int = 0
    drain_s: float | None = None  # what a rehearsal of the hold took; None: none since changes were carried over
    rehearsals: int = 0  # since the last hold
    holds: int = 0  # that were ended because they took too long
    back_position: int | None = None  # from where the way back is fed, once it is open
    standing: bool = False
    changes_back: int = 0
    lag_back_bytes: int | None = None
    lost: str = ""  # why the way back is lost

    def stream(self) -> Stream:
        """What decisions need of it."""
        return Stream(
            lag_bytes=self.lag_bytes,
            verified=self.verified,
            touched=self.touched,
            back_open=self.back_position is not None,
            standing=self.standing,
            lost=bool(self.lost),
            copies=self.copies,
            drain_s=self.drain_s,
            rehearsals=self.rehearsals,
            holds=self.holds,
        )

    @property
    def bytes_per_s(self) -> float:
        """Of the copy; 0 before there is anything to divide."""
        return self.copied_bytes / self.copy_s if self.copy_s > 0 else 0.0

    @property
    def rows_per_s(self) -> float:
        """Of the copy: exact once it is done, before that by the share of bytes that arrived."""
        return (self.rows_so_far / self.copy_s) if self.copy_s > 0 else 0.0

    @property
    def rows_so_far(self) -> int:
        """Copied rows: exact once the copy is done, before that by the share of bytes that arrived."""
        if self.copied_rows is not None:
            return self.copied_rows
        if not self.bytes_expected:
            return 0
        return round(self.rows_expected * min(self.copied_bytes / self.bytes_expected, 1.0))

    @property
    def eta_s(self) -> float | None:
        """Until the copy is done, at the rate so far; None where that cannot be told."""
        if self.copied_rows is not None:
            return 0.0
        left = self.bytes_expected - self.copied_bytes
        return left / self.bytes_per_s if self.bytes_per_s > 0 and left > 0 else None
