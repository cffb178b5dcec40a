"""The guard and the roles: nothing runs without a declared access, and a credential of ours is parsed one way."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from litestar.handlers import HTTPRouteHandler

from cell import access
from cell.access import Role
from contracts.credentials import Kind, compose, tenant_in
from contracts.problems import ProblemError

SECRET = "s" * 43


def connection(authorization: str | None = None) -> Any:
    headers = {} if authorization is None else {"authorization": authorization}
    return SimpleNamespace(headers=headers, scope={})


def handler(**opt: Any) -> Any:
    return cast("Any", SimpleNamespace(opt=opt))


async def test_a_handler_that_declares_nothing_is_never_run() -> None:
    bearer = f"Bearer {compose(Kind.API_KEY, 't1', SECRET)}"
    for opt in ({}, {"access": None}, {"access": "anybody"}, {"access": "health"}):
        with pytest.raises(ProblemError) as caught:
            await access.guard(connection(bearer), handler(**opt))
        assert caught.value.problem.status == 500


async def test_a_handler_of_our_own_for_options_would_be_open_once_it_declares_anything_wrong() -> None:
    own = HTTPRouteHandler("/", http_method=["OPTIONS"], opt={"access": "anybody"}, sync_to_thread=False)(lambda: None)
    with pytest.raises(ProblemError):
        await access.guard(connection(), own)


async def test_a_public_handler_needs_no_credential() -> None:
    await access.guard(connection(), handler(access="public"))


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        f"Basic {compose(Kind.API_KEY, 't1', SECRET)}",
        f"Bearer cwx_t1_{SECRET}",
        "Bearer cwk_t1_short",
        f"Bearer cwk_t1_{SECRET} ",
        f"Bearer cwk_t1_{SECRET}\n",
        f"Bearer cwk_t1_{SECRET},cwk_t2_{SECRET}",
    ],
)
async def test_what_is_no_credential_of_ours_is_refused_before_the_body_is_read(authorization: str | None) -> None:
    with pytest.raises(ProblemError) as caught:
        await access.guard(connection(authorization), handler(access=Role.VIEWER))
    assert caught.value.problem.status == 401
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("kind", list(Kind))
def test_the_cell_reads_the_same_tenant_as_the_router(kind: Kind) -> None:
    authorization = f"bearer  {compose(kind, 't1042', SECRET)}"
    credential = access.parse(authorization)
    assert credential == access.Credential(kind, "t1042", access.digest(SECRET))
    assert tenant_in(authorization.encode()) == b"t1042"


def test_each_role_may_what_those_before_it_may_and_no_more() -> None:
    order = [Role.VIEWER, Role.MEMBER, Role.ADMIN, Role.OWNER]
    for place, role in enumerate(order):
        assert [role.covers(other) for other in order] == [n <= place for n in range(4)]
