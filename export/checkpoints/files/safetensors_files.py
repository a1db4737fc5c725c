"""Tensors in safetensors files: the header, and reading or writing a tensor, or some of its rows, at a time.

Every error of the file format becomes an EdgebltError that names the file.
"""

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edgeblt.bundle.held_files import is_too_many_open, too_many_open, unreadable
from edgeblt.errors import EdgebltError
from edgeblt.export.graphs.weight_file import Slot

# The header of a 7B model takes 60 KB; the format's own limit of 100 MB would let a file cost gigabytes to open.
HEADER_LIMIT = 16 << 20
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
RAW_BYTES = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()}
DTYPES = {"BF16": ("bfloat16", 2), "F16": ("float16", 2), "F32": ("float32", 4), "F64": ("float64", 8)}


@dataclass(frozen=True)
class SafetensorsTensor:
    """One tensor of one file; `format` is its dtype as safetensors writes it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    format: str

    @property
    def dtype(self) -> str:
        """ "bfloat16", "float16", "float32" or "float64"; raises EdgebltError for any other."""
        if self.format not in DTYPES:
            raise EdgebltError(
                f"{self.file}: the tensor {self.name!a} is stored as {self.format}; "
                "give a checkpoint in bfloat16, float16, float32 or float64"
            )
        return DTYPES[self.format][0]

    @property
    def stored_bytes(self) -> int:
        size = RAW_BYTES[self.format] if self.format in RAW_BYTES else DTYPES[self.format][1]
        return math.prod(self.shape) * size

    def raw(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start` to `stop` as they are stored; the dtype must be one of RAW_BYTES."""
        assert self.format in RAW_BYTES, self.format
        rows: NDArray[Any] = self._rows(start, stop).clone(memory_format=torch.contiguous_format).numpy()
        return rows

    def _rows(self, start: int, stop: int | None) -> torch.Tensor:
        with _opened(self.file) as handle:
            stored = handle.get_slice(self.name)
            if tuple(stored.get_shape()) != self.shape or stored.get_dtype() != self.format:
                raise EdgebltError(f"{self.file} has changed since it was opened; open the checkpoint again")
            rows: torch.Tensor = stored[start:stop] if self.shape else handle.get_tensor(self.name)
            return rows

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` (along the first axis), float32, C-contiguous, in memory of their own."""
        return finite_float32(self._rows(start, stop), self.file, self.name)  # a copy: they are views of a mapped file


def finite_float32(rows: torch.Tensor, file: Path, name: str, copy: bool = True) -> NDArray[np.float32]:
    """`rows` as C-contiguous float32, with `copy` in new memory. Raises EdgebltError for NaN and infinity."""
    values: NDArray[np.float32] = rows.to(torch.float32, copy=copy).contiguous().numpy()
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):  # both carry NaN over
        raise EdgebltError(
            f"{file}: the tensor {name!a} holds values that are not finite in float32; "
            "give a checkpoint without NaN and infinity"
        )
    return values


def stored_tensors(file: Path) -> Iterator[SafetensorsTensor]:
    """Every tensor of a safetensors file, from its header alone. Raises EdgebltError."""
    _refuse_repeated_names(file, _header(file))
    with _opened(file) as handle:
        for name in handle.keys():  # noqa: SIM118  (not a dict)
            stored = handle.get_slice(name)
            yield SafetensorsTensor(file, name, tuple(stored.get_shape()), stored.get_dtype())


def _header(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_LIMIT
            if length <= HEADER_LIMIT and 8 + length <= size:
                return stream.read(length)
    except OSError as error:
        raise unreadable(file, error, "give a whole checkpoint") from None
    raise EdgebltError(f"{file} is truncated or not a safetensors file ({size} bytes); download or write it again")


def _refuse_repeated_names(file: Path, header: bytes) -> None:
    """Raises EdgebltError for a repeated name: the library takes its last tensor, other readers may take the first."""

    def object_of(pairs: list[tuple[str, object]]) -> None:
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise EdgebltError(f"{file} has {name!a:.100} twice in its header; download or write it again")
            seen.add(name)

    with suppress(
        json.JSONDecodeError, UnicodeDecodeError, RecursionError
    ):  # the library refuses a header that is not JSON
        json.loads(header, object_pairs_hook=object_of, parse_int=len)  # no number is needed, and some are too long


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, RuntimeError) as error:
        if is_too_many_open(error):
            raise too_many_open(file) from None
        _refuse_unreadable(file)  # "No such file", says the library, whatever keeps it from opening one
        reason = " ".join(ascii(str(error)).strip("'\"").split())[:200]
        raise EdgebltError(f"{file} is not a whole safetensors file ({reason}); download or write it again") from None


def _refuse_unreadable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise unreadable(file, error, "give a whole checkpoint") from None


def layout(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[dict[str, Slot], bytes]:
    """Places of tensors in a safetensors file, in this order, and the file's header.

    `tensors`: name to dtype (one of RAW_BYTES) and shape. Source of the format: safetensors' own description (a length,
    a JSON header, the data).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + RAW_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    beginning = struct.pack("<Q", len(text)) + text
    slots = {
        name: Slot(len(beginning) + header[name]["data_offsets"][0], NUMPY_DTYPES[dtype], shape)
        for name, (dtype, shape) in tensors.items()
    }
    return slots, beginning
