"""What a fleet leaves behind when it goes."""

import shutil
from pathlib import Path

import pytest

from infra.local.errors import LocalFleetError
from infra.local.state import Folder


def test_a_server_that_writes_while_its_data_goes_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path / "fleet")
    folder.make()
    late = folder.data / "shard" / "pg_stat"
    late.mkdir(parents=True)
    remove, rounds = shutil.rmtree, []

    def removed(path: Path, *, ignore_errors: bool = False) -> None:
        remove(path, ignore_errors=ignore_errors)
        if path == folder.data:
            rounds.append(path)
        if len(rounds) == 1 and not late.exists():  # as a checkpointer that was on its way
            late.mkdir(parents=True)

    monkeypatch.setattr("infra.local.state.shutil.rmtree", removed)
    monkeypatch.setattr("infra.local.state.time.sleep", lambda _: None)
    folder.remove()
    assert (len(rounds), folder.data.exists()) == (2, False)


def test_data_that_cannot_be_removed_is_said_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path / "fleet")
    folder.make()
    folder.data.mkdir(exist_ok=True)
    monkeypatch.setattr("infra.local.state.shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr("infra.local.state.time.sleep", lambda _: None)
    with pytest.raises(LocalFleetError, match="cannot be removed"):
        folder.remove()
