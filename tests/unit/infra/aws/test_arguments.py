"""Arguments that cannot be built are refused before anything is created, naming the field and the way out."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from contracts import keys
from infra.aws import configuration, programs
from infra.aws.configuration import Setting
from infra.aws.database import DatabaseArgs
from infra.aws.doorway import DoorwayArgs
from infra.aws.fleet import Fleet, Tags, check_cell
from infra.aws.observability import Signal
from infra.aws.router import CellLink, RouterArgs, RouterKeys
from infra.aws.service import Container
from infra.ending import SAID, EndedError
from infra.spec import SpecError
from tests.unit.infra.aws.world import FLEET, IMAGE, ROOTS, Recorded, run, spec, token


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("account", "1234", "account: '1234' is not an AWS account number"),
        ("region", "Frankfurt", "region: 'Frankfurt' is not a region"),
        ("zones", ("eu-central-1a",) * 3, "zones: .* must be 3 zones of eu-central-1"),
        ("zones", ("eu-west-1a", "eu-west-1b", "eu-west-1c"), "zones: "),
        ("base_domain", "Example.test", "base_domain: "),
        ("router_principal", "*", "router_principal: '\\*' is not the ARN of one role"),
        ("router_principal", "arn:aws:iam::123456789012:role/*", "router_principal: "),
        ("cell_principal", "arn:aws:iam::123456789012:user/x", "cell_principal: "),
        ("cell_cidr", "10.0.0.0/16", "cell_cidr: 10.0.0.0/16 overlaps the platform's"),
        ("cell_cidr", "10.64.0.0/24", "cell_cidr: .* must be a private network of 16 bits"),
        ("cell_cidr", "8.8.0.0/16", "cell_cidr: "),
        ("cell_cidr", "10.64.0.1/16", "cell_cidr: .* has host bits set"),
        ("environment", "Prod!", "environment: "),
    ],
)
def test_a_fleet_that_cannot_be_is_refused_by_field(field: str, value: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        Fleet.parse({**FLEET.mapping(), field: value})


def test_a_fleet_survives_its_configuration() -> None:
    assert Fleet.parse(FLEET.mapping()) == FLEET


@pytest.mark.parametrize(
    ("drop", "more", "says"), [("zones", {}, "zones: missing"), ("", {"vpc": "x"}, "vpc: unknown")]
)
def test_a_missing_or_unknown_field_of_a_fleet_is_named(drop: str, more: dict[str, str], says: str) -> None:
    told = {name: value for name, value in FLEET.mapping().items() if name != drop} | more
    with pytest.raises(SpecError, match=says):
        Fleet.parse(told)


def test_a_number_where_the_account_should_be_text_is_told_to_be_quoted() -> None:
    with pytest.raises(SpecError, match="account: 123456789012 is not text; put it in quotes"):
        Fleet.parse({**FLEET.mapping(), "account": 123456789012})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"region": "eu-west-1"}, "region: 'eu-west-1' is not the fleet's eu-central-1"),
        ({"images": {"api": IMAGE}}, "images.worker: missing"),
    ],
)
def test_a_cell_that_this_fleet_cannot_hold_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        check_cell(spec("cell-1", **changes), FLEET)


def test_a_name_too_long_for_load_balancers_is_refused() -> None:
    with pytest.raises(SpecError, match=r"name: .* more than 16 characters"):
        check_cell(spec("a-rather-long-name"), FLEET)


def test_a_stack_that_holds_the_spec_of_another_cell_makes_nothing() -> None:
    config = configuration.cell(FLEET, spec("cell-2"), ROOTS, token)
    with pytest.raises(EndedError, match=r"cellwall:cell\.name: 'cell-2' is not the name of this stack, 'cell-1'"):
        run("cell", "cell-1", programs.cell, config)


def test_a_control_plane_by_tag_is_refused_before_anything_is_asked_for() -> None:
    config = configuration.control_plane(FLEET, ROOTS, "cellwall/control-plane:latest", token)
    with pytest.raises(EndedError, match="cellwall:image: 'cellwall/control-plane:latest' is not an image by dig"):
        run("control-plane", "main", programs.control_plane, config)


def test_a_stack_without_configuration_is_told_what_writes_it() -> None:
    with pytest.raises(EndedError, match=r"cellwall:fleet is not set; python -m infra\.aws\.configure writes"):
        run("platform", "main", programs.platform, {})


def test_only_cells_have_a_cell_tag() -> None:
    with pytest.raises(SpecError, match=r"tags\.cell"):
        Tags("test", "router", "cell-1")
    with pytest.raises(SpecError, match=r"tags\.cell"):
        Tags("test", "cell")


def test_an_image_by_tag_never_runs() -> None:
    with pytest.raises(ValueError, match="by digest"):
        Container("api", "cellwall/cell:latest", ("true",))


def test_a_router_without_its_token_is_told_how_to_make_one() -> None:
    config = configuration.router(FLEET, ROOTS, IMAGE, ["cell-1"], "", token)
    lacking = {name: setting for name, setting in config.items() if name != "cellwall:control_plane_token"}
    with pytest.raises(EndedError, match=r"control_plane_token is not set; make a key with `cellctl keys create") as e:
        run("router", "main", programs.router, lacking)
    assert e.value.code == SAID


def test_a_stack_whose_ground_is_not_up_yet_is_told_which_stack_comes_first() -> None:
    ground = run("platform", "main", programs.platform, configuration.platform(FLEET))
    stacks = {"cellwall-platform/main": ground, "cellwall-control-plane/main": Recorded("control-plane", "main")}
    words = r"cellwall-control-plane/main has no output service_name yet; bring it up first: cellctl fleet up FILE"
    with pytest.raises(EndedError, match=words):
        run("cell", "cell-1", programs.cell, configuration.cell(FLEET, spec("cell-1"), ROOTS, token), stacks)


def test_arguments_cannot_change_after_they_were_checked() -> None:
    args = DatabaseArgs(FLEET.tags("control-plane"), ("a", "b", "c"), "sg", "key", (0.5, 4.0))
    with pytest.raises(FrozenInstanceError):
        args.keep = False  # type: ignore[misc]
    with pytest.raises(ValueError, match="acu"):
        replace(args, acu=(4.0, 0.5))
    with pytest.raises(ValueError, match="backup_days"):
        replace(args, backup_days=1)


def test_a_doorway_for_everybody_is_refused() -> None:
    with pytest.raises(ValueError, match="one principal"):
        DoorwayArgs(FLEET.tags("router"), "vpc", (), "*", {})


def test_an_alarm_says_what_it_means() -> None:
    with pytest.raises(ValueError, match="does not say what it tells"):
        Signal("x", "errors", "AWS/ECS", "CPUUtilization", "Average", {}, limit=1)


def test_a_router_is_not_led_to_one_cell_twice() -> None:
    links = [CellLink("cell-1", "a"), CellLink("cell-1", "b")]
    with pytest.raises(ValueError, match="named twice"):
        RouterArgs(FLEET, None, RouterKeys("", "", "", ""), IMAGE, links, "h", "g")  # type: ignore[arg-type]


def test_a_cell_gets_what_derives_from_the_roots_and_never_the_roots() -> None:
    told = configuration.cell(FLEET, spec("cell-1"), ROOTS, token)
    roots = {keys.text_of(ROOTS.envelope), keys.text_of(ROOTS.fleet)}
    assert not roots & {setting.value for setting in told.values()}
    plain = {name for name, setting in told.items() if not setting.secret}
    assert plain == {"aws:region", "aws:allowedAccountIds", "cellwall:fleet", "cellwall:cell"}
    expected = keys.text_of(keys.derive(ROOTS.envelope, keys.Purpose.ENVELOPE, "cell-1"))
    assert told["cellwall:envelope_key"] == Setting(expected, secret=True)


def test_configuring_again_keeps_the_passwords_that_databases_have() -> None:
    first = configuration.cell(FLEET, spec("cell-1"), ROOTS)
    again = configuration.keeping(configuration.cell(FLEET, spec("cell-1", size="M"), ROOTS), first)
    assert again["cellwall:app_password"] == first["cellwall:app_password"]
    assert again["cellwall:cell"] != first["cellwall:cell"]
