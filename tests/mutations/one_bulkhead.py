"""A router whose cells share one bulkhead; ``python -m`` this in place of ``router``."""

from typing import Any

from router import __main__, pool
from router.turns import Turns
from router.upstream import User

_pools: list[pool.Pool] = []
_waiting: Turns[User] = Turns()
_made = pool.Pool.__init__


def _shared(self: pool.Pool, *arguments: Any, **named: Any) -> None:
    _made(self, *arguments, **named)
    self._waiting = _waiting
    _pools.append(self)


def _size(self: pool.Pool) -> int:
    return sum(len(each._all) + len(each._opening) for each in _pools)


if __name__ == "__main__":
    pool.Pool.__init__ = _shared  # type: ignore[method-assign]
    pool.Pool.size = property(_size)  # type: ignore[assignment, method-assign]
    raise SystemExit(__main__.main())
