"""Operations have few names whatever is asked for, and heavy ones have a level of their own."""

from cell.fairness.levels import LEVELS_MAX, Level, Operations, Rule

PATHS = [
    "/v1/orders",
    "/v1/orders/{order_id:uuid}",
    "/v1/reports",
    "/v1/reports/summary",
    "/v1/reports/{id:uuid}/result",
]
OPERATIONS = Operations(
    PATHS, [Rule("GET", "/v1/reports/summary", Level.BATCH), Rule("POST", "/v1/reports", Level.BATCH)]
)


def test_every_identifier_would_be_an_operation() -> None:
    assert OPERATIONS.name("GET", "/v1/orders/0190") == OPERATIONS.name("GET", "/v1/orders/0191") == "GET /v1/orders/*"
    assert OPERATIONS.name("GET", "/v1/orders") == "GET /v1/orders"
    assert OPERATIONS.name("GET", "/v1/reports/7/result") == "GET /v1/reports/*/result"
    assert OPERATIONS.name("GET", "/") == "GET /*"
    assert OPERATIONS.name("GET", "/x" * 500) == "GET /*/*/*/*/*/*"


def test_a_heavy_query_would_take_the_seats_of_clicks() -> None:
    levels = {
        ("GET", "/v1/reports/summary"): Level.BATCH,
        ("POST", "/v1/reports"): Level.BATCH,
        ("GET", "/v1/reports"): Level.INTERACTIVE,
        ("GET", "/v1/reports/summaryx"): Level.INTERACTIVE,
        ("GET", "/v1/orders/1"): Level.INTERACTIVE,
    }
    for (method, path), level in levels.items():
        assert OPERATIONS.level(OPERATIONS.name(method, path)) is level


def test_methods_that_clients_invent_would_be_remembered() -> None:
    operations = Operations([], [])
    for number in range(3 * LEVELS_MAX):
        operations.level(operations.name(f"M{number}", "/"))
    assert len(operations._levels) <= LEVELS_MAX
