"""Names that no tenant, cell or key can have are the caller's mistake, never a failure of the control plane."""

import itertools

from contracts import problems
from tests.integration.control_plane.plane_world import Plane, sign_up

NAMES = (
    "%00",
    "a%00b",
    "%ff",
    "%ed%a0%80",
    "%F0%9F%98%80",
    "t999999999999999999",
    "t99999999999999999999",
    "%20",
    "a" * 3000,
)

PATHS = (
    "GET /v1/tenants/{}",
    "POST /v1/tenants/{}/suspend",
    "POST /v1/tenants/{}/resume",
    "DELETE /v1/tenants/{}",
    "GET /v1/tenants?cell={}",
    "GET /v1/tenants?state={}",
    "GET /v1/tenants?cursor={}",
    "GET /v1/cells/{}",
    "DELETE /v1/cells/{}",
    "DELETE /v1/keys/{}",
    "GET /v1/audit?cursor={}",
    "GET /v1/moves/{}",
    "GET /v1/moves?tenant={}",
    "GET /v1/moves?state={}",
    "POST /v1/moves/{}/cancel",
    "POST /v1/moves/{}/rollback",
    "GET /v1/routes/{}",
)

BODIES = (
    ("POST", "/v1/moves", {"tenant": "{}", "to": "cell-2"}),
    ("POST", "/v1/moves", {"tenant": "acme", "to": "{}"}),
    ("POST", "/v1/moves/estimate", {"tenant": "{}", "to": "{}"}),
    ("POST", "/v1/keys", {"name": "{}", "role": "viewer"}),
    ("POST", "/v1/tenants", sign_up("other", cell="{}")),
    ("POST", "/v1/tenants", sign_up("other", region="{}")),
    ("POST", "/v1/tenants", sign_up("other", plan="{}")),
    ("POST", "/v1/tenants", sign_up("other", name="{}")),
    ("POST", "/v1/tenants", sign_up("{}")),
    ("PATCH", "/v1/cells/%00", {"state": "draining"}),
)


async def test_a_name_that_cannot_be_stored_would_look_like_a_broken_control_plane(plane: Plane) -> None:
    await plane.sign_up("acme", cell="cell-1")
    for path, name in itertools.product(PATHS, NAMES):
        method, _, where = path.format(name).partition(" ")
        answer = await plane.call(method, where)
        assert answer.status_code in (400, 404), f"{method} {where}: {answer.text}"
        assert answer.headers["content-type"] == problems.CONTENT_TYPE


async def test_a_nul_in_a_body_is_refused(plane: Plane) -> None:
    await plane.sign_up("acme", cell="cell-1")
    for (method, path, body), name in itertools.product(BODIES, ("\x00", "a\x00b")):
        answer = await plane.call(method, path, {key: value.replace("{}", name) for key, value in body.items()})
        assert answer.status_code in (400, 404), f"{method} {path} {body}: {answer.text}"
        assert answer.headers["content-type"] == problems.CONTENT_TYPE


async def test_a_router_whose_name_cannot_be_stored_gets_no_lease(plane: Plane) -> None:
    for query in ("router=%00&log=x&after=0&applied=0", "router=r&log=%00&after=0&applied=0"):
        answer = await plane.call("GET", f"/v1/routes?{query}", role="router")
        assert answer.status_code == 400, answer.text
    assert await plane.rows("SELECT * FROM routers") == []
