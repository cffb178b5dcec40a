"""From the keeper's book to the mapped table: in place where it fits, as a new file where it does not."""

from collections.abc import Callable, Sequence
from pathlib import Path

from router.board import Board, Phase
from router.book import Book, Change
from router.table_writer import NoRoomError, TableWriter
from router.wake import ring


class Publisher:
    """The one writer of a router's table. ``random`` gives bytes for hash seeds."""

    def __init__(
        self, path: Path, board: Board, wake_fds: Sequence[int], random: Callable[[int], bytes], *, generation: int
    ) -> None:
        self._path = path
        self._board = board
        self._wake_fds = tuple(wake_fds)
        self._random = random
        self._generation = generation
        self._writer: TableWriter | None = None

    def show(self, book: Book) -> None:
        """Build a new table from the whole book and send every worker to it."""
        self._generation += 1
        new = TableWriter.build(self._path, book.table(), generation=self._generation, random=self._random)
        if self._writer is not None:
            self._writer.supersede()
        self._writer = new
        ring(self._wake_fds)

    def change(self, book: Book, change: Change) -> None:
        """Commit a proposed change to the book and show it. Workers see it at their next look-up."""
        hosts = {tenant: book.routes[tenant].hosts for tenant in change.routes if tenant in book.routes}
        book.commit(change)
        try:
            self._store(book, change, hosts)
        except NoRoomError:
            self.show(book)
        else:
            ring(self._wake_fds)

    def applied(self, book: Book) -> int:
        """The newest revision that every live worker obeys. A worker that is not there yet starts with the newest."""
        live = [status for slot in self._board if (status := slot.status()).phase is not Phase.ABSENT]
        return min(
            (status.revision if status.generation == self._generation else 0 for status in live),
            default=book.revision,
        )

    def _store(self, book: Book, change: Change, hosts: dict[str, tuple[str, ...]]) -> None:
        writer = self._writer
        if writer is None:
            raise NoRoomError("there is no table yet")
        named = [route for route in change.routes.values() if route is not None]
        if change.cells or change.plans or not all(map(writer.knows, named)):
            writer.set_directory(*book.directory(named))
        for tenant, route in change.routes.items():
            if route is None:
                writer.remove(tenant, hosts.get(tenant, ()))
            else:
                writer.set_route(route, hosts.get(tenant, ()))
        writer.publish(book.revision)
