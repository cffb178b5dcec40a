"""Accounts: who may do what, for every endpoint and role; credentials that end in time, and at their tenant's wall."""

import asyncio
import secrets
import uuid
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from cell.access import PUBLIC, Role
from cell.app import PRODUCT
from cell.modules.accounts import public, service
from tests.integration.cell.cell_world import PASSWORD, Merchant, World

ROLES = [None, *Role]  # None: no credential
NOBODY = str(uuid.UUID(int=7 << 76 | 2 << 62))


@dataclass(frozen=True)
class Call:
    """A call that is valid in all but who makes it; ``least`` is the first role that may."""

    method: str
    path: str
    least: Role | None
    body: dict[str, Any] | None = None

    @property
    def endpoint(self) -> tuple[str, str]:
        """Its method and path, as the application knows them."""
        return self.method, self.path.replace(NOBODY, "{id}")


CALLS = [
    Call("POST", "/v1/sessions", None, {"email": "nobody@example.test", "password": "x"}),
    Call("DELETE", "/v1/sessions/current", Role.VIEWER),
    Call("GET", "/v1/me", Role.VIEWER),
    Call("GET", "/v1/users", Role.MEMBER),
    Call("POST", "/v1/users", Role.ADMIN, {"email": "", "name": "N", "role": "viewer", "password": PASSWORD}),
    Call("PATCH", f"/v1/users/{NOBODY}", Role.ADMIN, {"name": "N"}),
    Call("DELETE", f"/v1/users/{NOBODY}", Role.ADMIN),
    Call("GET", "/v1/api-keys", Role.ADMIN),
    Call("POST", "/v1/api-keys", Role.ADMIN, {"name": "K", "role": "viewer"}),
    Call("DELETE", f"/v1/api-keys/{NOBODY}", Role.ADMIN),
    Call("GET", "/v1/products", Role.VIEWER),
    Call("POST", "/v1/products", Role.MEMBER, {"sku": "", "name": "P", "price_cents": 1, "currency": "EUR"}),
    Call("GET", f"/v1/products/{NOBODY}", Role.VIEWER),
    Call("PATCH", f"/v1/products/{NOBODY}", Role.MEMBER, {"name": "P"}),
    Call("DELETE", f"/v1/products/{NOBODY}", Role.ADMIN),
    Call("GET", "/v1/orders", Role.VIEWER),
    Call("POST", "/v1/orders", Role.MEMBER, {"lines": [{"product_id": NOBODY, "quantity": 1}]}),
    Call("GET", f"/v1/orders/{NOBODY}", Role.VIEWER),
    Call("POST", f"/v1/orders/{NOBODY}/cancel", Role.MEMBER),
    Call("GET", f"/v1/orders/{NOBODY}/progress", Role.VIEWER),
    Call("GET", "/v1/stock", Role.VIEWER),
    Call("GET", f"/v1/stock/{NOBODY}", Role.VIEWER),
    Call("PUT", f"/v1/stock/{NOBODY}", Role.MEMBER, {"on_hand": 1}),
    Call("DELETE", f"/v1/stock/{NOBODY}", Role.MEMBER),
    Call("GET", "/v1/payments", Role.VIEWER),
    Call("GET", f"/v1/payments/{NOBODY}", Role.VIEWER),
    Call("GET", "/v1/webhooks", Role.ADMIN),
    Call("POST", "/v1/webhooks", Role.ADMIN, {"url": "https://hooks.example.test/orders"}),
    Call("DELETE", f"/v1/webhooks/{NOBODY}", Role.ADMIN),
    Call("GET", f"/v1/webhooks/{NOBODY}/deliveries", Role.ADMIN),
    Call("POST", f"/v1/webhooks/{NOBODY}/redrive", Role.ADMIN),
    Call("GET", "/v1/reports/summary", Role.VIEWER),
    Call("GET", "/v1/reports", Role.VIEWER),
    Call("POST", "/v1/reports", Role.MEMBER, {"kind": "sales-by-day", "from": "2026-01-01", "to": "2026-01-31"}),
    Call("GET", f"/v1/reports/{NOBODY}", Role.VIEWER),
    Call("GET", f"/v1/reports/{NOBODY}/result", Role.VIEWER),
    Call("DELETE", f"/v1/reports/{NOBODY}", Role.MEMBER),
]


def test_the_matrix_names_every_endpoint_of_the_product() -> None:
    declared = {}
    for router in PRODUCT:
        for route in router.routes:
            for handler in route.route_handlers:  # type: ignore[union-attr]
                path = "/".join("{id}" if part.startswith("{") else part for part in route.path.split("/"))
                for method in set(getattr(handler, "http_methods", ())) - {"OPTIONS"}:  # Litestar's own, without rows
                    declared[method, path] = handler.opt["access"]
    assert declared == {call.endpoint: call.least or PUBLIC for call in CALLS}


async def test_every_role_may_call_what_it_may_and_nothing_else(merchant: Merchant) -> None:
    clients = {None: merchant.client(None)} | {role: await merchant.user(role) for role in Role}
    for call in sorted(CALLS, key=lambda call: call.path == "/v1/sessions/current"):  # which ends the session: last
        for role in ROLES:
            answer = await _made(clients[role], call)
            allowed = call.least is None or (role is not None and role.covers(call.least))
            if call.least is None:
                assert answer.status_code == 401, "this login is wrong for everybody"
            elif role is None:
                assert answer.status_code == 401, (call, role)
            elif not allowed:
                assert answer.status_code == 403, (call, role, answer.text)
            else:
                assert answer.status_code < 500, (call, role, answer.text)
                assert answer.status_code not in (401, 403), (call, role, answer.text)


async def _made(client: httpx.AsyncClient, call: Call) -> httpx.Response:
    unique = secrets.token_hex(6)
    body = dict(call.body or {})
    body |= {name: value for name, value in (("email", f"{unique}@x.test"), ("sku", unique)) if body.get(name) == ""}
    headers = {"Idempotency-Key": unique}
    return await client.request(call.method, call.path, json=body if call.body else None, headers=headers)


@pytest.mark.invariant(3)
async def test_a_key_of_one_tenant_opens_no_other(world: World, merchant: Merchant) -> None:
    other = await world.merchant()
    for stolen in (world.client(other.tenant_id, merchant.key), world.client(merchant.tenant_id, other.key)):
        answer = await stolen.get("/v1/me")
        assert (answer.status_code, answer.json()["type"]) == (401, "urn:cellwall:problem:unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
    renamed = merchant.key.replace(merchant.tenant_id, other.tenant_id)
    assert (await world.client(other.tenant_id, renamed).get("/v1/me")).status_code == 401


async def test_me_tells_who_the_credential_is(merchant: Merchant) -> None:
    me = (await merchant.owner.get("/v1/me")).json()
    assert (me["tenant"], me["role"], me["user"]["id"]) == (merchant.tenant_id, "owner", merchant.user_id)
    assert "password_hash" not in me["user"]


async def test_a_login_does_not_tell_whether_there_is_such_a_user(
    merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bool] = []
    verify = public.passwords.verify

    async def counting(stored: str | None, password: str) -> bool:
        checked.append(stored is not None)
        return await verify(stored, password)

    monkeypatch.setattr(public.passwords, "verify", counting)
    owner = (await merchant.owner.get("/v1/me")).json()["user"]["email"]
    answers = [
        await merchant.client(None).post("/v1/sessions", json={"email": email, "password": "wrong"})
        for email in (owner, "nobody@example.test")
    ]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].content == answers[1].content
    assert checked == [True, False], "the same work for both"


async def test_a_session_ends_at_log_out_and_at_its_time(merchant: Merchant) -> None:
    member, late = await merchant.user(Role.MEMBER), await merchant.user(Role.MEMBER)
    assert (await member.get("/v1/me")).status_code == 200
    assert (await member.delete("/v1/sessions/current")).status_code == 204
    assert (await member.get("/v1/me")).status_code == 401
    await merchant.rows("UPDATE product.sessions SET expires_at = now() WHERE tenant_id = $1")
    assert (await late.get("/v1/me")).status_code == 401
    async with merchant.world.databases.shards.enter(merchant.context()) as session:
        assert await service.prune_sessions(session) == 1
    assert (await merchant.owner.delete("/v1/sessions/current")).status_code == 409, "a key is no session"


async def test_an_email_address_is_one_user_however_it_is_written(merchant: Merchant) -> None:
    body = {"email": "Ann@Example.test", "name": "Ann", "role": "member", "password": PASSWORD}
    assert (await merchant.owner.post("/v1/users", json=body)).json()["email"] == "ann@example.test"
    assert (await merchant.owner.post("/v1/users", json=body | {"email": "ann@example.TEST"})).status_code == 409
    login = {"email": "ANN@example.test", "password": PASSWORD}
    assert (await merchant.client(None).post("/v1/sessions", json=login)).status_code == 201


async def test_a_password_and_a_key_are_not_stored_as_they_are(merchant: Merchant) -> None:
    (user,) = await merchant.rows("SELECT password_hash FROM product.users WHERE tenant_id = $1")
    assert user["password_hash"].startswith("$argon2id$")
    (key,) = await merchant.rows("SELECT secret_digest FROM product.api_keys WHERE tenant_id = $1")
    assert len(key["secret_digest"]) == 32
    assert key["secret_digest"] not in merchant.key.encode()


async def test_a_revoked_key_stops_at_once(merchant: Merchant) -> None:
    made = (await merchant.owner.post("/v1/api-keys", json={"name": "ci", "role": "viewer"})).json()
    client = merchant.client(made["key"])
    assert (await client.get("/v1/orders")).status_code == 200
    assert (await client.post("/v1/products", json={})).status_code in (400, 403)
    listed = (await merchant.owner.get("/v1/api-keys")).json()["items"]
    assert {key["name"] for key in listed} == {"first key", "ci"}
    assert all("key" not in key for key in listed), "a key is shown once"
    assert (await merchant.owner.delete(f"/v1/api-keys/{made['id']}")).status_code == 204
    assert (await client.get("/v1/orders")).status_code == 401


async def test_a_key_never_does_more_than_its_user_may(merchant: Merchant) -> None:
    admin = await merchant.user(Role.ADMIN)
    assert (await admin.post("/v1/api-keys", json={"name": "k", "role": "owner"})).status_code == 403
    made = (await admin.post("/v1/api-keys", json={"name": "k", "role": "admin"})).json()
    me = (await merchant.client(made["key"]).get("/v1/me")).json()
    demoted = await merchant.owner.patch(f"/v1/users/{me['user']['id']}", json={"role": "viewer"})
    assert demoted.status_code == 200
    assert (await merchant.client(made["key"]).get("/v1/me")).json()["role"] == "viewer"


async def test_nobody_raises_themselves_or_touches_someone_above(merchant: Merchant) -> None:
    admin = await merchant.user(Role.ADMIN)
    me = (await admin.get("/v1/me")).json()["user"]["id"]
    assert (await admin.patch(f"/v1/users/{me}", json={"role": "owner"})).status_code == 403
    assert (await admin.patch(f"/v1/users/{merchant.user_id}", json={"password": PASSWORD})).status_code == 403
    assert (await admin.delete(f"/v1/users/{merchant.user_id}")).status_code == 403
    body = {"email": "x@x.test", "name": "X", "role": "owner", "password": PASSWORD}
    assert (await admin.post("/v1/users", json=body)).status_code == 403


async def test_a_tenant_is_never_left_without_an_owner(merchant: Merchant) -> None:
    path = f"/v1/users/{merchant.user_id}"
    assert (await merchant.owner.patch(path, json={"role": "member"})).status_code == 409
    assert (await merchant.owner.delete(path)).status_code == 409
    second = await merchant.user(Role.OWNER)
    me = (await second.get("/v1/me")).json()["user"]["id"]
    answers = await asyncio.gather(
        merchant.owner.patch(f"/v1/users/{me}", json={"role": "member"}), second.patch(path, json={"role": "member"})
    )
    # The one that comes second finds itself demoted, or the last owner in its way.
    assert sorted(answer.status_code for answer in answers)[0] == 200
    assert sorted(answer.status_code for answer in answers)[1] in (401, 403, 409)
    owners = "SELECT FROM product.users WHERE tenant_id = $1 AND role = 'owner'"
    assert len(await merchant.rows(owners)) == 1


async def test_a_new_password_ends_the_sessions_and_a_stale_version_is_refused(merchant: Merchant) -> None:
    member = await merchant.user(Role.MEMBER)
    user = (await member.get("/v1/me")).json()["user"]
    path = f"/v1/users/{user['id']}"
    renamed = await merchant.owner.patch(path, json={"name": "Other", "version": user["version"]})
    assert (renamed.json()["name"], renamed.json()["version"]) == ("Other", user["version"] + 1)
    stale = await merchant.owner.patch(path, json={"name": "Third", "version": user["version"]})
    assert (stale.status_code, stale.json()["version"]) == (409, user["version"] + 1)
    assert (await member.get("/v1/me")).status_code == 200
    assert (await merchant.owner.patch(path, json={"password": PASSWORD + "!"})).status_code == 200
    assert (await member.get("/v1/me")).status_code == 401


async def test_a_deleted_user_can_do_nothing_any_more(merchant: Merchant) -> None:
    admin = await merchant.user(Role.ADMIN)
    made = (await admin.post("/v1/api-keys", json={"name": "k"})).json()
    assert (await merchant.owner.delete(f"/v1/users/{made['user_id']}")).status_code == 204
    for client in (admin, merchant.client(made["key"])):
        assert (await client.get("/v1/me")).status_code == 401


async def test_users_are_paged_without_hole_or_repeat(merchant: Merchant) -> None:
    for _ in range(3):
        await merchant.user(Role.VIEWER)
    names, query = [], {"limit": "2"}
    while True:
        page = (await merchant.owner.get("/v1/users", params=query)).json()
        names += [user["id"] for user in page["items"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    assert len(names) == len(set(names)) == 4
    assert names[0] == merchant.user_id


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"email": "no address"}, "email"),
        ({"email": "a@b\n"}, "email"),
        ({"role": "king"}, "role"),
        ({"password": "short"}, "password"),
        ({"name": ""}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"admin": True}, "admin"),
    ],
)
async def test_a_wrong_user_names_the_field(merchant: Merchant, change: dict[str, object], field: str) -> None:
    body = {"email": "a@b.test", "name": "A", "role": "viewer", "password": PASSWORD} | change
    answer = await merchant.owner.post("/v1/users", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)


async def test_a_login_with_characters_that_no_database_holds_is_the_callers_mistake(merchant: Merchant) -> None:
    answer = await merchant.client(None).post("/v1/sessions", json={"email": "a\0b", "password": "x"})
    assert answer.status_code == 400
