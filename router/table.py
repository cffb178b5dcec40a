"""The mapped route table: one file that the keeper writes and every worker reads, with no lock between them.

Open addressing over 64-bit key hashes (xxh3 with a random seed for each file). A slot is two words: the hash, and a
reference (offset of the full key in the name heap, number of the record). A record is two words: the route, packed in
one word, and the offset of the tenant's name. All keys of a tenant (its id and every host) refer to one record, so a
change of a tenant is **one aligned 8-byte store**, and no reader can see half of it.

Keys: a host as it is, in lower case; a tenant id behind ``@`` (`tenant_key`), which no host can contain. Full keys are
compared after the hash matched, because custom domains let an attacker choose keys.

Rules that make reading safe beside the writer: within one file a slot never changes its key, a record never changes
its tenant, nothing is moved. A new key is written value first, hash last. Cells and plans stand in the directory, a
checksummed text that is read again when the stamp word changes. A rebuilt table is another file under the same path;
the stamp of the old one then says *superseded*, and readers map the new one at their next look-up.
"""

import contextlib
import mmap
import os
import sys
import zlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from contracts.routes import CellState

MAGIC: Final = int.from_bytes(b"cwroute2", "little")
HEADER_WORDS: Final = 32
MAX_KEY: Final = 253

# Words of the header.
H_MAGIC, H_GENERATION, H_STAMP, H_REVISION, H_COMPLETE, H_SEED = range(6)
H_MASK, H_SLOTS, H_RECORDS, H_RECORDS_END, H_RECORDS_USED = range(6, 11)
H_NAMES, H_NAMES_END, H_NAMES_USED, H_DIRECTORY, H_DIRECTORY_END, H_KEYS_USED = range(11, 17)

SUPERSEDED: Final = 1 << 63  # in the stamp: a newer file stands under the path

RECORD_BITS: Final = 28  # low bits of a slot's reference; record 0 is "nothing"
RECORD_MASK: Final = (1 << RECORD_BITS) - 1

# The packed route: epoch 40 bits, cell 14, plan 7, state 3. A live route is never 0, because its epoch is not.
EPOCH_SHIFT, CELL_SHIFT, PLAN_SHIFT = 24, 10, 3
CELL_LIMIT: Final = 1 << 14  # a fleet of 10,000 cells fits: docs/plans.md
PLAN_LIMIT: Final = 1 << 7
_STATE_MASK: Final = (1 << PLAN_SHIFT) - 1

_CACHE_LIMIT: Final = 8192


class TableError(Exception):
    """A file that is no route table of this format, or a table that cannot hold what it was given."""


class RouteState(IntEnum):
    """What a router does with a tenant's requests."""

    ACTIVE = 1
    HELD = 2
    SUSPENDED = 3


_STATES: Final = {state.value: state for state in RouteState}  # without the cost of calling the enum


@dataclass(frozen=True, slots=True)
class Caps:
    """The bulkhead of one cell in one worker: connections, requests that wait for one, requests in flight."""

    connections: int
    pending: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class CellEntry:
    """Where a cell listens. The address may change: pools are keyed by (name, address). "" means not known."""

    name: str
    address: str
    caps: Caps
    state: CellState = "active"


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """The limits of a plan, for one tenant at one router."""

    name: str
    requests_per_s: float
    burst: int
    in_flight: int


class Located(msgspec.Struct, frozen=True, gc=False):
    """One tenant's route at one moment. A struct, because making a frozen dataclass costs five times as much."""

    tenant: bytes
    cell: CellEntry
    epoch: int
    state: RouteState
    plan: PlanEntry


class Directory(msgspec.Struct, frozen=True):
    """Cells and plans by number. A number keeps its meaning for the life of the file."""

    log_id: str
    cells: tuple[CellEntry, ...]
    plans: tuple[PlanEntry, ...]


_directory_decoder = msgspec.json.Decoder(Directory)


def tenant_key(tenant: bytes) -> bytes:
    """The key under which a tenant id stands; a host stands under itself."""
    return b"@" + tenant


def pack(epoch: int, cell: int, state: RouteState, plan: int) -> int:
    """The route as one word."""
    return epoch << EPOCH_SHIFT | cell << CELL_SHIFT | plan << PLAN_SHIFT | state


class RouteTable:
    """A reader. Not for two threads; as many processes as you like, beside one writer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: dict[bytes, tuple[int, int, int, int, Located]] = {}
        self._map()

    @classmethod
    def open(cls, path: Path | str) -> "RouteTable":
        """Map the table at ``path``; `FileNotFoundError` or `TableError` where there is none."""
        return cls(Path(path))

    @property
    def generation(self) -> int:
        """Rises with every rebuild."""
        self._current()
        return self._words[H_GENERATION]

    @property
    def revision(self) -> int:
        """The revision of the route log that a look-up sees by now."""
        self._current()
        return self._words[H_REVISION]

    @property
    def log_id(self) -> str:
        """Which route log the revision counts in."""
        self._current()
        return self._directory.log_id

    @property
    def complete(self) -> bool:
        """Whether it was made from a whole snapshot. Where not, an unknown key means nothing."""
        self._current()
        return self._words[H_COMPLETE] == 1

    @property
    def cells(self) -> tuple[CellEntry, ...]:
        """Every cell of the table."""
        self._current()
        return self._directory.cells

    def cell(self, name: str) -> CellEntry | None:
        """A cell by its name."""
        return next((c for c in self.cells if c.name == name), None)

    def plan(self, name: str) -> PlanEntry | None:
        """A plan by its name."""
        self._current()
        return next((p for p in self._directory.plans if p.name == name), None)

    def lookup(self, key: bytes) -> Located | None:
        """The route of a host (lower case, no port) or of a `tenant_key`; None where there is none."""
        words = self._words
        if words[H_STAMP] != self._stamp:
            self._catch_up()
            words = self._words
        hit = self._cache.get(key)
        if hit is not None and words[hit[0]] == hit[1] and words[hit[2]] == hit[3]:
            return hit[4]
        return self._find(key)

    def refresh(self) -> None:
        """Map the newest file. Look-ups notice a rebuild by themselves; this also finds one whose writer died
        before it could mark the old file. Where the path is gone, the mapped file stays in use."""
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino != self._inode:
                self._remap()
        self._current()

    def close(self) -> None:
        """Unmap; the table must not be used afterwards."""
        self._cache.clear()
        self._words.release()
        self._memory.close()

    def _find(self, key: bytes) -> Located | None:
        length = len(key)
        if length > MAX_KEY:
            return None
        words, memory = self._words, self._memory
        mask, slots, names = self._mask, self._slots, self._names
        wanted = xxhash.xxh3_64_intdigest(key, self._seed) or 1
        index = wanted & mask
        while True:
            slot = slots + 2 * index
            found = words[slot]
            if found == 0:
                return None
            if found == wanted:
                ref = words[slot + 1]
                at = names + (ref >> RECORD_BITS)
                if memory[at] == length and memory[at + 1 : at + 1 + length] == key:
                    return self._read(key, slot + 1, ref)
            index = (index + 1) & mask

    def _read(self, key: bytes, slot: int, ref: int) -> Located | None:
        record = self._records + 2 * (ref & RECORD_MASK)
        value = self._words[record]
        if value == 0:
            return None
        at = self._names + self._words[record + 1]
        tenant = self._memory[at + 2 : at + 1 + self._memory[at]]  # without its "@"
        located = self._unpack(tenant, value)
        if len(self._cache) >= _CACHE_LIMIT:
            self._cache.clear()
        self._cache[key] = (slot, ref, record, value, located)
        return located

    def _unpack(self, tenant: bytes, value: int) -> Located:
        cell, plan = value >> CELL_SHIFT & CELL_LIMIT - 1, value >> PLAN_SHIFT & PLAN_LIMIT - 1
        if cell >= len(self._directory.cells) or plan >= len(self._directory.plans):
            self._read_directory()  # the route was stored after the directory that names its cell
        directory = self._directory
        state = _STATES[value & _STATE_MASK]
        return Located(tenant, directory.cells[cell], value >> EPOCH_SHIFT, state, directory.plans[plan])

    def _current(self) -> None:
        if self._words[H_STAMP] != self._stamp:
            self._catch_up()

    def _catch_up(self) -> None:
        while self._words[H_STAMP] & SUPERSEDED:
            self._remap()
        if self._words[H_STAMP] != self._stamp:
            self._read_directory()

    def _remap(self) -> None:
        words, memory = self._words, self._memory
        self._map()
        words.release()
        memory.close()

    def _map(self) -> None:
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(memory) < 8 * HEADER_WORDS or int.from_bytes(memory[:8], sys.byteorder) != MAGIC:
            memory.close()
            raise TableError(f"{self._path} is not a route table of this format")
        words = memoryview(memory).cast("Q")
        self._inode, self._memory, self._words = inode, memory, words
        self._seed, self._mask = words[H_SEED], words[H_MASK]
        self._slots, self._records, self._names = words[H_SLOTS], words[H_RECORDS], words[H_NAMES]
        self._stamp = -1
        self._cache.clear()
        self._read_directory()

    def _read_directory(self) -> None:
        """Take the directory over. Caught in the middle of a change, keep the old one and try at the next look-up."""
        stamp = self._words[H_STAMP]
        at = self._words[H_DIRECTORY]
        size, check = self._words[at // 8], self._words[at // 8 + 1]
        text = self._memory[at + 16 : at + 16 + size]
        if zlib.crc32(text) != check:
            if self._stamp == -1:
                raise TableError(f"{self._path} has a broken directory")
            return
        self._directory = _directory_decoder.decode(text)
        self._cache.clear()
        self._stamp = stamp & ~SUPERSEDED
