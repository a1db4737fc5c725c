"""The file of a saved session. Format version 1, all numbers little-endian:

    8 bytes    b"EBLTSESS"
    uint32     format version
    uint32     length of the header in bytes
    header     a `Header` as JSON, padded with spaces to a multiple of 8
    arrays     without gaps, in C order: those that `array_places` lists
    32 bytes   sha256 of all before it

The header's counts give every array's shape, and so the size of the file, before any of them is read.
"""

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle import system_calls
from edgeblt.bundle.dataclass_json import dataclass_document, parse_dataclass
from edgeblt.bundle.whole_files import check_writable, whole_file
from edgeblt.errors import EdgebltError

MAGIC, FORMAT_VERSION = b"EBLTSESS", 1
_START = struct.Struct("<8sII")
_HEADER_LIMIT = 1 << 20
_FLAGS = os.O_RDONLY | system_calls.NOT_BLOCKING | system_calls.NOT_INHERITED  # a pipe would block
_DIGEST_BYTES = 32
_PIECE_BYTES = 1 << 20  # bytes read and hashed at once
REMEDY = "save the session again"


@dataclass(frozen=True)
class Owner:
    """Bundle, threshold and provider that a saved session belongs to; it is of no use to another.

    bundle: the bundle's identifier.
    threshold: patching threshold in nats; None where the patching rule has none.
    provider: execution provider of each stage, as `Model.provider_name` has it.
    """

    bundle: str
    threshold: float | None
    provider: str


@dataclass(frozen=True)
class CacheCounts:
    """Position of a cache's oldest slot, number of its slots, and of those before them that it keeps."""

    first: int
    length: int
    forgotten: int


@dataclass(frozen=True)
class RowCounts:
    """Index of a history's oldest row, and the index after its newest."""

    first: int
    end: int


@dataclass(frozen=True)
class SavedText:
    """Part of the ids that was generated as one text.

    generated: number of its bytes, the newest of the session.
    entropy: what its random numbers were made from, in hexadecimal digits.
    """

    generated: int
    entropy: str


@dataclass(frozen=True)
class Header:
    """Beginning of the file: whom the session belongs to, and all counts."""

    owner: Owner
    position: int
    patch_count: int
    histories: dict[str, RowCounts]
    caches: dict[str, CacheCounts]
    text: SavedText | None


@dataclass(frozen=True)
class ArrayPlace:
    """One array in the file."""

    name: str
    dtype: str  # name of a numpy dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class CacheShape:
    """Form of the buffers [1, kv heads, slots, slot width] of one stage's cache."""

    buffers: int
    kv_head_count: int
    slot_width: int
    dtype: str


@dataclass(frozen=True)
class Form:
    """Part of the arrays' shapes that follows from the model: width and dtype of histories, form of caches by stage."""

    histories: Mapping[str, tuple[int, str]]
    caches: Mapping[str, CacheShape]


def array_places(header: Header, form: Form) -> list[ArrayPlace]:
    """The arrays of a file in order: ids, patch starts, histories, then caches stage by stage."""
    places = [
        ArrayPlace("ids", "int32", (header.position,)),
        ArrayPlace("patch_starts", "int64", (header.patch_count + 1,)),
    ]
    for name, (width, dtype) in form.histories.items():
        rows = header.histories[name]
        places.append(ArrayPlace(name, dtype, (rows.end - rows.first, width)))
    for stage, shape in form.caches.items():
        counts = header.caches[stage]
        for part, slots in (("slots", counts.length), ("forgotten", counts.forgotten)):
            whole = (1, shape.kv_head_count, slots, shape.slot_width)
            places += [ArrayPlace(f"{stage}_{part}_{index}", shape.dtype, whole) for index in range(shape.buffers)]
    return places


def write_session_file(path: Path, header: Header, arrays: Iterator[NDArray[Any]]) -> None:
    """Write a saved session; one that is there is replaced, and no other file.

    arrays: in the order of `array_places`, on the host.

    Raises EdgebltError where the file cannot be written, or another kind of file is in its place.
    """
    document = json.dumps(dataclass_document(header), sort_keys=True, separators=(",", ":")).encode("ascii")
    document += b" " * (-len(document) % 8)
    _refuse_others(path)
    with whole_file(path, replace=True) as file:
        digest = hashlib.sha256()

        def write(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)

        write(_START.pack(MAGIC, FORMAT_VERSION, len(document)))
        write(document)
        for array in arrays:
            write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
        file.write(digest.digest())


def check_session_file(path: Path) -> None:
    """Raises EdgebltError where `write_session_file` would, as far as can be known beforehand."""
    _refuse_others(path)
    check_writable(path, replace=True)


def _refuse_others(path: Path) -> None:
    """Raises EdgebltError where `path` is anything but a saved session."""
    if not os.path.lexists(path):
        return
    try:
        with _opened(path) as file:
            if file.read(len(MAGIC)) == MAGIC:
                return
    except EdgebltError:
        pass
    raise EdgebltError(f"{path} exists already and is not a saved session; remove it or choose another name")


def read_session_file(path: Path, owner: Owner, form: Form) -> tuple[Header, dict[str, NDArray[Any]]]:
    """Header and arrays of a saved session, whose hash is right; counts and values are still to be checked.

    owner: whom it must belong to.

    Raises EdgebltError for a file that cannot be read, is damaged, or belongs to something else.
    """
    with _opened(path) as file:
        try:
            return _read(file, path, owner, form)
        except OSError as error:
            raise EdgebltError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from None


def _read(file: BinaryIO, path: Path, owner: Owner, form: Form) -> tuple[Header, dict[str, NDArray[Any]]]:
    digest, size = hashlib.sha256(), os.fstat(file.fileno()).st_size
    start = file.read(_START.size)
    if len(start) < _START.size or start[: len(MAGIC)] != MAGIC:
        raise EdgebltError(f"{path} is not a saved session; give a file that Session.save or --save-state wrote")
    _, version, length = _START.unpack(start)
    if version != FORMAT_VERSION:
        raise EdgebltError(
            f"{path} has format version {version}; this edgeblt reads {FORMAT_VERSION}: {REMEDY} with this version"
        )
    if length > min(_HEADER_LIMIT, size):
        raise damaged(path, f"its header would be {length} bytes long")
    document = file.read(length)
    header = _parsed(document, path)
    _check_owner(header.owner, owner, path)
    _check_names(header, form, path)
    places = array_places(header, form)
    if any(count < 0 for place in places for count in place.shape):
        raise damaged(path, "a count is negative")
    expected = _START.size + length + sum(place.nbytes for place in places) + _DIGEST_BYTES
    if size != expected:
        raise damaged(path, f"it has {size} bytes and its header says {expected}")
    digest.update(start + document)
    arrays = {place.name: _read_array(file, place, digest, path) for place in places}
    if file.read(_DIGEST_BYTES) != digest.digest():
        raise damaged(path, "its sha256 is another")
    return header, arrays


def _parsed(document: bytes, path: Path) -> Header:
    try:
        return parse_dataclass(Header, json.loads(document), f"{path}: the header")
    except (ValueError, RecursionError) as error:
        raise damaged(path, " ".join(str(error).split())[:200]) from None


def _check_owner(saved: Owner, owner: Owner, path: Path) -> None:
    """Raises EdgebltError, one sentence on the first difference."""
    if saved.bundle != owner.bundle:
        raise EdgebltError(
            f"{path} was saved with the bundle {saved.bundle[:12]!r}, and this is {owner.bundle!r}; open that bundle"
        )
    if saved.threshold != owner.threshold:
        raise EdgebltError(
            f"{path} was saved with the patching threshold {saved.threshold}, and this model has {owner.threshold};"
            " open the bundle with that one"
        )
    if saved.provider != owner.provider:
        raise EdgebltError(
            f"{path} was saved on {saved.provider[:80]!r}, and this model runs on {owner.provider!r}; open the bundle"
            " with that provider"
        )


def _check_names(header: Header, form: Form, path: Path) -> None:
    if header.caches.keys() != form.caches.keys() or header.histories.keys() != form.histories.keys():
        raise damaged(path, "it has other parts than the model")


def _read_array(file: BinaryIO, place: ArrayPlace, digest: Any, path: Path) -> NDArray[Any]:
    array = np.empty(place.shape, np.dtype(place.dtype).newbyteorder("<"))
    view = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(view), _PIECE_BYTES):
        part = view[start : start + _PIECE_BYTES]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise damaged(path, "it has become shorter")
        digest.update(part)
    return array.astype(place.dtype, copy=False)


def _opened(path: Path) -> BinaryIO:
    """The file, open. Raises EdgebltError for anything but a regular file."""
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EdgebltError(f"{path} cannot be read ({reason}); give a file that --save-state wrote") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EdgebltError(f"{path} is not a regular file; give a file that --save-state wrote")
    return open(descriptor, "rb")


def damaged(path: Path, reason: str) -> EdgebltError:
    """The error for a file that no session was saved as."""
    return EdgebltError(f"{path} is damaged ({reason}); {REMEDY}")
