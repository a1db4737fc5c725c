"""Files of weights, written rows at a time in any order, and a journal of what is complete in them.

A conversion can take an hour and be killed in any minute of it. Everything it writes goes into a directory that
appears at the end; until then the journal there has a line for each piece that was written, with its hash, so that the
next run of the same conversion checks what it finds and makes only the rest.
"""

import errno
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

from edgeblt.bundle.whole_files import empty, flush

JOURNAL = ".journal"
_AT_A_TIME = 1 << 20  # bytes read again to be checked
Arrays = dict[str, NDArray[Any]]
Note = dict[str, Any]  # JSON


@dataclass(frozen=True)
class Slot:
    """Place of a tensor in a file, C-contiguous."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.row_bytes * self.shape[0]


@dataclass(frozen=True)
class Piece:
    """Rows of one or more tensors of a file that are computed together."""

    name: str  # unique in its file
    first_row: int | dict[str, int]  # the same for all tensors, or by tensor
    make: Callable[[], Arrays]


class Journal:
    """Pieces completed by an earlier, interrupted run of the same conversion, and by this one.

    A line starts with its newline and the hash of its content, so a truncated or damaged line is ignored, and spoils no
    other.
    """

    def __init__(self, directory: Path, key: str) -> None:
        """`key` identifies the conversion; the journal of any other is removed. Raises OSError."""
        self._directory, self._file = directory, directory / JOURNAL
        lines = list(self._lines())
        self._entries: dict[str, Any] = {}
        if not lines or lines[0] != {"key": key}:
            empty(directory)
            self._append({"key": key})
        else:
            self._entries = {entry["piece"]: entry for entry in lines[1:]}
            empty(directory, {JOURNAL} | {piece.partition(": ")[0] for piece in self._entries})

    def find(self, piece: str) -> Any:
        """The entry of a piece, or None."""
        return self._entries.get(piece)

    def add(self, piece: str, entry: dict[str, Any]) -> None:
        """Records a completed piece, named "FILE: NAME"."""
        self._entries[piece] = entry
        self._append({"piece": piece, **entry})

    def finish(self) -> None:
        """Flushes all pieces to the disk, and only then removes the journal. Raises OSError."""
        flush(self._directory)
        self._file.unlink()

    def _append(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry).encode()
        with self._file.open("ab") as file:
            file.write(b"\n%s %s" % (_seal(text), text))

    def _lines(self) -> Iterator[Any]:
        """Entries of the lines that are whole."""
        if not self._file.is_file():
            return
        for line in self._file.read_bytes().split(b"\n"):
            seal, _, text = line.partition(b" ")
            if seal == _seal(text):
                yield json.loads(text)


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


class WeightFile:
    """A file of tensors at fixed places; a context manager, at whose end every tensor must have been written."""

    def __init__(self, path: Path, slots: dict[str, Slot], journal: Journal, header: bytes = b"") -> None:
        """Reserves the whole size on the disk. Raises OSError, also if there is not enough room."""
        self._slots, self._journal, self._name = slots, journal, path.name
        self._missing = {name: slot.size for name, slot in slots.items()}
        self.written = 0  # bytes of the piece that was kept or written last
        self.size = max((slot.offset + slot.size for slot in slots.values()), default=len(header))
        kept = path.is_file() and path.stat().st_size == self.size
        self._file = path.open("r+b" if kept else "w+b", buffering=0)
        try:
            if not kept and self.size:
                _allocate(self._file.fileno(), self.size)
            self._write_between(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        incomplete = [name for name, count in self._missing.items() if count]
        assert kind or not incomplete, f"not written, or twice: {incomplete}"

    def keeps(self, piece: str) -> Note | None:
        """The note of a piece that an earlier run completed, if its content is unchanged; else None."""
        entry = self._journal.find(f"{self._name}: {piece}")
        if entry is None:
            return None
        digest = hashlib.sha256()
        for offset, length in entry["regions"].values():
            for start in range(offset, offset + length, _AT_A_TIME):
                digest.update(self._read(start, min(_AT_A_TIME, offset + length - start)))
        if digest.hexdigest() != entry["sha256"]:
            return None
        self._count({tensor: length for tensor, (_, length) in entry["regions"].items()})
        note: Note = entry["note"]
        return note

    def write(self, piece: str, arrays: Arrays, first_row: int | dict[str, int] = 0, note: Note | None = None) -> None:
        """Write rows, from `first_row` on, of the tensors named. `note` is the JSON that `keeps` returns.

        Arrays are of their slot's dtype and row shape, and every row is written once. Raises OSError.
        """
        digest, regions = hashlib.sha256(), {}
        for tensor, rows in arrays.items():
            slot = self._slots[tensor]
            assert rows.dtype == slot.dtype and rows.shape[1:] == slot.shape[1:], (tensor, rows.shape, rows.dtype)
            data = np.ascontiguousarray(rows).data.cast("B") if rows.size else memoryview(b"")
            first = first_row if isinstance(first_row, int) else first_row[tensor]
            regions[tensor] = (slot.offset + first * slot.row_bytes, len(data))
            self._write(regions[tensor][0], data)
            digest.update(data)
        entry = {"regions": regions, "sha256": digest.hexdigest(), "note": note or {}}
        self._journal.add(f"{self._name}: {piece}", entry)
        self._count({tensor: length for tensor, (_, length) in regions.items()})

    def read(self, tensor: str) -> NDArray[Any]:
        """A whole tensor."""
        slot = self._slots[tensor]
        return np.frombuffer(self._read(slot.offset, slot.size), slot.dtype).reshape(slot.shape)

    def _write_between(self, header: bytes) -> None:
        """Writes the header, and zeros between the tensors, which no piece covers."""
        self._write(0, memoryview(header))
        end = len(header)
        for slot in sorted(self._slots.values(), key=lambda slot: slot.offset):
            self._write(end, memoryview(bytes(slot.offset - end)))
            end = slot.offset + slot.size

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
    """Reserves disk space, so that a full disk shows now and not after an hour; some systems cannot."""
    if not hasattr(os, "posix_fallocate"):
        os.ftruncate(descriptor, size)
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.ftruncate(descriptor, size)
