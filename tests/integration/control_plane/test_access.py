"""Who may call what, on the real apps: the role matrix, the agent's token, the envelope of the front door."""

import re
from typing import Any

import httpx
import pytest
from litestar import Litestar, get
from litestar.routes import HTTPRoute
from structlog.testing import capture_logs

from contracts import problems
from contracts.keys import Purpose, bearer
from control_plane.app import create_app, create_front_door
from control_plane.auth import api_guard, create_key, front_door_guard
from control_plane.cell_client import CellAddress, CellRefusedError
from control_plane.web import EXCEPTION_HANDLERS
from tests.integration.control_plane.plane_world import CELLS, DOMAIN, ENVELOPE_KEY, FLEET_ROOT, Plane, sign_up

MAY = {
    "viewer": {"viewer", "operator", "admin"},
    "operator": {"operator", "admin"},
    "admin": {"admin"},
    "router": {"router"},
}


def endpoints(app: Litestar) -> list[tuple[str, str, Any]]:
    """(method, path, declared access) of every handler."""
    return sorted(
        (method, re.sub(r"\{[^}]*\}", "x", route.path), handler.opt.get("access"))
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in handler.http_methods - {"OPTIONS"}
    )


async def test_every_endpoint_refuses_every_role_that_it_does_not_name(plane: Plane) -> None:
    checked = 0
    for method, path, access in endpoints(create_app(plane.services, FLEET_ROOT)):
        if access == "health":
            assert (await plane.call(method, path, role=None)).status_code == 200
            continue
        assert (await plane.call(method, path, role=None)).status_code == 401, path
        assert (await plane.call(method, path, role=None, token="cwo_x_y")).status_code == 401, path
        for role in plane.keys:
            status = (await plane.call(method, path, role=role)).status_code
            if access == "agent":
                assert status == 401, path
            else:
                assert (status != 403) == (role in MAY[access]), f"{role} {method} {path}: {status}"
            checked += 1
    assert checked > 80


async def test_asking_for_the_methods_of_a_path_is_no_error_of_ours(plane: Plane) -> None:
    for app, ask in (
        (create_app(plane.services, FLEET_ROOT), plane.call),
        (create_front_door(plane.services, ENVELOPE_KEY), plane.knock),
    ):
        for method, path, _ in endpoints(app):
            for other in ("OPTIONS", "PROPFIND"):
                answer = await ask(other, path)
                assert (answer.status_code, answer.json()["type"]) == (405, problems.METHOD_NOT_ALLOWED.type)
                assert method in answer.headers["allow"].split(", ")
                assert "OPTIONS" not in answer.headers["allow"]


async def test_a_forgotten_declaration_closes_the_endpoint_and_shows_no_code_to_the_caller(plane: Plane) -> None:
    @get("/forgotten", sync_to_thread=False)
    def forgotten() -> None:
        pytest.fail("nobody may call it")

    @get("/wrong", opt={"access": "everybody"}, sync_to_thread=False)
    def wrong() -> None:
        pytest.fail("nobody may call it")

    for guard in (api_guard(plane.engine, FLEET_ROOT), front_door_guard(ENVELOPE_KEY)):
        app = Litestar([forgotten, wrong], guards=[guard], exception_handlers=EXCEPTION_HANDLERS, logging_config=None)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://control.test") as http:
            for path in ("/forgotten", "/wrong"):
                answer = await http.get(path)
                assert (answer.status_code, answer.json()["type"]) == (500, problems.INTERNAL.type)
                assert "detail" not in answer.json()


async def test_nothing_that_changes_the_fleet_is_open_to_a_viewer(plane: Plane) -> None:
    asked = ("/estimate", "/preview", "/what-if")  # questions that are POST for their bodies
    for method, path, access in endpoints(create_app(plane.services, FLEET_ROOT)):
        if method not in ("GET", "HEAD") and not path.endswith(asked):
            assert access in ("operator", "admin", "agent"), f"{method} {path}"


async def test_a_cell_cannot_speak_for_another_cell(plane: Plane) -> None:
    stolen = bearer(FLEET_ROOT, Purpose.AGENT, "cell-1")
    for token in (stolen, bearer(FLEET_ROOT, Purpose.TRANSFER, "cell-2"), plane.keys["admin"]):
        answer = await plane.call("POST", "/v1/agent/cells/cell-2/heartbeat", {}, role=None, token=token)
        assert answer.status_code == 401


async def test_a_revoked_key_opens_nothing(plane: Plane) -> None:
    made = (await plane.call("POST", "/v1/keys", {"name": "ci", "role": "viewer"})).json()
    assert (await plane.call("GET", "/v1/cells", role=None, token=made["key"])).status_code == 200
    assert (await plane.call("DELETE", f"/v1/keys/{made['id']}")).status_code == 204
    assert (await plane.call("GET", "/v1/cells", role=None, token=made["key"])).status_code == 401
    assert (await plane.call("DELETE", f"/v1/keys/{made['id']}")).status_code == 404
    listed = (await plane.call("GET", "/v1/keys")).text
    assert made["key"].rpartition("_")[2] not in listed


async def test_a_key_with_a_wrong_secret_opens_nothing_and_secrets_are_not_stored(plane: Plane) -> None:
    async with plane.engine.begin() as conn:
        key_id, text = await create_key(conn, "x", "admin")
    secret = text.removeprefix(f"cwo_{key_id}_")
    forged = f"cwo_{key_id}_{'A' * 43}"
    assert (await plane.call("GET", "/v1/cells", role=None, token=forged)).status_code == 401
    assert secret not in str(await plane.rows("SELECT * FROM api_keys"))


async def test_the_front_door_answers_nobody_who_came_around_the_router(plane: Plane) -> None:
    door = create_front_door(plane.services, ENVELOPE_KEY)
    assert {access for _, _, access in endpoints(door)} == {"health", "public"}
    assert (await plane.knock("GET", "/v1/plans")).status_code == 200
    assert (await plane.knock("GET", "/v1/plans?")).status_code == 200
    assert (await plane.knock("GET", "/v1/plans?a=%20b")).status_code == 200
    assert (await plane.knock("GET", "/health/live")).status_code == 200
    forged = await plane.knock("GET", "/v1/plans", key=b"another key")
    assert (forged.status_code, forged.json()["type"]) == (403, problems.ENVELOPE_INVALID.type)
    assert (await plane.knock("POST", "/v1/signup", sign_up("acme"), key=b"another key")).status_code == 403
    assert await plane.rows("SELECT * FROM tenants") == []


async def test_a_person_signs_up_at_the_front_door(plane: Plane) -> None:
    answer = await plane.knock("POST", "/v1/signup", sign_up("acme", plan="standard"))
    assert answer.status_code == 201
    assert set(answer.json()) == {"tenant", "slug", "host", "api_key", "user_id"}
    assert (await plane.rows("SELECT cell FROM tenants"))[0].cell in CELLS
    assert (await plane.rows("SELECT actor FROM audit WHERE action = 'tenant_created'"))[0].actor == "front-door"
    offered = (await plane.knock("GET", "/v1/plans")).json()["plans"]
    assert [p["name"] for p in offered] == ["free", "standard", "business"]
    chosen = await plane.knock("POST", "/v1/signup", sign_up("other", cell="cell-1"))
    assert chosen.status_code == 400  # only operators choose the cell


async def test_a_stranger_learns_nothing_of_the_fleet_from_a_sign_up_without_room(plane: Plane) -> None:
    for name in CELLS:
        await plane.call("PATCH", f"/v1/cells/{name}", {"capacity": 0})
    with capture_logs() as logged:
        answer = await plane.knock("POST", "/v1/signup", sign_up("acme"))
    assert (answer.status_code, answer.json()["type"]) == (503, problems.SIGN_UP_UNAVAILABLE.type)
    assert int(answer.headers["retry-after"]) > 1
    assert "cell" not in answer.text.replace("urn:cellwall", "")
    [noted] = [e for e in logged if e["event"] == "sign_up_refused"]
    assert "cell-1 is full (0 of 0 tenants)" in noted["reason"]
    operators = await plane.call("POST", "/v1/tenants", sign_up("acme"))
    assert (operators.status_code, operators.json()["type"]) == (409, problems.NO_ROOM.type)
    assert "cell-1 is full (0 of 0 tenants)" in operators.json()["detail"]


@pytest.mark.parametrize(
    ("refusal", "told"), [(problems.INVALID, problems.INVALID), (problems.CONFLICT, problems.SIGN_UP_UNAVAILABLE)]
)
async def test_a_stranger_learns_of_the_cells_refusal_only_what_was_wrong_with_the_input(
    plane: Plane, refusal: problems.Problem, told: problems.Problem
) -> None:
    async def refuses(target: CellAddress, *_: object, **__: object) -> None:
        raise CellRefusedError(target.name, refusal.slug, refusal.status, "password: too well known")

    plane.services.tenancy._client.provision = refuses  # type: ignore[method-assign,assignment]
    answer = await plane.knock("POST", "/v1/signup", sign_up("acme"))
    assert (answer.status_code, answer.json()["type"]) == (told.status, told.type)
    assert answer.json().get("detail") == ("password: too well known" if refusal is problems.INVALID else None)
    assert await plane.rows("SELECT * FROM tenants WHERE state IN ('provisioning', 'active')") == []


async def test_find_my_workspace_tells_only_the_owner_of_the_address(plane: Plane) -> None:
    for slug in ("acme", "beta"):
        await plane.knock("POST", "/v1/signup", sign_up(slug, email="Owner@Acme.test"))
    known = await plane.knock("POST", "/v1/find-workspace", {"email": " owner@acme.TEST "})
    unknown = await plane.knock("POST", "/v1/find-workspace", {"email": "stranger@acme.test"})
    assert (known.status_code, known.content) == (202, unknown.content)
    await plane.knock("POST", "/v1/find-workspace", {"email": "owner@acme.test"})  # too soon for a second mail
    await plane.services.finder.drain()
    [mail] = plane.mailbox.messages
    assert mail["To"] == "owner@acme.TEST"
    assert f"acme.{DOMAIN}" in mail.get_content()
    assert f"beta.{DOMAIN}" in mail.get_content()


async def test_an_address_with_a_line_break_injects_no_mail_header(plane: Plane) -> None:
    answer = await plane.knock("POST", "/v1/find-workspace", {"email": "a@b.c\r\nBcc: x@y.z"})
    assert answer.status_code in (202, 400)
    await plane.services.finder.drain()
    assert plane.mailbox.messages == []


async def test_no_email_address_is_kept_in_the_control_plane(plane: Plane) -> None:
    await plane.knock("POST", "/v1/signup", sign_up("acme", email="owner@private.test"))
    tables = await plane.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        assert "private.test" not in str(await plane.rows(f'SELECT * FROM "{table}"')), table


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("PUT", "/v1/cells", 405), ("POST", "/v1/tenants", 400), ("GET", "/v1/cells/x", 404)],
)
async def test_every_error_is_a_problem_with_advice(plane: Plane, method: str, path: str, status: int) -> None:
    answer = await plane.call(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, problems.CONTENT_TYPE)
    assert {"type", "title", "status", "advice"} <= set(answer.json())
