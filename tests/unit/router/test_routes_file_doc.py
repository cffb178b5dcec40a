"""The documented example must load, and mean what the text around it says."""

import re
from pathlib import Path

from router.board import Board
from router.book import read_static
from router.locator import Located, Locator, Refused
from router.publisher import Publisher
from router.table import RouteTable

DOC = Path(__file__).parents[3] / "docs" / "routes-file.md"


def example() -> list[bytes]:
    blocks = re.findall(r"^```ndjson\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return blocks[0].encode().splitlines()


def test_the_example_of_the_documentation_does_what_the_documentation_says(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "routes.bin", Board.create(1), (), bytes, generation=0)
    publisher.show(read_static(example()))
    locator = Locator(RouteTable.open(tmp_path / "routes.bin"))
    served = locator.decide(b"acme.example.test", None, None)
    assert isinstance(served, Located)
    assert (served.tenant, served.cell.address, served.plan.requests_per_s) == (b"t1042", "127.0.0.1:9001", 500.0)
    statuses = {}
    for host in (b"initech.example.test", b"other.example.test"):
        refused = locator.decide(host, None, None)
        assert isinstance(refused, Refused)
        statuses[host] = refused.problem.status
    assert statuses == {b"initech.example.test": 403, b"other.example.test": 404}
