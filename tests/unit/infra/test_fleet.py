"""Which stacks `cellctl fleet` drives, in which order, and what it makes of what the engine says."""

import json
from pathlib import Path
from typing import Any

import pytest
from pulumi.automation import EngineEvent

from infra.aws.configuration import PROJECTS
from infra.fleet.errors import FleetFileError, SurroundingsError
from infra.fleet.file import read
from infra.fleet.plan import StackPlan, chosen, from_backend, from_file, ordered
from infra.fleet.reading import Reader, one_line
from infra.fleet.show import Lines, LiveShow, calm, outcome, rows
from infra.fleet.surroundings import check, environment
from infra.fleet.words import Difference, Ended, Step
from infra.fleet.work import unchanged
from infra.local.errors import NameTakenError
from infra.local.fleet import Fleet
from infra.local.spec import FleetSpec, LocalCellSpec, ZeroSpec
from infra.local.stamp import Stamps, owner
from infra.local.state import Folder, State
from tests.unit.infra.aws.world import FLEET, IMAGE

CELL = "urn:pulumi:cell-3::cellwall-local::cellwall:local:Cell$pulumi-python:dynamic/local:Cell::cell-3"


def written(folder: Path, text: str) -> Path:
    file = folder / "fleet.yaml"
    file.write_text(text)
    return file


def on_aws(folder: Path, *cells: str) -> Path:
    told = {
        "target": "aws",
        "fleet": FLEET.mapping(),
        "defaults": {"region": FLEET.region, "images": {"api": IMAGE, "worker": IMAGE}},
        "cells": [{"name": name} for name in cells],
    }
    return written(folder, json.dumps(told))  # JSON is YAML


def configure(programs: Path, *plans: StackPlan, text: str = "") -> None:
    for plan in plans:
        plan.folder(programs).mkdir(parents=True, exist_ok=True)
        (plan.folder(programs) / f"Pulumi.{plan.name}.yaml").write_text(text)


def fleet_of(folder: Path, zero: ZeroSpec | None = None) -> Path:
    """The folder of a fleet that has a cell-1 of its own, and an old shop or none, as its books say."""
    kept = Folder(folder / "fleet")
    kept.make()
    kept.save(State.fresh(FleetSpec(cells=(LocalCellSpec("cell-1", shards=1),), zero=zero)))
    return kept.path


def metadata(op: str, **states: Any) -> dict[str, Any]:
    return {"op": op, "urn": CELL, "type": "x", "provider": "", "old": None, "new": None, **states}


def event(kind: str, **told: Any) -> EngineEvent:
    return EngineEvent.from_json({"sequence": 1, "timestamp": 0, kind: told})


def state(**outputs: Any) -> dict[str, Any]:
    return {"type": "x", "urn": CELL, "id": "cell-3", "parent": "", "provider": "", "inputs": {}, "outputs": outputs}


def test_a_cell_overrides_the_defaults_and_mappings_are_merged(tmp_path: Path) -> None:
    file = read(written(tmp_path, "defaults: {size: M, shards: 1}\ncells: [{name: cell-3}, {name: cell-4, size: L}]"))
    assert [(spec.name, spec.size, spec.shards) for spec in file.specs] == [("cell-3", "M", 1), ("cell-4", "L", 1)]
    other = "registry.test/cellwall/cell@sha256:" + "c" * 64
    told = json.loads(on_aws(tmp_path, "cell-1").read_text())
    told["cells"] = [{"name": "cell-1", "images": {"worker": other}}]
    assert read(written(tmp_path, json.dumps(told))).specs[0].images == {"api": IMAGE, "worker": other}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cells: [{name: cell-3, region: eu-central-1}]", "cell-3: region: 'eu-central-1' is not to be had"),
        ("cells: [{size: S}]", "cells[0]: name: missing"),
        ("images: {router: x}", "a fleet on this machine runs this checkout"),
        ("fleet: {region: x}", "must be the folder"),
        ("cells: {", "fleet.yaml"),
        ("cells: [{name: cell-3}, cell-8]", "cells[1]: a cell is a mapping: write {name: cell-8} instead of cell-8"),
        ("cells: cell-8", "Expected `array`"),
        ("target: gcp", "gcp"),
    ],
)
def test_a_fleet_file_that_cannot_be_built_names_the_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FleetFileError) as refused:
        read(written(tmp_path, text))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_stack_on_aws_comes_after_what_it_reads_from_and_leaves_before_it(tmp_path: Path) -> None:
    file = read(on_aws(tmp_path, "cell-1", "cell-2"))
    plans = from_file(file, tmp_path, configured=False)
    cells = {f"{PROJECTS['cell']}/cell-1", f"{PROJECTS['cell']}/cell-2"}
    ground, plane, router = (f"{PROJECTS[part]}/main" for part in ("platform", "control-plane", "router"))

    up = {plan.key: set(plan.after) for plan in ordered(plans, "up")}
    assert up[ground] == set()
    assert up[plane] == {ground}
    assert all(up[cell] == {ground, plane} for cell in cells), "cells need nothing of each other"
    assert up[router] == {ground, plane, *cells}

    down = {plan.key: set(plan.after) for plan in ordered(plans, "destroy")}
    assert down[router] == set()
    assert all(down[cell] == {router} for cell in cells)
    assert down[ground] == {plane, router, *cells}
    assert not any(plan.after for plan in ordered(plans, "drift"))


def test_a_stack_on_aws_without_configuration_is_refused_before_any_other_is_touched(tmp_path: Path) -> None:
    file = read(on_aws(tmp_path, "cell-1"))
    plans = from_file(file, tmp_path, configured=False)
    configure(tmp_path, *plans[:-1])
    with pytest.raises(FleetFileError, match="cellwall-router/main has no configuration yet"):
        from_file(file, tmp_path, configured=True)
    configure(tmp_path, *plans)
    assert from_file(file, tmp_path, configured=True) == plans


def test_configuration_is_asked_of_the_chosen_stacks_alone(tmp_path: Path) -> None:
    file = read(on_aws(tmp_path, "cell-1", "cell-2"))
    with pytest.raises(FleetFileError, match=r"^cellwall-cell/cell-1, cellwall-cell/cell-2 have no conf"):
        from_file(file, tmp_path, configured=True, only=["cell-2", "cell-1"])
    configure(tmp_path, StackPlan(PROJECTS["cell"], "cell-1"))
    assert [plan.name for plan in from_file(file, tmp_path, configured=True, only=["cell-1"])] == ["cell-1"]


def test_only_stacks_of_ours_are_taken_from_the_backend() -> None:
    names = ["organization/cellwall-local/cell-3", "organization/somebody-else/prod", "cell-9"]
    plans = from_backend(json.dumps([{"name": name} for name in names]))
    assert [plan.key for plan in plans] == ["cellwall-local/cell-3"]


def test_a_stack_that_is_not_there_is_refused_rather_than_nothing_done() -> None:
    plans = (StackPlan("cellwall-local", "cell-3"), StackPlan("cellwall-local", "cell-4"))
    assert [plan.name for plan in chosen(plans, ["cellwall-local/cell-4"])] == ["cell-4"]
    with pytest.raises(FleetFileError, match="there is no stack cell-5"):
        chosen(plans, ["cell-3", "cell-5"])


def test_the_state_of_stacks_on_aws_is_never_kept_on_this_machine_by_accident() -> None:
    with pytest.raises(SurroundingsError, match="PULUMI_BACKEND_URL is not set"):
        environment({"PATH": "/usr/bin"}, "aws")


def test_secrets_on_aws_are_never_encrypted_with_a_passphrase_that_nobody_chose(tmp_path: Path) -> None:
    plan = StackPlan(PROJECTS["cell"], "cell-1")
    configure(tmp_path, plan, text="encryptionsalt: v1:x\n")
    with pytest.raises(SurroundingsError, match="PULUMI_CONFIG_PASSPHRASE is not set"):
        check([plan], tmp_path, {}, None)
    check([plan], tmp_path, {"PULUMI_CONFIG_PASSPHRASE": "x"}, None)
    configure(tmp_path, plan, text="secretsprovider: awskms://alias/cellwall\n")
    check([plan], tmp_path, {}, None)


def test_a_cell_that_another_made_is_refused_before_any_stack_is_begun(tmp_path: Path) -> None:
    file = read(written(tmp_path, f"fleet: {fleet_of(tmp_path)}\ndefaults: {{shards: 1}}\ncells: [{{name: cell-1}}]"))
    with pytest.raises(FleetFileError, match="a cell cell-1 already, made by the fleet's own start"):
        check(from_file(file, tmp_path, configured=True), tmp_path, {}, file)
    check([StackPlan("cellwall-local", "cell-1")], tmp_path, {}, None)  # to look at it, or to remove the stack


def test_the_name_of_the_old_shop_is_refused_to_a_cell_and_not_found_out_half_way(tmp_path: Path) -> None:
    fleet = Fleet(FleetSpec(zero=ZeroSpec()), fleet_of(tmp_path, ZeroSpec()), lambda _: None)
    fleet.attach()
    with pytest.raises(NameTakenError, match="cell-zero is the old shop in this fleet"):
        Stamps(fleet, owner("cellwall-local", "cell-zero")).known(LocalCellSpec("cell-zero"))


async def test_what_another_made_is_never_removed_and_does_not_keep_its_namesake_from_leaving(tmp_path: Path) -> None:
    fleet = Fleet(FleetSpec(), fleet_of(tmp_path), lambda _: None)
    fleet.attach()
    await Stamps(fleet, owner("cellwall-local", "cell-1")).remove("cell-1")
    fleet.attach()
    assert [cell.name for cell in fleet.spec.cells] == ["cell-1"]


def test_a_preview_leaves_a_configuration_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.cell-3.yaml"
    with pytest.raises(UnicodeEncodeError), unchanged(file):
        file.write_text("encryptionsalt: \N{SNOWMAN}", encoding="ascii")
    assert not file.exists()
    file.write_text("encryptionsalt: of before")
    with unchanged(file):
        file.write_text("encryptionsalt: x")
    assert file.read_text() == "encryptionsalt: of before"


def test_resources_are_counted_once_however_many_events_they_have() -> None:
    reader = Reader()
    assert reader.read(event("resourcePreEvent", metadata=metadata("create"))) == Step("creating Cell cell-3", 0, 1)
    done = Step("done with Cell cell-3", 1, 1)
    assert reader.read(event("resOutputsEvent", metadata=metadata("create"))) == done
    assert reader.read(event("resOutputsEvent", metadata=metadata("create"))) == done


def test_a_preview_never_says_that_anything_is_created() -> None:
    reader = Reader(planning=True)
    looking = reader.read(event("resourcePreEvent", metadata=metadata("create")))
    assert looking == Step("looking at Cell cell-3", 0, 1)
    assert reader.read(event("resOutputsEvent", metadata=metadata("create"))) == Step("would create Cell cell-3", 1, 1)


def test_a_stack_that_holds_nothing_but_itself_was_not_brought_up(tmp_path: Path) -> None:
    reader = Reader()
    itself = {"type": "pulumi:pulumi:Stack", "urn": CELL, "id": "", "parent": "", "provider": ""}
    reader.read(event("resourcePreEvent", metadata=metadata("refresh", old=itself)))
    reader.read(event("resourcePreEvent", metadata=metadata("refresh", old={**itself, "type": "cellwall:local:Cell"})))
    provider = {**itself, "type": "pulumi:providers:pulumi-python", "id": "x"}
    reader.read(event("resourcePreEvent", metadata=metadata("refresh", old=provider)))
    assert not reader.holds_something
    reader.read(event("resourcePreEvent", metadata=metadata("refresh", old=state(a=1))))
    assert reader.holds_something


def test_drift_does_not_call_a_stack_in_order_that_was_never_brought_up() -> None:
    plans = [StackPlan("cellwall-local", "cell-3"), StackPlan("cellwall-local", "cell-4")]
    ends = {plans[0].key: Ended("pending"), plans[1].key: Ended("unchanged")}
    assert calm(ends) == ("Not brought up yet: cellwall-local/cell-3. Everything else is as the stacks left it.")
    assert calm({plans[0].key: Ended("pending")}) == "Not brought up yet: cellwall-local/cell-3."
    assert calm({plans[1].key: Ended("unchanged")}) == "Everything is as the stacks left it."
    assert [row[1] for row in rows(plans, ends)] == ["not brought up yet", "unchanged"]


def test_a_refresh_names_what_differs_and_what_is_gone() -> None:
    reader = Reader()
    reader.read(event("resOutputsEvent", metadata=metadata("same", old=state(a=1), new=state(a=2))))
    assert reader.drift == []
    reader.read(event("resOutputsEvent", metadata=metadata("update", old=state(a="x", b=1), new=state(a="y", b=1))))
    reader.read(event("resOutputsEvent", metadata=metadata("delete", old=state(a="x"))))
    assert reader.drift == [Difference("Cell cell-3", "a: x -> y"), Difference("Cell cell-3", "is gone")]


def test_an_error_is_said_once_in_one_line_and_without_the_engines_own_words() -> None:
    reader = Reader()
    traced = (
        'Traceback (most recent call last):\n  File "x.py", line 1, in y\ninfra.local.errors.StartFailedError: no\n'
    )
    for message in (traced, "StartFailedError: no", "update failed\n", "cell-3 has a problem:\n  size: wrong"):
        reader.read(event("diagnosticEvent", message=message, color="never", severity="error"))
    assert reader.errors == ["no", "cell-3 has a problem: size: wrong"]
    assert one_line("Preview failed: CellError: there is no fleet") == "there is no fleet"
    assert one_line("error: rpc error: code = Unknown desc = CellError: it is full") == "it is full"


def test_an_up_that_had_nothing_to_do_says_so() -> None:
    reader = Reader()
    reader.read(event("summaryEvent", maybeCorrupt=False, durationSeconds=1, resourceChanges={"same": 3}))
    assert reader.ended("changed", 1.0).result == "unchanged"
    assert reader.ended("failed", 1.0).result == "failed"
    assert outcome(reader.ended("changed", 1.0)) == "unchanged (3 same)"


def test_lines_say_when_each_step_was_and_how_the_stack_ended(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([100.0, 101.5, 103.0])
    lines = Lines(clock=lambda: next(now))
    plan = StackPlan("cellwall-local", "cell-3")
    lines(plan, Step("creating Cell cell-3", 1, 4))
    lines(plan, Ended("failed", errors=["it is full"]))
    assert capsys.readouterr().err == (
        "   1.5 s  cellwall-local/cell-3: creating Cell cell-3 (1/4)\n"
        "   3.0 s  cellwall-local/cell-3: failed: it is full\n"
    )


def test_the_live_table_has_a_row_for_a_stack_that_waits_works_or_has_ended() -> None:
    plans = [StackPlan("cellwall-local", name) for name in ("cell-3", "cell-4", "cell-5")]
    show = LiveShow(plans, clock=lambda: 7.0)
    show(plans[1], Step("creating [red] cell-4", 1, 4))
    show(plans[2], Ended("changed", seconds=2.0))
    columns = [list(column.cells) for column in show.table().columns]
    assert columns[0] == ["cellwall-local/cell-3", "cellwall-local/cell-4", "cellwall-local/cell-5"]
    assert columns[1] == ["[dim]waiting", "creating \\[red] cell-4", "[green]changed"]
    assert columns[2] == ["", "1/4", ""]
    assert columns[3] == ["", "0.0", "2.0"]
