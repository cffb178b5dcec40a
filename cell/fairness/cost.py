"""What one piece of work for a tenant has cost so far. One object, filled where each cost arises, read when it ends."""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Cost:
    """Filled by the tenant session, the wall and the ingress; times are seconds, sizes are bytes of bodies.

    ``database_s`` is how long the tenant's own shard took to answer its statements, ``seat_s`` how long a seat was
    held, ``queued_s`` how long it waited for one. ``rejected`` is why it was refused (`contracts.names.Refusal`), and
    '' where it was let through.
    """

    database_s: float = 0.0
    seat_s: float = 0.0
    queued_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    rejected: str = ""
