"""Weights in a graph: for every weight format the initializers that hold it and the operator that computes with it.

    fp32      MatMul, Gather
    fp16      the same behind a Cast, which ONNX Runtime does once, when it opens the graph (tables: after the Gather)
    int8/4    MatMulNBits, GatherBlockQuantized; the float16 scales are cast when the graph is opened
    nf4/fp4   MatMulBnb4

docs/quantization.md has the measurements behind this.
"""

import functools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeblt.config import ModelConfig
from edgeblt.errors import EdgebltError
from edgeblt.export.graph import MICROSOFT, StageGraph
from edgeblt.quant.codebooks import CodebookQuantized
from edgeblt.quant.formats import (
    BLOCK_SIZES,
    Codebook,
    Floating,
    Linear,
    Matrix,
    Quantized,
    WeightFormat,
    concatenate,
    pack,
    to_blocks,
)  # fmt: skip

INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level that multiplies in int8: several times faster on the CPU
BNB4_TYPES = {"fp4": 0, "nf4": 1}

Encoded = Matrix | Quantized | CodebookQuantized


class WeightSource(Hashable, Protocol):
    """A model's weights under canonical names, each in the format it shall have in the bundle."""

    @property
    def config(self) -> ModelConfig: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def format(self, name: str) -> WeightFormat:
        """Known without reading the weight."""
        ...

    def encoded(self, name: str) -> Encoded:
        """float32 for `Floating`, else the codes. Raises EdgebltError if it cannot be read or encoded."""
        ...


@dataclass(frozen=True)
class Weights:
    """Weights of a source as initializers of a graph, under their canonical names."""

    graph: StageGraph
    source: WeightSource

    def vector(self, name: str) -> ir.Value:
        """A norm's scale [width], float32."""
        return self.graph.weight(name, self.source.shape(name), lambda: self._floating(name))

    def lookup(self, name: str, ids: ir.Value) -> ir.Value:
        """Rows `ids` of the embedding `name` [rows, width]: float32 [.., width]. Tables stay where they are mapped."""
        format, (rows, width) = self.source.format(name), self.source.shape(name)
        if isinstance(format, Codebook):
            raise EdgebltError(f"{name} is {format.describe()}, which has no lookup; choose int8 or int4 for it")
        if isinstance(format, Floating):
            dtype = f"float{format.bits}"
            table = self.graph.weight(name, (rows, width), lambda: self._floating(name), dtype)
            return self._as_float32(self.graph.op("Gather", table, ids), dtype)
        stored = _Stored(self.source, (name,), format, (rows, width))
        codes = self.graph.weight(f"{name}.codes", (rows, -(-width * format.bits // 8)), stored.rows, "uint8")
        # One block for a row of any width; else the format's own blocks.
        block = format.block_size or max(1 << (width - 1).bit_length(), BLOCK_SIZES[0])
        found = self.graph.op(
            "GatherBlockQuantized", codes, ids, *stored.parameters(self.graph, name, block), domain=MICROSOFT,
            bits=format.bits, block_size=block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        if width * format.bits % 8:  # an odd number of 4-bit codes
            found = self.graph.op("Slice", found, *(self.graph.constant([value]) for value in (0, width, -1)))
        return self._as_float32(found, stored.scale_dtype)

    def linear(self, value: ir.Value, names: list[str]) -> ir.Value:
        """`value` [.., in] times the named weights [out, in], side by side: [.., sum of out]."""
        formats = [self.source.format(name) for name in names]
        if len(set(formats)) > 1 or (isinstance(formats[0], Codebook) and len(names) > 1):
            # Formats of their own; and blocks of a codebook run over the ends of rows, so they do not join.
            return self.graph.op("Concat", *(self.linear(value, [name]) for name in names), axis=-1)
        shape = (sum(self.source.shape(name)[0] for name in names), self.source.shape(names[0])[1])
        match formats[0]:
            case Floating(bits):
                return self._floating_product(value, names, shape, f"float{bits}")
            case Linear() as format:
                return self._linear_product(value, _Stored(self.source, tuple(names), format, shape))
            case Codebook() as format:
                return self._codebook_product(value, names[0], format, shape)

    def _floating_product(self, value: ir.Value, names: list[str], shape: tuple[int, int], dtype: str) -> ir.Value:
        def read() -> Matrix:
            return np.concatenate([self._floating(name) for name in names]).T

        weight = self.graph.weight(_joined(names), shape[::-1], read, dtype)
        return self.graph.op("MatMul", value, self._as_float32(weight, dtype))

    def _linear_product(self, value: ir.Value, stored: "_Stored") -> ir.Value:
        name, (rows, columns), bits = _joined(stored.names), stored.shape, stored.format.bits
        blocked = (rows, stored.block_count, stored.block_size * bits // 8)
        codes = self.graph.weight(f"{name}.codes", blocked, stored.blocked, "uint8")
        scales, *zero_points = stored.parameters(self.graph, name)
        scales = self._repeated(self._as_float32(scales, stored.scale_dtype), stored)
        return self.graph.op(
            "MatMulNBits", value, codes, scales, *zero_points, domain=MICROSOFT,
            K=columns, N=rows, bits=bits, block_size=stored.block_size, accuracy_level=INT8_ACTIVATIONS,
        )  # fmt: skip

    def _codebook_product(self, value: ir.Value, name: str, format: Codebook, shape: tuple[int, int]) -> ir.Value:
        rows, columns = shape
        count = rows * columns
        block_size = min(format.block_size, BLOCK_SIZES[-1])  # the operator has no larger ones
        block_count = -(-count // block_size)

        def encoded() -> CodebookQuantized:
            return cast(CodebookQuantized, _encoded(self.source, (name,)))

        def largest() -> NDArray[np.float32]:
            return np.repeat(encoded().largest, format.block_size // block_size)[:block_count]

        codes = self.graph.weight(f"{name}.codes", (-(-count // 2),), lambda: encoded().packed, "uint8")
        scales = self.graph.weight(f"{name}.scales", (block_count,), largest)
        return self.graph.op(
            "MatMulBnb4", value, codes, scales, domain=MICROSOFT,
            K=columns, N=rows, block_size=block_size, quant_type=BNB4_TYPES[format.name],
        )  # fmt: skip

    def _repeated(self, scales: ir.Value, stored: "_Stored") -> ir.Value:
        """[rows, blocks] of the operator, whose blocks are parts of the format's. Computed when the graph is opened."""
        rows, blocks = stored.shape[0], stored.format.block_count(stored.shape[1])
        if blocks == stored.block_count:
            return scales
        times = stored.repeats(stored.block_size)
        wide = self.graph.op(
            "Expand", self.graph.op("Unsqueeze", scales, self.graph.constant([2])), self.graph.constant([1, 1, times])
        )
        flat = self.graph.op("Reshape", wide, self.graph.constant([rows, blocks * times]))
        if blocks * times == stored.block_count:
            return flat
        ends = (self.graph.constant([end]) for end in (0, stored.block_count, 1))
        return self.graph.op("Slice", flat, *ends)

    def _floating(self, name: str) -> Matrix:
        return cast(Matrix, self.source.encoded(name))

    def _as_float32(self, value: ir.Value, dtype: str) -> ir.Value:
        return value if dtype == "float32" else self.graph.op("Cast", value, to=ir.DataType.FLOAT)


@functools.lru_cache(maxsize=1)  # a matrix's codes, scales and zero points are written one after the other
def _encoded(source: WeightSource, names: tuple[str, ...]) -> Encoded:
    parts = [source.encoded(name) for name in names]
    return parts[0] if len(parts) == 1 else concatenate(cast(list[Quantized], parts))


@dataclass(frozen=True)
class _Stored:
    """Matrices in a linear format, one below the other [rows, columns], encoded when they are written."""

    source: WeightSource
    names: tuple[str, ...]
    format: Linear
    shape: tuple[int, int]

    @property
    def block_size(self) -> int:
        """MatMulNBits', which rounds its inputs by block too; smaller than the format's where that is asked for."""
        if self.format.input_block_size or self.format.block_size:
            return self.format.input_block_size or self.format.block_size or 0
        return max((size for size in BLOCK_SIZES if self.shape[1] % size == 0), default=BLOCK_SIZES[0])

    @property
    def block_count(self) -> int:
        return -(-self.shape[1] // self.block_size)

    @property
    def scale_dtype(self) -> str:
        return f"float{self.format.scale_bits}"

    def repeats(self, block_size: int) -> int:
        """How many of the operator's blocks a whole block of the format spans; the last one may be cut short."""
        return (self.format.block_size or self.shape[1] + block_size - 1) // block_size

    def parameters(self, graph: StageGraph, name: str, zero_block: int | None = None) -> list[ir.Value]:
        """Scales [rows, blocks of the format] as stored, and zero points packed by the operator's blocks, if any."""
        (rows, columns), bits = self.shape, self.format.bits
        blocks = self.format.block_count(columns)
        scales = graph.weight(f"{name}.scales", (rows, blocks), lambda: self._quantized().scales, self.scale_dtype)
        if self.format.symmetric:
            return [scales]
        count = -(-columns // (zero_block or self.block_size))

        def zero_points() -> NDArray[Any]:
            repeats = self.repeats(zero_block or self.block_size)
            repeated = np.repeat(self._quantized().zero_points, repeats, axis=1)[:, :count]
            return pack(repeated, bits)

        packed = (rows, -(-count * bits // 8))
        return [scales, graph.weight(f"{name}.zero_points", packed, zero_points, "uint8")]

    def blocked(self) -> NDArray[Any]:
        """As MatMulNBits reads codes: [rows, blocks, bytes of a block]."""
        return pack(to_blocks(self._quantized().codes, self.block_size), self.format.bits)

    def rows(self) -> NDArray[Any]:
        """As GatherBlockQuantized reads codes: [rows, bytes of a row]."""
        return pack(self._quantized().codes, self.format.bits)

    def _quantized(self) -> Quantized:
        return cast(Quantized, _encoded(self.source, self.names))


def _joined(names: list[str] | tuple[str, ...]) -> str:
    if len(names) == 1:
        return names[0]
    return names[0].rpartition(".")[0] + "." + "_".join(name.rpartition(".")[2] for name in names)
