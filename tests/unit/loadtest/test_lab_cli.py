"""The lab's command line: what is wrong is one line and status 2, and what a file would run is said without running."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.local import commandline
from loadtest.lab import reading
from loadtest.lab.__main__ import main


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        commandline.run(main, "loadtest.lab", arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_a_wrong_file_starts_a_fleet_or_is_told_in_many_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("kind: soak\nname: mine\nvictims:\n  rats: 1\n")
    for command in ("run", "check"):
        assert status(command, str(file)) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert f"{file}:4: victims.rats: there is no such field" in told


def test_options_that_exclude_each_other_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("run", "soak", "--fleet", "local", "--base-url", "http://127.0.0.1:1") == 2
    assert "exclude each other" in capsys.readouterr().err
    assert status("run", "soak", "--repeat", "0") == 2
    assert "--repeat" in capsys.readouterr().err


def test_what_a_file_would_run_is_not_said() -> None:
    said = CliRunner().invoke(main, ["check", "noisy-short"])
    assert said.exit_code == 0
    phases = reading.read(reading.find("noisy-short")).phases
    seconds = phases.warmup + phases.alone + phases.load + phases.after
    assert f"noisy-short: 4 runs (4 x 1) of {seconds:.0f} s, {4 * seconds / 60:.1f} minutes of traffic" in said.output
    assert "with --peer 2 runs more" in said.output
    assert "heavy-query_x4_same_walls-off" in said.output
    listed = CliRunner().invoke(main, ["list"])
    assert "blast-radius" in listed.output


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--case", "no-such-case"), "has no case 'no-such-case'; it has walls-on"),
        (("--base-url", "https://shop.example.test"), "no base URL of the form http://HOST:PORT"),
        (("--base-url", "http://[::1"), "is no base URL"),
    ],
)
def test_options_that_cannot_be_meant_look_like_a_run_that_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, str], told: str
) -> None:
    folders = ("--state", str(tmp_path / "fleet"), "--out", str(tmp_path / "out"))
    assert status("run", "soak", *folders, *wrong) == 2
    assert told in " ".join(capsys.readouterr().out.split())
