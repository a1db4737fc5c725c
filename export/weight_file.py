"""Files of weights, written rows at a time in any order, and a journal of what is complete in them.

A conversion can take an hour and be killed in any minute of it. Everything it writes goes into a directory that
appears at the end; until then the journal there has a line for each piece that was written, with its hash, so that the
next run of the same conversion checks what it finds and makes only the rest.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeblt.files import empty

JOURNAL = ".journal"
Arrays = dict[str, NDArray[Any]]
Note = dict[str, Any]  # JSON


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in a file, C-contiguous."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Bytes."""
        return self.row_bytes * self.shape[0]


@dataclass(frozen=True)
class Piece:
    """The same rows of some tensors of a file, made together."""

    name: str  # unique in its file
    first_row: int
    make: Callable[[], Arrays]


class Journal:
    """What an earlier, killed run of the same conversion left in a directory, and what this one adds."""

    def __init__(self, directory: Path, key: str) -> None:
        """`key` says what the conversion is; what another one left is removed. Raises OSError."""
        self._file = directory / JOURNAL
        lines = list(self._lines())
        self._entries: dict[str, Any] = {}
        if not lines or lines[0] != {"key": key}:
            empty(directory)
            self._append({"key": key})
        else:
            self._entries = {entry["piece"]: entry for entry in lines[1:]}

    def find(self, piece: str) -> Any:
        """Its entry, or None."""
        return self._entries.get(piece)

    def add(self, piece: str, entry: dict[str, Any]) -> None:
        self._entries[piece] = entry
        self._append({"piece": piece, **entry})

    def remove(self) -> None:
        """Once everything is complete."""
        self._file.unlink()

    def _append(self, entry: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _lines(self) -> Iterator[Any]:
        """Up to the first that is not whole."""
        if not self._file.is_file():
            return
        for line in self._file.read_bytes().split(b"\n")[:-1]:
            try:
                yield json.loads(line)
            except ValueError:
                return


class WeightFile:
    """A file whose tensors have fixed places: a context, at whose end everything must be in it."""

    def __init__(self, path: Path, slots: dict[str, Slot], journal: Journal, header: bytes = b"") -> None:
        """Its whole size is set aside on the disk now. Raises OSError, also where there is not enough room."""
        self._slots, self._journal, self._name = slots, journal, path.name
        self._missing = {name: slot.size for name, slot in slots.items()}
        self.written = 0  # bytes of the piece that was kept or written last
        self.size = max((slot.offset + slot.size for slot in slots.values()), default=len(header))
        kept = path.is_file() and path.stat().st_size == self.size
        self._file = path.open("r+b" if kept else "w+b", buffering=0)
        if not kept and self.size:
            _allocate(self._file.fileno(), self.size)
        self._file.write(header)

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        incomplete = [name for name, count in self._missing.items() if count]
        assert kind or not incomplete, f"not written, or twice: {incomplete}"

    def keeps(self, piece: str) -> Note | None:
        """The note of a piece that an earlier run completed, if it is there and as it was written."""
        entry = self._journal.find(f"{self._name}: {piece}")
        if entry is None:
            return None
        digest = hashlib.sha256()
        for offset, length in entry["regions"].values():
            digest.update(self._read(offset, length))
        if digest.hexdigest() != entry["sha256"]:
            return None
        self._count({tensor: length for tensor, (_, length) in entry["regions"].items()})
        note: Note = entry["note"]
        return note

    def write(self, piece: str, arrays: Arrays, first_row: int = 0, note: Note | None = None) -> None:
        """Write rows, from `first_row` on, of the tensors named. `note` is what `keeps` shall give: JSON.

        Arrays are of their slot's dtype and row shape, and every row is written once. Raises OSError.
        """
        digest, regions = hashlib.sha256(), {}
        for tensor, rows in arrays.items():
            slot = self._slots[tensor]
            assert rows.dtype == slot.dtype and rows.shape[1:] == slot.shape[1:], (tensor, rows.shape, rows.dtype)
            data = np.ascontiguousarray(rows).data.cast("B") if rows.size else memoryview(b"")
            regions[tensor] = (slot.offset + first_row * slot.row_bytes, len(data))
            self._write(regions[tensor][0], data)
            digest.update(data)
        entry = {"regions": regions, "sha256": digest.hexdigest(), "note": note or {}}
        self._journal.add(f"{self._name}: {piece}", entry)
        self._count({tensor: length for tensor, (_, length) in regions.items()})

    def read(self, tensor: str) -> NDArray[Any]:
        """A whole tensor."""
        slot = self._slots[tensor]
        return np.frombuffer(self._read(slot.offset, slot.size), slot.dtype).reshape(slot.shape)

    def _count(self, lengths: dict[str, int]) -> None:
        self.written = sum(lengths.values())
        for tensor, length in lengths.items():
            self._missing[tensor] -= length

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length) or b""

    def _write(self, offset: int, data: memoryview) -> None:
        self._file.seek(offset)
        while data:
            data = data[self._file.write(data) :]


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)  # a full disk shows now, not after an hour
    else:
        os.ftruncate(descriptor, size)
