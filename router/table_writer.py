"""The one writer of the route table (the keeper): builds the file, then changes it in place while workers read.

`table` has the format and the rules that make this safe. Whatever does not fit in place (no room for a key, a name, a
cell) raises `NoRoomError`, and the caller builds a new file, which has room for as much again.
"""

import mmap
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from contracts import routes
from router.table import (
    CELL_LIMIT,
    H_COMPLETE,
    H_DIRECTORY,
    H_DIRECTORY_END,
    H_GENERATION,
    H_KEYS_USED,
    H_MAGIC,
    H_MASK,
    H_NAMES,
    H_NAMES_END,
    H_NAMES_USED,
    H_RECORDS,
    H_RECORDS_END,
    H_RECORDS_USED,
    H_REVISION,
    H_SEED,
    H_SLOTS,
    H_STAMP,
    HEADER_WORDS,
    MAGIC,
    PLAN_LIMIT,
    RECORD_BITS,
    RECORD_MASK,
    SUPERSEDED,
    Caps,
    CellEntry,
    Directory,
    PlanEntry,
    RouteState,
    TableError,
    pack,
    tenant_key,
)

_STATES: Final[Mapping[routes.State, RouteState]] = {
    "active": RouteState.ACTIVE,
    "held": RouteState.HELD,
    "suspended": RouteState.SUSPENDED,
}
_LOAD_LIMIT: Final = 0.7  # of the slots; linear probing stays short below it


class NoRoomError(TableError):
    """The change does not fit into this file: build a new one."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a table is built from."""

    log_id: str
    revision: int
    complete: bool
    cells: Sequence[CellEntry]
    plans: Sequence[PlanEntry]
    routes: Iterable[routes.Route]


def cell_entry(record: routes.Cell) -> CellEntry:
    """A cell's record as the table keeps it."""
    caps = Caps(record.connections, record.pending, record.in_flight)
    return CellEntry(record.cell, record.address, caps, record.state)


def plan_entry(record: routes.Plan) -> PlanEntry:
    """A plan's record as the table keeps it."""
    return PlanEntry(record.plan, record.requests_per_s, record.burst, record.in_flight)


def unknown_cell(name: str) -> CellEntry:
    """The entry of a cell that routes name and no record describes: no address, so it is unavailable."""
    return cell_entry(routes.Cell(name, ""))


class TableWriter:
    """The file under construction or in place. One at a time for each path."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("Q")
        words = self._words
        self._seed, self._mask = words[H_SEED], words[H_MASK]
        at = words[H_DIRECTORY]
        size = words[at // 8]
        directory = msgspec.json.decode(memory[at + 16 : at + 16 + size], type=Directory)
        self._take(directory)

    @classmethod
    def build(cls, path: Path, snapshot: Snapshot, *, generation: int, random: Callable[[int], bytes]) -> "TableWriter":
        """Write a new file and put it in place of the old one (write, fsync, rename). Nothing half is ever seen.

        The caller marks the old one with `supersede` afterwards. `random` gives the bytes of the hash seed.
        """
        builder = _Builder(snapshot, int.from_bytes(random(8), "little"))
        image = builder.image(snapshot, generation)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                for part in image:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            with temporary.open("r+b") as file:
                memory = mmap.mmap(file.fileno(), 0)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        return cls(memory)

    @property
    def generation(self) -> int:
        """The number of this file."""
        return self._words[H_GENERATION]

    def knows(self, route: routes.Route) -> bool:
        """Whether the directory has the cell and the plan of a route."""
        return route.cell in self._cells and route.plan in self._plans

    def set_route(self, route: routes.Route, old_hosts: Iterable[str] = ()) -> None:
        """Store a tenant's route; ``old_hosts`` that it no longer has are taken out. `NoRoomError` changes nothing
        that a reader could see."""
        word = self._word(route)
        keys = [tenant_key(route.tenant.encode())] + [host.encode() for host in route.hosts]
        slot, ref = self._find(keys[0])
        record = ref & RECORD_MASK
        self._need_room([key for key in keys if self._find(key)[1] == 0], new_record=record == 0)
        if record == 0:
            record = self._new_record(keys[0], slot, word)
        else:
            self._words[self._record_at(record)] = word
        for key in keys[1:]:
            self._refer(key, record)
        for host in set(old_hosts) - set(route.hosts):
            self._forget(host.encode(), record)

    def remove(self, tenant: str, hosts: Iterable[str]) -> None:
        """Take a tenant out with all of its keys: one store for readers, then its hosts are let go."""
        _, ref = self._find(tenant_key(tenant.encode()))
        record = ref & RECORD_MASK
        if record:
            self._words[self._record_at(record)] = 0
        for host in hosts:
            self._forget(host.encode(), record)

    def set_directory(self, cells: Iterable[CellEntry], plans: Iterable[PlanEntry]) -> None:
        """Store cells and plans. Names keep their numbers, new ones get the next; one that is absent now stays, with
        no address where it is a cell (its routes must not silently mean another cell)."""
        present = {c.name: c for c in cells}
        kept = [present.pop(c.name, unknown_cell(c.name)) for c in self._directory.cells]
        limits = {p.name: p for p in plans}
        kept_plans = [limits.pop(p.name, p) for p in self._directory.plans]
        new = Directory(self._directory.log_id, (*kept, *present.values()), (*kept_plans, *limits.values()))
        if new == self._directory:
            return
        try:
            text = _directory_text(new)
        except TableError as e:
            raise NoRoomError(str(e)) from e
        at = self._words[H_DIRECTORY]
        if at + len(text) > self._words[H_DIRECTORY_END]:
            raise NoRoomError("no room for the cells and plans")
        self._memory[at : at + len(text)] = text
        self._words[H_STAMP] += 1
        self._take(new)

    def publish(self, revision: int) -> None:
        """Say which revision the table shows by now."""
        self._words[H_REVISION] = revision

    def supersede(self) -> None:
        """Send every reader to the file that stands under the path now, and unmap this one."""
        self._words[H_STAMP] |= SUPERSEDED
        self.close()

    def close(self) -> None:
        """Unmap. The file stays."""
        self._words.release()
        self._memory.close()

    def _take(self, directory: Directory) -> None:
        self._directory = directory
        self._cells = {cell.name: number for number, cell in enumerate(directory.cells)}
        self._plans = {plan.name: number for number, plan in enumerate(directory.plans)}

    def _word(self, route: routes.Route) -> int:
        try:
            cell, plan = self._cells[route.cell], self._plans[route.plan]
        except KeyError as e:
            raise NoRoomError(f"{e.args[0]} is not in the directory") from None
        return pack(route.epoch, cell, _STATES[route.state], plan)

    def _find(self, key: bytes) -> tuple[int, int]:
        """The slot of a key and its reference, or the empty slot where it belongs and 0."""
        words, memory, names = self._words, self._memory, self._words[H_NAMES]
        wanted = xxhash.xxh3_64_intdigest(key, self._seed) or 1
        index = wanted & self._mask
        while True:
            slot = words[H_SLOTS] + 2 * index
            if words[slot] == 0:
                return slot, 0
            if words[slot] == wanted:
                at = names + (words[slot + 1] >> RECORD_BITS)
                if memory[at] == len(key) and memory[at + 1 : at + 1 + len(key)] == key:
                    return slot, words[slot + 1]
            index = (index + 1) & self._mask

    def _need_room(self, new_keys: Sequence[bytes], *, new_record: bool) -> None:
        words = self._words
        names = sum(1 + len(key) for key in new_keys)
        if (
            words[H_KEYS_USED] + len(new_keys) > _LOAD_LIMIT * (self._mask + 1)
            or words[H_NAMES_USED] + names > words[H_NAMES_END] - words[H_NAMES]
            or (new_record and words[H_RECORDS_USED] >= words[H_RECORDS_END])
        ):
            raise NoRoomError("no room for the route")

    def _new_record(self, key: bytes, slot: int, word: int) -> int:
        """A record for a tenant key. The value stands before the key can be found."""
        words = self._words
        record = words[H_RECORDS_USED]
        name = self._add_name(key)
        at = self._record_at(record)
        words[at + 1] = name
        words[at] = word
        words[H_RECORDS_USED] = record + 1
        self._add_slot(slot, key, name, record)
        return record

    def _refer(self, key: bytes, record: int) -> None:
        slot, ref = self._find(key)
        if ref == 0:
            self._add_slot(slot, key, self._add_name(key), record)
        elif ref & RECORD_MASK != record:
            self._words[slot + 1] = (ref & ~RECORD_MASK) | record

    def _forget(self, key: bytes, record: int) -> None:
        slot, ref = self._find(key)
        if ref and ref & RECORD_MASK == record:
            self._words[slot + 1] = ref & ~RECORD_MASK

    def _add_name(self, key: bytes) -> int:
        words = self._words
        name = words[H_NAMES_USED]
        at = words[H_NAMES] + name
        self._memory[at : at + 1 + len(key)] = bytes((len(key),)) + key
        words[H_NAMES_USED] = name + 1 + len(key)
        return name

    def _add_slot(self, slot: int, key: bytes, name: int, record: int) -> None:
        self._words[slot + 1] = name << RECORD_BITS | record
        self._words[slot] = xxhash.xxh3_64_intdigest(key, self._seed) or 1
        self._words[H_KEYS_USED] += 1

    def _record_at(self, record: int) -> int:
        return self._words[H_RECORDS] + 2 * record


class _Builder:
    """Lays a snapshot out in memory."""

    def __init__(self, snapshot: Snapshot, seed: int) -> None:
        self._seed = seed
        self._cells = {cell.name: number for number, cell in enumerate(snapshot.cells)}
        self._plans = {plan.name: number for number, plan in enumerate(snapshot.plans)}
        self._names = bytearray(b"\0")  # offset 0 is nobody's, so no reference is 0
        self._records = array("Q", (0, 0))
        self._keys = array("Q")  # hash, reference; in pairs
        for route in snapshot.routes:
            self._add(route)

    def image(self, snapshot: Snapshot, generation: int) -> "list[bytes | bytearray | array[int]]":
        """The parts of the file, in order. Every part has room for as much again."""
        slots, mask = self._slots()
        records_end = max(64, len(self._records))
        names_end = _round(max(4096, 2 * len(self._names)))
        directory = _directory_text(Directory(snapshot.log_id, tuple(snapshot.cells), tuple(snapshot.plans)))
        directory_size = _round(max(65536, 2 * len(directory)))
        header = array("Q", bytes(8 * HEADER_WORDS))
        header[H_MAGIC], header[H_GENERATION], header[H_SEED], header[H_MASK] = MAGIC, generation, self._seed, mask
        header[H_REVISION], header[H_COMPLETE] = snapshot.revision, int(snapshot.complete)
        header[H_SLOTS], header[H_KEYS_USED] = HEADER_WORDS, len(self._keys) // 2
        header[H_RECORDS] = HEADER_WORDS + len(slots)
        header[H_RECORDS_USED], header[H_RECORDS_END] = len(self._records) // 2, records_end
        header[H_NAMES] = 8 * (header[H_RECORDS] + 2 * records_end)
        header[H_NAMES_USED], header[H_NAMES_END] = len(self._names), header[H_NAMES] + names_end
        header[H_DIRECTORY] = header[H_NAMES_END]
        header[H_DIRECTORY_END] = header[H_DIRECTORY] + directory_size
        return [
            header,
            slots,
            self._records,
            bytes(8 * (2 * records_end - len(self._records))),
            self._names,
            bytes(names_end - len(self._names)),
            directory,
            bytes(directory_size - len(directory)),
        ]

    def _add(self, route: routes.Route) -> None:
        record = len(self._records) // 2
        key = tenant_key(route.tenant.encode())
        name = len(self._names)
        self._key(key, record)
        for host in route.hosts:
            self._key(host.encode(), record)
        word = pack(route.epoch, self._cells[route.cell], _STATES[route.state], self._plans[route.plan])
        self._records.extend((word, name))

    def _key(self, key: bytes, record: int) -> None:
        name = len(self._names)
        self._names.append(len(key))
        self._names += key
        self._keys.append(xxhash.xxh3_64_intdigest(key, self._seed) or 1)
        self._keys.append(name << RECORD_BITS | record)

    def _slots(self) -> "tuple[array[int], int]":
        count = 64
        while len(self._keys) // 2 > 0.5 * count:
            count *= 2
        mask = count - 1
        slots = array("Q", bytes(16 * count))
        keys = iter(self._keys)
        for wanted, ref in zip(keys, keys, strict=True):
            at = 2 * (wanted & mask)
            while slots[at]:
                at = (at + 2) & (2 * mask + 1)
            slots[at] = wanted
            slots[at + 1] = ref
        return slots, mask


def _directory_text(directory: Directory) -> bytes:
    """Length and checksum in a word each, then the text; padded to whole words."""
    if len(directory.cells) > CELL_LIMIT or len(directory.plans) > PLAN_LIMIT:
        raise TableError(f"a route table holds at most {CELL_LIMIT} cells and {PLAN_LIMIT} plans")
    text = msgspec.json.encode(directory)
    head = array("Q", (len(text), zlib.crc32(text))).tobytes()
    return head + text + bytes(-len(text) % 8)


def _round(size: int) -> int:
    return -(-size // 8) * 8


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
