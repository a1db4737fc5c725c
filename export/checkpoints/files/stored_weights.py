"""The weights of a checkpoint as they are stored: floating-point numbers or edgeblt's own codes.

Each weight gives float32 rows, to compute with, and its own encoding, to be stored again.
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.files.safetensors_files import SafetensorsTensor
from edgeblt.export.graphs.weight_source import Encoded
from edgeblt.quant.formats.weight_format import Floating, Linear, Matrix, Quantized, WeightFormat, unpack

Shape = tuple[int, ...]
FP32 = Floating(32)


class StoredPart(Protocol):
    """One tensor of one file: of safetensors (`SafetensorsTensor`) or of a pickle (`PickledTensor`)."""

    @property
    def file(self) -> Path: ...

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> str:
        """ "bfloat16", "float16", "float32" or "float64"; raises EdgebltError for any other."""
        ...

    @property
    def stored_bytes(self) -> int: ...

    def read(self, start: int, stop: int) -> Matrix:
        """float32 rows `start` to `stop` along the first axis. Raises EdgebltError."""
        ...


class StoredWeight(Protocol):
    """One weight of a checkpoint, not read yet."""

    @property
    def shape(self) -> Shape: ...

    @property
    def format(self) -> WeightFormat: ...

    @property
    def dtype(self) -> str:
        """The stored type in words."""
        ...

    @property
    def parts(self) -> tuple[StoredPart, ...]: ...

    def rows(self, start: int, stop: int) -> Matrix:
        """float32 rows `start` to `stop` along the first axis. Raises EdgebltError."""
        ...

    def encoded(self, start: int, stop: int) -> Encoded:
        """Rows `start` to `stop` in the weight's format; a codebook format only gives all rows. Raises EdgebltError."""
        ...


@dataclass(frozen=True)
class FloatingWeight:
    tensor: StoredPart
    format: WeightFormat = FP32  # the format that keeps it without loss

    @property
    def shape(self) -> Shape:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def parts(self) -> tuple[StoredPart, ...]:
        return (self.tensor,)

    def rows(self, start: int, stop: int) -> Matrix:
        return self.tensor.read(start, stop)

    def encoded(self, start: int, stop: int) -> Encoded:
        return self.rows(start, stop)


@dataclass(frozen=True)
class FloatingParts:
    """Floating-point tensors that are one weight; only the requested rows are read."""

    parts: tuple[StoredPart, ...]

    @property
    def format(self) -> WeightFormat:
        return FP32

    @property
    def dtype(self) -> str:
        return "/".join(dict.fromkeys(part.dtype for part in self.parts))

    @abstractmethod
    def rows(self, start: int, stop: int) -> Matrix: ...

    def encoded(self, start: int, stop: int) -> Encoded:
        return self.rows(start, stop)


@dataclass(frozen=True)
class FusedWeight(FloatingParts):
    """Tensors of one width, stacked by rows."""

    @property
    def shape(self) -> Shape:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def rows(self, start: int, stop: int) -> Matrix:
        result, first = np.empty((stop - start, *self.shape[1:]), np.float32), 0
        for part in self.parts:
            last = first + part.shape[0]
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                result[begin - start : end - start] = part.read(begin - first, end - first)
            first = last
        return result


@dataclass(frozen=True)
class JoinedWeight(FloatingParts):
    """Matrices of as many rows, side by side."""

    @property
    def shape(self) -> Shape:
        return self.parts[0].shape[0], sum(part.shape[1] for part in self.parts)

    def rows(self, start: int, stop: int) -> Matrix:
        return np.concatenate([part.read(start, stop) for part in self.parts], axis=1)


@dataclass(frozen=True)
class LinearWeight:
    """Codes packed along the rows, scales, and zero points unless the format is symmetric."""

    format: Linear
    shape: tuple[int, int]
    codes: SafetensorsTensor
    scales: SafetensorsTensor
    zero_points: SafetensorsTensor | None

    @property
    def dtype(self) -> str:
        return self.format.describe()

    @property
    def parts(self) -> tuple[SafetensorsTensor, ...]:
        return (self.codes, self.scales) + ((self.zero_points,) if self.zero_points else ())

    def rows(self, start: int, stop: int) -> Matrix:
        return self._read(start, stop).dequantize()

    def encoded(self, start: int, stop: int) -> Encoded:
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> Quantized:
        bits, columns = self.format.bits, self.shape[1]
        scales = finite(self.scales, self.scales.raw(start, stop))
        zero_points = np.full(scales.shape, self.format.middle, np.uint8)
        if self.zero_points:
            zero_points = unpack(self.zero_points.raw(start, stop), bits, scales.shape[1])
        return Quantized(self.format, unpack(self.codes.raw(start, stop), bits, columns), scales, zero_points)


@dataclass(frozen=True)
class PrunedTable:
    """Hash tables without dropped rows: a row of zeros, the other rows, and the stored row for each original one."""

    kept: StoredWeight
    index: SafetensorsTensor

    @property
    def shape(self) -> Shape:
        return self.kept.shape

    @property
    def format(self) -> WeightFormat:
        return self.kept.format

    @property
    def dtype(self) -> str:
        return f"{self.kept.dtype}, {self.shape[0] - 1} of {self.index.shape[0]} rows"

    @property
    def parts(self) -> tuple[StoredPart, ...]:
        return (*self.kept.parts, self.index)

    def rows(self, start: int, stop: int) -> Matrix:
        return self.kept.rows(start, stop)

    def encoded(self, start: int, stop: int) -> Encoded:
        return self.kept.encoded(start, stop)

    def row_index(self) -> NDArray[np.int32]:
        index: NDArray[np.int32] = self.index.raw()
        if index.size and not 0 <= index.min() <= index.max() < self.shape[0]:
            raise EdgebltError(f"{self.index.file}: {self.index.name} points outside the table; quantize again")
        return index


def finite(tensor: SafetensorsTensor, values: NDArray[Any]) -> NDArray[Any]:
    """`values`, refused where one is NaN or infinite."""
    if not np.isfinite(values).all():
        raise EdgebltError(
            f"{tensor.file}: the tensor {tensor.name!a} holds values that are not finite; write the checkpoint again"
        )
    return values
