"""Names shared by every log line and metric of the fleet, so that one query works on all of them."""

from enum import StrEnum
from typing import Final


class Field(StrEnum):
    """Log fields. Events themselves are verbs in the past (``move_frozen``)."""

    TENANT = "tenant"
    CELL = "cell"
    SHARD = "shard"
    EPOCH = "epoch"
    REVISION = "revision"
    LOG_ID = "log_id"
    MOVE = "move"
    REQUEST_ID = "request_id"
    ROUTER = "router"
    WORKER = "worker"
    REASON = "reason"


class Metric(StrEnum):
    """Prometheus metrics. Labels are bounded: cell, code, reason; never tenant, but for a cell's ten costliest."""

    ROUTER_REQUESTS = "cellwall_router_requests_total"
    ROUTER_DURATION = "cellwall_router_request_seconds"
    ROUTER_REFUSED = "cellwall_router_refused_total"
    ROUTER_RETRIES = "cellwall_router_replays_total"
    ROUTER_HOLDS = "cellwall_router_holds"
    ROUTER_REVISION = "cellwall_router_applied_revision"
    ROUTER_UPSTREAMS = "cellwall_router_upstream_connections"
    ROUTER_CLIENTS = "cellwall_router_client_connections"
    ROUTER_WALLS = "cellwall_router_walls_total"
    CELL_REQUESTS = "cellwall_cell_requests_total"
    CELL_DURATION = "cellwall_cell_request_seconds"
    CELL_REFUSED = "cellwall_cell_refused_total"
    CELL_IN_FLIGHT = "cellwall_cell_in_flight"
    CELL_SEATS = "cellwall_cell_seats"
    CELL_WAITING = "cellwall_cell_waiting"
    CELL_QUEUED = "cellwall_cell_queued_seconds"
    CELL_OBSERVED = "cellwall_cell_observed_total"
    CELL_DATABASE = "cellwall_cell_database_seconds_total"
    CELL_BYTES = "cellwall_cell_body_bytes_total"
    CELL_TOP_TENANTS = "cellwall_cell_top_tenant_database_seconds"
    EVENTS_RELAYED = "cellwall_events_relayed_total"
    EVENTS_CONSUMED = "cellwall_events_consumed_total"
    EVENTS_DEAD = "cellwall_events_dead_total"
    REPORTS_ENDED = "cellwall_reports_ended_total"
    REPORTS_DURATION = "cellwall_report_seconds"
    REPORTS_OBSERVED = "cellwall_reports_observed_total"
    REPORTS_RUNNING = "cellwall_reports_running"
    SAGAS_ENDED = "cellwall_sagas_ended_total"
    SAGAS_UNSURE = "cellwall_sagas_unsure_total"
    SAGAS_STUCK = "cellwall_sagas_stuck_total"
    WEBHOOKS_SENT = "cellwall_webhooks_sent_total"
    CONTROL_MOVES = "cellwall_moves_total"
    CONTROL_HOLD = "cellwall_move_hold_seconds"
    CONTROL_BATCHES = "cellwall_batches_total"
    CONTROL_BATCH_MOVES = "cellwall_batch_moves_total"
    CONTROL_NOISY = "cellwall_noisy_actions_total"
    CONTROL_REVISION = "cellwall_route_log_revision"
    ZERO_FORWARDED = "cellwall_zero_forwarded_total"
    ZERO_SHADOWS = "cellwall_zero_shadow_reads_total"


class Refusal(StrEnum):
    """Values of the answer field ``Cell-Refused``: why the platform, not the application, refused."""

    MISDIRECTED = "misdirected"  # with 421: not ours at this epoch; nothing ran
    FROZEN = "tenant-frozen"  # with 503: about to move; nothing ran
    INTERRUPTED = "interrupted"  # with 503: something may have run; never replayed
    ENVELOPE = "envelope"  # with 403
    DEADLINE = "deadline"  # with 504
    TENANT_BUSY = "tenant-busy"  # with 429: the tenant's own waiting room is full; nothing ran
    CALLER = "caller-limited"  # with 429: this user or API key has used up its part; nothing of this request ran
    OVERLOADED = "overloaded"  # with 503: no seat in time; nothing ran


METRICS_PREFIX: Final = "cellwall_"
THROTTLED_PLAN: Final = "throttled"  # in the route of a throttled tenant; nobody can choose it
