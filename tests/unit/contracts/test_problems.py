import msgspec

from contracts import credentials, problems, transfer


def test_every_problem_has_a_type_of_its_own_and_says_what_to_do() -> None:
    assert len({p.type for p in problems.REGISTRY.values()}) == len(problems.REGISTRY) > 30
    for problem in problems.REGISTRY.values():
        body = msgspec.json.decode(problem.body("why", field="name"))
        assert body["status"] == problem.status >= 400
        assert body["advice"]
        assert (body["detail"], body["field"]) == ("why", "name")


def test_a_credential_names_its_tenant_and_nothing_else_does() -> None:
    key = credentials.compose(credentials.Kind.API_KEY, "t42", "s" * 43)
    assert credentials.tenant_in(f"Bearer {key}".encode()) == b"t42"
    for other in (b"Bearer x.y.z", b"Basic abc", f"Bearer {key} x".encode(), b"Bearer cwk_t42_short", b""):
        assert credentials.tenant_in(other) is None


def test_an_older_leader_orders_below_a_newer_one() -> None:
    assert transfer.Fence(1, 99, "z") < transfer.Fence(2, 0, "a")
    assert transfer.Fence.parse(transfer.Fence(3, 4, "m1").text()) == transfer.Fence(3, 4, "m1")
