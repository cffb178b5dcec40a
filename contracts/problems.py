"""Problem details (RFC 9457): one registry of what can go wrong, what it is called and what the caller can do.

``type`` is stable and never reused. Every error answer of every listener is one of these.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

CONTENT_TYPE: Final = "application/problem+json"
_BASE: Final = "urn:cellwall:problem:"


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of failure. ``slug`` ends its type; ``advice`` tells the caller what to do about it."""

    slug: str
    status: int
    title: str
    advice: str

    @property
    def type(self) -> str:
        """The stable URI of the problem."""
        return _BASE + self.slug

    def body(self, detail: str = "", *, advice: str = "", **extra: Any) -> bytes:
        """The JSON body. ``extra`` members are extension members (RFC 9457, section 3.2)."""
        members = {"type": self.type, "title": self.title, "status": self.status}
        if detail:
            members["detail"] = detail
        members["advice"] = advice or self.advice
        return msgspec.json.encode(members | extra)


class ProblemError(Exception):
    """Raised anywhere behind an HTTP listener; the listener answers with the problem."""

    def __init__(
        self, problem: Problem, detail: str = "", *, headers: dict[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(f"{problem.slug}: {detail or problem.title}")
        self.problem = problem
        self.detail = detail
        self.headers = headers or {}
        self.extra = extra

    def body(self) -> bytes:
        """The JSON body of the answer."""
        return self.problem.body(self.detail, **self.extra)


# -- the router ---------------------------------------------------------------------------------------------------
MALFORMED = Problem(
    "malformed-request", 400, "The request is not valid HTTP/1.1", "Send a request as RFC 9112 defines it."
)
TENANT_AMBIGUOUS = Problem(
    "tenant-ambiguous",
    400,
    "The request names two tenants",
    "Send a host and a credential of the same tenant.",
)
TENANT_MISSING = Problem("tenant-missing", 404, "The request names no tenant", "Use the tenant's own host name.")
TENANT_UNKNOWN = Problem(
    "tenant-unknown", 404, "No such tenant", "Check the host name, or look it up at the front door."
)
TENANT_SUSPENDED = Problem("tenant-suspended", 403, "The tenant is suspended", "Ask the operator to resume it.")
HEAD_TOO_LARGE = Problem("head-too-large", 431, "The request head is too large", "Send fewer or shorter fields.")
BODY_TOO_LARGE = Problem("body-too-large", 413, "The request body is too large", "Send a smaller body.")
CLIENT_TOO_SLOW = Problem("client-too-slow", 408, "The request did not arrive in time", "Send it again, faster.")
CONNECTIONS_LIMITED = Problem(
    "connections-limited", 429, "Too many open connections", "Close connections, or send more requests over each."
)
ROUTER_FULL = Problem("router-full", 503, "This router has no room for connections", "Try again after Retry-After.")
RATE_LIMITED = Problem("rate-limited", 429, "Too many requests", "Wait for Retry-After, or choose a larger plan.")
CELL_UNAVAILABLE = Problem(
    "cell-unavailable", 503, "The tenant's cell cannot be reached", "Try again after Retry-After."
)
CELL_BUSY = Problem("cell-busy", 503, "The tenant's cell has no room for this request", "Try again after Retry-After.")
CELL_BROKEN = Problem(
    "cell-broken-answer", 502, "The tenant's cell gave a broken answer", "Try again; tell the operator."
)
NOT_READY = Problem("not-ready", 503, "The route table is not loaded yet", "Try again after Retry-After.")
DEADLINE = Problem("deadline-exceeded", 504, "The time budget is used up", "Try again; ask for less.")
NOT_SUPPORTED = Problem("not-supported", 501, "The router does not support this", "See docs/architecture.md.")

# -- the cell's ingress -------------------------------------------------------------------------------------------
ENVELOPE_INVALID = Problem(
    "envelope-invalid",
    403,
    "The request did not come through a router of this fleet",
    "Send it to the router.",
)
MISDIRECTED = Problem("misdirected", 421, "This cell does not own the tenant", "The router looks up the new route.")
TENANT_FROZEN = Problem(
    "tenant-frozen",
    503,
    "The tenant is about to move; nothing of this request ran",
    "Try again after Retry-After.",
)
INTERRUPTED = Problem(
    "interrupted", 503, "The tenant moved while the request ran; a part of it may have taken effect",
    "Read the state before you try again, or repeat it with the same Idempotency-Key.",
)  # fmt: skip
SHARD_UNAVAILABLE = Problem(
    "shard-unavailable", 503, "The tenant's database cannot be reached", "Try again after Retry-After."
)
TENANT_BUSY = Problem(
    "tenant-busy",
    429,
    "Too many requests of this tenant wait already; nothing of this one ran",
    "Wait for Retry-After, and have fewer requests under way at a time.",
)
CALLER_LIMITED = Problem(
    "caller-limited",
    429,
    "This user or API key sends more than its part of the tenant's requests",
    "Wait for Retry-After, and have fewer requests under way at a time.",
)
OVERLOADED = Problem(
    "overloaded",
    503,
    "The cell could not begin this request in time; nothing of it ran",
    "Try again after Retry-After.",
)
USAGE_UNAVAILABLE = Problem(
    "usage-unavailable", 503, "The usage of this cell is not known at the moment", "Try again after Retry-After."
)

# -- the product --------------------------------------------------------------------------------------------------
INVALID = Problem("invalid-input", 400, "The input is not valid", "Correct the fields that detail names.")
UNAUTHENTICATED = Problem("unauthenticated", 401, "A valid credential is needed", "Send Authorization: Bearer KEY.")
FORBIDDEN = Problem("forbidden", 403, "Your role does not allow this", "Ask an administrator of your tenant.")
NOT_FOUND = Problem("not-found", 404, "No such thing", "Check the identifier.")
METHOD_NOT_ALLOWED = Problem("method-not-allowed", 405, "No such method here", "See the Allow field.")
CONFLICT = Problem("conflict", 409, "It conflicts with what is there", "Read the present state, then decide.")
KEY_MISSING = Problem(
    "idempotency-key-missing",
    400,
    "Idempotency-Key is missing",
    "Send a unique Idempotency-Key with every create.",
)
KEY_IN_FLIGHT = Problem(
    "idempotency-key-in-flight",
    409,
    "A request with this Idempotency-Key is being worked on",
    "Wait, then repeat it.",
)
KEY_REUSED = Problem(
    "idempotency-key-reused", 422, "This Idempotency-Key was used with another payload", "Use a new key."
)
NO_PAYMENTS = Problem(
    "no-payments",
    409,
    "No payments are taken here",
    "Order without a payment, or ask the operator to name a gateway (docs/product.md).",
)
REPORTS_QUEUE_FULL = Problem(
    "reports-queue-full", 429, "Your queue of reports is full", "Wait for Retry-After, or delete a report that waits."
)
REPORT_NOT_READY = Problem(
    "report-not-ready", 409, "The report has no result", "Read its status; ask again when it is done."
)
SUMMARY_TOO_LONG = Problem(
    "summary-too-long",
    422,
    "The summary would not be ready while you wait",
    "Ask for fewer days, or have a report made: POST /v1/reports.",
)
BLOBS_UNAVAILABLE = Problem(
    "blobs-unavailable", 503, "The store of files cannot be reached", "Try again after Retry-After."
)
INTERNAL = Problem("internal-error", 500, "Something broke on our side", "Try again; quote the request id.")

# -- transfer and control plane -----------------------------------------------------------------------------------
FENCED = Problem(
    "fenced", 409, "A newer command was seen for this tenant", "Do not repeat it: a newer leader is at work."
)
WRONG_STATE = Problem("wrong-state", 409, "The tenant's state does not allow this command", "Read its status first.")
FREEZE_BUSY = Problem(
    "freeze-budget-exceeded", 503, "The tenant could not be frozen within the budget", "Try again later."
)
STREAM_LOST = Problem(
    "stream-lost",
    409,
    "The stream of changes, or its snapshot, is not there any more",
    "Open it again and copy again; a rollback would lose what was written since.",
)
NOT_REPLICABLE = Problem(
    "not-replicable", 409, "A tenant table cannot be replicated", "Give the table that detail names a primary key."
)
SCHEMA_MISMATCH = Problem("schema-mismatch", 409, "The cells' schema revisions differ", "Migrate the older cell first.")
SLUG_TAKEN = Problem("slug-taken", 409, "A tenant with this slug exists", "Choose another slug.")
STORE_UNAVAILABLE = Problem(
    "store-unavailable",
    503,
    "The control plane's database cannot be reached",
    "Try again after Retry-After; tenants are not affected.",
)
NO_ROOM = Problem("no-cell-has-room", 409, "No cell can take the tenant", "Add a cell, or raise a cell's capacity.")
CELL_FULL = Problem("cell-full", 409, "The cell is full", "Choose another cell, or raise its capacity.")
SIGN_UP_UNAVAILABLE = Problem(
    "sign-up-unavailable", 503, "Sign-up is not possible at the moment", "Try again later, after Retry-After."
)
MOVE_NOOP = Problem("already-there", 409, "The tenant already lives in that cell", "Choose another cell.")
MOVE_RUNNING = Problem("move-running", 409, "The tenant is being moved", "Wait for the running move, or cancel it.")
TENANT_TOO_LARGE = Problem(
    "tenant-too-large",
    409,
    "The tenant is too large to be moved from where it is",
    "Delete or archive what it does not need there first; detail says what the limit is.",
)
NOTHING_TO_MOVE = Problem("nothing-to-move", 409, "There is nothing to move", "Leave it as it is.")
PLAN_INCOMPLETE = Problem(
    "plan-incomplete",
    409,
    "Not every tenant can be moved",
    "Do what helps, then plan again; or send partial (--partial) to move the others.",
)
BATCH_RUNNING = Problem(
    "batch-running", 409, "A batch of moves is under way", "Wait for it, or cancel it: cellctl plans status"
)
MOVE_UNDONE = Problem(
    "move-undone", 409, "A batch of moves would undo this", "Wait for the batch, or cancel it: cellctl plans status"
)
NO_STREAM_ROOM = Problem(
    "no-stream-room",
    409,
    "A database server takes no more streams of changes",
    "Finalize a move whose standby is not needed (cellctl moves finalize), or wait, or raise the limit of the server.",
)
PINNED = Problem("tenant-pinned", 409, "The tenant is pinned to a cell", "Unpin it first: cellctl tenants unpin TENANT")
UNTRANSLATABLE = Problem(
    "untranslatable",
    409,
    "Rows of the tenant do not translate",
    "Mend the rows that detail names, then move it again; see: cellctl zero preflight",
)
ZERO_NOT_EMPTY = Problem(
    "cell-zero-not-empty",
    409,
    "Cell zero still has tenants",
    "Move them out first: cellctl zero migrate; who is left: cellctl zero status",
)
MOVE_DECIDED = Problem("move-decided", 409, "The move is past its decision", "Let it finish, then roll it back.")

REGISTRY: Final[dict[str, Problem]] = {p.slug: p for p in list(globals().values()) if isinstance(p, Problem)}
