"""Tensors in a file that `torch.save` wrote (`.pth`, `.bin`): their list, and reading some rows at a time.

Such a file is a zip archive, stored uncompressed:

    ARCHIVE/data.pkl        a pickle: names, shapes and strides (`pickle_reader`)
    ARCHIVE/data/KEY        the elements of one or more tensors
    ARCHIVE/byteorder       "little"; absent before torch 2.1

Source: torch's `serialization.py`. Every error of the file becomes an EdgebltError that names it.
"""

import math
import shlex
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgeblt.bundle.held_files import unreadable
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.files.pickle_reader import OtherTensor, PickleError, TensorRecord, read_pickle
from edgeblt.export.checkpoints.files.safetensors_files import DTYPES, HEADER_LIMIT, finite_float32

_SIZES = dict(DTYPES.values())
_PICKLE, _BYTE_ORDER = "data.pkl", "byteorder"
_REMEDY = "download it again"
# A pickle of the number that torch wrote first, before it wrote zip archives.
_OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# An entry's own header: its first bytes, its length, and the places of the lengths of name and extra field.
_ENTRY_START, _ENTRY_SIZE, _ENTRY_LENGTHS = b"PK\x03\x04", 30, slice(26, 30)

Version = tuple[int, int, int]


@dataclass(frozen=True)
class PickledTensor:
    """One tensor of one file; its data stay in the file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    stored_dtype: str  # torch's name of the dtype
    start: int  # offset in the file, in bytes
    version: Version  # state of the file when it was opened

    @property
    def dtype(self) -> str:
        """ "bfloat16", "float16", "float32" or "float64"; raises EdgebltError for any other."""
        if self.stored_dtype not in _SIZES:
            raise EdgebltError(
                f"{self.file}: the tensor {self.name!a} is stored as {self.stored_dtype}; "
                "give a checkpoint in bfloat16, float16, float32 or float64"
            )
        return self.stored_dtype

    @property
    def stored_bytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` (along the first axis), float32, C-contiguous, in memory of their own."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        shape = (max(stop - start, 0), *self.shape[1:])
        row = math.prod(self.shape[1:]) * _SIZES[self.dtype]
        content = bytearray(shape[0] * row)
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.start + start * row)
                if _version(self.file) != self.version or stream.readinto(content) != len(content):
                    raise EdgebltError(f"{self.file} has changed since it was opened; open the checkpoint again")
        except OSError as error:
            raise unreadable(self.file, error, _REMEDY) from None
        rows = torch.empty(shape)
        if content:
            rows = torch.frombuffer(content, dtype=getattr(torch, self.dtype)).reshape(shape)
        return finite_float32(rows, self.file, self.name, copy=False)


def pickled_tensors(file: Path, key: str | None) -> dict[str, PickledTensor]:
    """Tensors by name, without data, from the pickled dictionary or from the dictionary under its `key`.

    Raises EdgebltError.
    """
    _refuse_old(file)
    version = _version(file)
    archive = _Archive(file)
    try:
        document = read_pickle(archive.pickle)
    except PickleError as error:
        raise EdgebltError(
            f"{file} {error}: it is no file of tensors only, as torch.save writes them, and was not run; {_REMEDY}"
        ) from None
    tensors = document.get(key) if key and isinstance(document, dict) else document
    if not isinstance(tensors, dict) or not tensors:
        place = f"under {key!r}" if key else "in it"
        raise EdgebltError(f"{file} has no dictionary of tensors {place}; give the file of a whole checkpoint")
    found = {}
    for name, value in tensors.items():
        record = _plain(file, name, value)
        found[name] = PickledTensor(file, name, record.shape, record.dtype, archive.place(name, record), version)
    return found


def _version(file: Path) -> Version:
    """A value that changes with the file. Raises EdgebltError if the file is gone."""
    try:
        status = file.stat()
    except OSError as error:
        raise unreadable(file, error, _REMEDY) from None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _plain(file: Path, name: object, value: object) -> TensorRecord:
    """`value`, refused unless it is a tensor whose rows lie side by side in the file."""
    if not isinstance(name, str) or not isinstance(value, TensorRecord | OtherTensor):
        raise EdgebltError(f"{file}: {name!a:.100} is no tensor under its name; give the file of a whole checkpoint")
    if isinstance(value, OtherTensor):
        raise EdgebltError(f"{file}: the tensor {name!a:.100} is not stored plainly; save the checkpoint again")
    if not value.is_contiguous:
        raise EdgebltError(f"{file}: the tensor {name!a:.100} is not contiguous; save it again after .contiguous()")
    return value


def _refuse_old(file: Path) -> None:
    """Raises EdgebltError for a file in the form that torch wrote before version 1.6: bare pickles, no archive."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_OLD_START))
    except OSError as error:
        raise unreadable(file, error, _REMEDY) from None
    if start == _OLD_START:
        code = f"import torch; torch.save(torch.load({file.name!r}, weights_only=True), {file.name!r})"
        raise EdgebltError(
            f"{file} is in the form that torch wrote before version 1.6; convert it, in its directory, with "
            f"python -c {shlex.quote(code)}"
        )


class _Archive:
    """The entries of a zip archive that torch wrote, and the pickle in it."""

    def __init__(self, file: Path) -> None:
        """Raises EdgebltError for a file that is no such archive."""
        self._file = file
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                self._entries = {entry.filename: entry for entry in entries}
                pickle = self._named(_PICKLE)
                self._refuse_odd(entries, pickle)
                self.pickle = archive.read(pickle)
                self._folder = pickle.filename.removesuffix(_PICKLE)
                self._refuse_byte_order(archive)
        except EdgebltError:
            raise
        except OSError as error:
            raise unreadable(file, error, _REMEDY) from None
        except Exception:  # zipfile stumbles in many ways over damaged archives
            raise EdgebltError(f"{file} is truncated or was not written by torch.save; {_REMEDY}") from None

    def place(self, name: str, tensor: TensorRecord) -> int:
        """Offset of the tensor's data in the file. Raises EdgebltError if the data are missing."""
        size: int = getattr(torch, tensor.dtype).itemsize
        stored = tensor.storage.count * (size if tensor.storage.dtype else 1)
        entry = self._entries.get(f"{self._folder}data/{tensor.storage.key}")
        start = tensor.offset * size
        if entry is None or entry.file_size < max(stored, start + math.prod(tensor.shape) * size):
            raise EdgebltError(f"{self._file}: the tensor {name!a:.100} lacks some of its data; {_REMEDY}")
        return self._content(entry) + start

    def _content(self, entry: zipfile.ZipInfo) -> int:
        """Offset of an entry's content, behind its own header, whose length the archive's directory does not give."""
        try:
            with self._file.open("rb") as stream:
                stream.seek(entry.header_offset)
                header = stream.read(_ENTRY_SIZE)
                size = stream.seek(0, 2)
        except OSError as error:
            raise unreadable(self._file, error, _REMEDY) from None
        if len(header) == _ENTRY_SIZE and header.startswith(_ENTRY_START):
            lengths: tuple[int, int] = struct.unpack("<HH", header[_ENTRY_LENGTHS])
            start = entry.header_offset + _ENTRY_SIZE + sum(lengths)
            if start + entry.file_size <= size:
                return start
        raise EdgebltError(f"{self._file} is truncated or was not written by torch.save; {_REMEDY}")

    def _named(self, name: str) -> zipfile.ZipInfo:
        found = [entry for path, entry in self._entries.items() if path.rpartition("/")[2] == name]
        if len(found) != 1:
            raise EdgebltError(f"{self._file} was not written by torch.save; {_REMEDY}")
        return found[0]

    def _refuse_odd(self, entries: list[zipfile.ZipInfo], pickle: zipfile.ZipInfo) -> None:
        """Raises EdgebltError for compressed entries and a huge pickle: a large model's takes some 100 KB."""
        stored = all(
            entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size for entry in entries
        )
        if not stored or len(entries) != len(self._entries) or pickle.file_size > HEADER_LIMIT:
            raise EdgebltError(f"{self._file} was not written by torch.save; {_REMEDY}")

    def _refuse_byte_order(self, archive: zipfile.ZipFile) -> None:
        entry = self._entries.get(f"{self._folder}{_BYTE_ORDER}")
        if entry is not None and (entry.file_size > len("little") or archive.read(entry) != b"little"):
            raise EdgebltError(
                f"{self._file} was written on a machine of another byte order; save it again on this one"
            )
