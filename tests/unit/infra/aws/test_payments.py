"""The fleet's payment gateway, as the stacks of cells reach it: by an endpoint of the worker's, with a secret token."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.aws import configuration, programs
from infra.aws.configuration import Configuration
from infra.aws.configure import configure
from infra.aws.fleet import Fleet
from infra.ending import EndedError
from infra.fleet.file import FleetFile
from infra.fleet.plan import StackPlan, configuration_of, from_file
from infra.policy.model import Resource
from infra.policy.rules import RULES
from infra.spec import SpecError
from tests.unit.infra.aws.policies import bad, faults, recorded, stack
from tests.unit.infra.aws.world import FLEET, IMAGE, ROOTS, Recorded, World, documents, run, spec, token

URL = "https://payments.example.test/sandbox"
SERVICE = "com.amazonaws.vpce.eu-central-1.vpce-svc-0123456789abcdef0"
PAYMENTS_TOKEN = "the-token-of-the-gateway-for-this-fleet"
PAID = replace(FLEET, payments_url=URL, payments_service=SERVICE)
ENDPOINT = "ec2/vpcEndpoint:VpcEndpoint"
TASK = "ecs/taskDefinition:TaskDefinition"


@pytest.fixture(scope="module")
def paying(world: World) -> Recorded:
    config = configuration.cell(PAID, spec("cell-1"), ROOTS, token, payments_token=PAYMENTS_TOKEN)
    return run("cell", "cell-1", programs.cell, config, world.stacks)


def container(cell: Recorded, name: str) -> dict[str, Any]:
    told = [each for task in cell.of(TASK) for each in json.loads(task.inputs["containerDefinitions"])]
    (found,) = (each for each in told if each["name"] == name)
    return dict(found)


def variables(cell: Recorded, name: str, kind: str) -> dict[str, str]:
    value = {"environment": "value", "secrets": "valueFrom"}[kind]
    return {each["name"]: each[value] for each in container(cell, name)[kind]}


def test_the_worker_can_charge_and_the_api_knows_that_somebody_can(paying: Recorded) -> None:
    for name in ("api", "worker"):
        assert variables(paying, name, "environment")["CELLWALL_CELL_PAYMENTS_URL"] == URL
    secret = variables(paying, "worker", "secrets")["CELLWALL_CELL_PAYMENTS_TOKEN"]
    (version,) = (v for v in paying.of("secretsmanager/secretVersion:SecretVersion") if v.name == "cell-1-worker")
    assert secret == f"{version.outputs['arn']}:PAYMENTS_TOKEN::"
    assert json.loads(version.inputs["secretString"]) == {"PAYMENTS_TOKEN": PAYMENTS_TOKEN}


def test_only_the_worker_can_read_the_gateways_token(paying: Recorded) -> None:
    assert "CELLWALL_CELL_PAYMENTS_TOKEN" not in variables(paying, "api", "secrets")
    (version,) = (v for v in paying.of("secretsmanager/secretVersion:SecretVersion") if v.name == "cell-1-worker")
    policies = paying.of("iam/rolePolicy:RolePolicy")
    readers = [policy.name for policy in policies if version.outputs["arn"] in documents(policy)]
    assert readers == ["cell-1-worker-start"]
    assert [each.name for each in paying.custom if PAYMENTS_TOKEN in documents(each)] == [version.name]


def test_the_gateways_name_answers_in_the_cell_for_the_worker_alone(paying: Recorded) -> None:
    (endpoint,) = (each for each in paying.of(ENDPOINT) if each.inputs["serviceName"] == SERVICE)
    assert endpoint.inputs["privateDnsEnabled"] is True
    (group,) = (each for each in paying.of("ec2/securityGroup:SecurityGroup") if each.name == "cell-1-payments")
    assert endpoint.inputs["securityGroupIds"] == [group.outputs["id"]]
    callers = [
        (rule.name, rule.inputs["toPort"])
        for rule in paying.of("vpc/securityGroupEgressRule:SecurityGroupEgressRule")
        if rule.inputs.get("referencedSecurityGroupId") == group.outputs["id"]
    ]
    assert callers == [("cell-1-worker-to-payments-443", 443)]


def test_a_cell_that_pays_breaks_no_rule_of_the_policy_pack(paying: Recorded) -> None:
    assert not [fault for rule in RULES for fault in faults(rule.name, recorded(paying))]


@pytest.mark.parametrize("named", [True, False])
def test_a_cell_reaches_no_third_service(named: bool) -> None:
    def endpoint(service: str, **props: Any) -> Resource:
        return bad(ENDPOINT, vpcEndpointType="Interface", serviceName=service, **props)

    two = (endpoint(f"{SERVICE}1"), endpoint(SERVICE, privateDnsEnabled=True))
    third = endpoint(f"{SERVICE}2", privateDnsEnabled=named)
    assert [fault for rule in RULES for fault in faults(rule.name, stack(*two)) if "reaches" in fault] == []
    assert [fault for rule in RULES for fault in faults(rule.name, stack(*two, third)) if "reaches" in fault]


def test_a_cell_whose_fleet_has_a_gateway_is_told_where_its_token_comes_from(world: World) -> None:
    config = configuration.cell(PAID, spec("cell-1"), ROOTS, token)
    with pytest.raises(
        EndedError, match=r"payments_token is not set; give the gateway's to python -m infra\.aws\.conf"
    ):
        run("cell", "cell-1", programs.cell, config, world.stacks)


def test_without_a_gateway_no_token_is_kept() -> None:
    told = configuration.cell(FLEET, spec("cell-1"), ROOTS, token, payments_token=PAYMENTS_TOKEN)
    assert "cellwall:payments_token" not in told


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"payments_url": None}, "payments_url: missing; a gateway needs both"),
        ({"payments_service": None}, "payments_service: missing; a gateway needs both"),
        ({"payments_url": "http://payments.example.test"}, "payments_url: .* is not https://HOST"),
        ({"payments_url": "https://me:secret@payments.example.test"}, "payments_url: .* is not https://HOST"),
        ({"payments_url": "https://payments.example.test:8443"}, "payments_url: .* on port 443"),
        ({"payments_service": "vpce-svc-1"}, "payments_service: 'vpce-svc-1' is not the name of an endpoint service"),
        ({"payments_service": 1}, "payments_service: 1 is not text"),
    ],
)
def test_a_gateway_that_no_cell_could_reach_is_refused_by_field(changes: dict[str, Any], says: str) -> None:
    told = {name: value for name, value in {**PAID.mapping(), **changes}.items() if value is not None}
    with pytest.raises(SpecError, match=says):
        Fleet.parse(told)


def test_a_fleet_with_a_gateway_survives_its_configuration() -> None:
    assert Fleet.parse(PAID.mapping()) == PAID
    assert "payments_url" not in FLEET.mapping()


class Backend:
    """Takes what is written, and has nothing yet."""

    def __init__(self) -> None:
        self.wrote: dict[str, Configuration] = {}

    def exists(self, plan: StackPlan) -> bool:
        return plan.key in self.wrote

    def make(self, plan: StackPlan) -> None:
        self.wrote[plan.key] = {}

    def read(self, plan: StackPlan) -> Configuration:
        return self.wrote[plan.key]

    def write(self, plan: StackPlan, settings: Configuration) -> None:
        self.wrote[plan.key] = {**self.wrote[plan.key], **settings}


def test_configure_says_which_cells_lack_the_gateways_token_and_never_changes_one(tmp_path: Path) -> None:
    images = {"router": IMAGE, "control_plane": IMAGE}
    file = FleetFile("aws", PAID.mapping(), images, cells=[spec("cell-1").mapping()])
    backend: Any = Backend()

    def line(payments_token: str) -> str:
        (found,) = (
            each
            for each in configure(file, tmp_path, backend, "cwo_1_x", payments_token)
            if each.startswith("cellwall-cell/cell-1")
        )
        for plan in from_file(file, tmp_path, configured=False):  # what the CLI keeps beside the program
            configuration_of(plan, tmp_path).parent.mkdir(exist_ok=True)
            configuration_of(plan, tmp_path).touch()
        return found

    assert "it lacks the gateway's token: set CELLWALL_CELL_PAYMENTS_TOKEN" in line("")
    assert line(PAYMENTS_TOKEN) == "cellwall-cell/cell-1: wrote payments_token"
    assert line("") == line("another-token-that-nobody-asked-for") == "cellwall-cell/cell-1: nothing to write"
    told = backend.wrote["cellwall-cell/cell-1"]["cellwall:payments_token"]
    assert (told.value, told.secret) == (PAYMENTS_TOKEN, True)
