"""A process that reads the table while another changes it must never see half of a change, nor miss one."""

import os
import subprocess
import sys
from pathlib import Path

from contracts.routes import Cell, Header, Plan, Route
from router.board import Board
from router.book import Book
from router.publisher import Publisher

CHANGES = 4000
REBUILD_EVERY = 500

# An even epoch is published with cell-2 and an odd one with cell-1; under every key, epochs only rise.
READER = """
import sys
from pathlib import Path
from router.table import RouteTable
table = RouteTable.open(Path(sys.argv[1]))
print("ready", flush=True)
keys, last, looks, ended = (b"a.test", b"b.test", b"@t1"), 0, 0, False
while not ended:
    ended = table.lookup(b"end.test") is not None
    for key in keys:
        found = table.lookup(key)
        assert found is not None and found.tenant == b"t1", (key, found)
        assert found.cell.name == ("cell-2" if found.epoch % 2 == 0 else "cell-1"), found
        assert found.epoch >= last, (found, last)
        last = found.epoch
        looks += 1
print(last, looks, table.generation)
"""


def test_no_reader_sees_half_of_a_change(tmp_path: Path) -> None:
    path = tmp_path / "routes.bin"
    route = Route("t1", ("a.test", "b.test"), "cell-1", 1, "free")
    cells = (Cell("cell-1", "127.0.0.1:1"), Cell("cell-2", "127.0.0.1:2"), Plan("free"))
    book = Book.from_snapshot(Header("log", 1), [*cells, route])
    publisher = Publisher(path, Board.create(1), (), os.urandom, generation=0)
    publisher.show(book)
    with subprocess.Popen([sys.executable, "-c", READER, str(path)], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for epoch in range(2, CHANGES + 2):
            changed = Route("t1", ("a.test", "b.test"), f"cell-{2 - epoch % 2}", epoch, "free")
            publisher.change(book, book.propose(Header("log", epoch, "changes", epoch - 1), [changed]))
            if epoch % REBUILD_EVERY == 0:
                publisher.show(book)
        end = Route("end", ("end.test",), "cell-1", 1, "free")
        publisher.change(book, book.propose(Header("log", CHANGES + 2, "changes", CHANGES + 1), [end]))
        out, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0
    last, looks, generation = map(int, out.split())
    assert (last, generation) == (CHANGES + 1, 1 + CHANGES // REBUILD_EVERY)
    assert looks > 0
