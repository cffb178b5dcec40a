"""A wrong command line of the cell is one line and status 2."""

import pytest

from cell.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "command"), (["bogus"], "bogus"), (["api", "--bogus"], "--bogus"), (["redrive", "--tenant"], "--tenant")],
)
def test_a_wrong_command_prints_its_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in said
    assert said.count("\n") == 1, said
