"""Weights in a graph: for every weight format the initializers that hold it and the operator that computes with it.

    target    cpu                                             cuda
    fp32      MatMul, Gather                                  as fp16
    fp16      the same behind a Cast, which ONNX Runtime      MatMul, Gather
              does once, when it opens the graph
              (tables: after the Gather)
    int8/4    edgeblt::DenseMatMul, or SparseMatMul or        MatMulNBits, zeros stored too;
              MaskedMatMul where zeros are left out;          GatherBlockQuantized
              GatherBlockQuantized
    nf4/fp4   MatMulBnb4                                      MatMulBnb4

docs/quantization.md, docs/kernels.md and docs/cuda.md have the measurements and the reasons behind this.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.errors import EdgebltError
from edgeblt.export.graphs.dense_weights import Dense, DenseStored, own_block, rounding_attributes
from edgeblt.export.graphs.graph import GraphBuilder
from edgeblt.export.graphs.linear_weights import LinearStored, in_type, joined_name
from edgeblt.export.graphs.portable.dequantized import PortableStored
from edgeblt.export.graphs.sparse_weights import SparseStored
from edgeblt.export.graphs.weight_file import Arrays, Piece
from edgeblt.export.graphs.weight_source import WeightSource, row_blocks
from edgeblt.export.operators.matmuls import DENSE, PROJECTION, dense_matmul_function, dense_projection_function
from edgeblt.quant.formats.codebooks import CodebookQuantized
from edgeblt.quant.formats.weight_format import (
    BLOCK_SIZES,
    Codebook,
    Floating,
    Linear,
    Matrix,
    WeightFormat,
)

LARGEST_CUDA_BLOCK = 128  # the largest block of MatMulNBits with 4 bits
BNB4_TYPES = {"fp4": 0, "nf4": 1}


@dataclass(frozen=True)
class LookupTable:
    """An embedding as inputs of an operator (`operators/hash_embedding.py`)."""

    inputs: tuple[ir.Value, ...]  # the first of TABLE_PARTS
    attributes: dict[str, int]  # TABLE_ATTRIBUTES


@dataclass(frozen=True)
class Weights:
    """Weights of a source as initializers of a graph, under their canonical names."""

    graph: GraphBuilder
    source: WeightSource

    def vector(self, name: str) -> ir.Value:
        """A norm's scale [width], in the type the stage computes in."""
        return self._floating_rows(name, self.graph.computed_in)

    def lookup(self, name: str, ids: ir.Value) -> ir.Value:
        """Rows `ids` of the embedding `name` [rows, width]: [.., width]. Tables stay where they are mapped."""
        format, width = self._table_format(name), self.source.shape(name)[1]
        index = self.source.row_index(name)
        if index is not None:
            ids = self.graph.op("Gather", self._index(f"{name}.index", index), ids)
        if isinstance(format, Floating):
            dtype = self._stored_in(format.bits)
            return self._computed(self.graph.op("Gather", self._floating_rows(name, dtype), ids), dtype)
        stored = self._stored_codes(name, format)
        codes, *parameters = stored.initializers(self.graph)
        found = self.graph.op(
            "GatherBlockQuantized", codes, ids, *parameters, domain=MICROSOFT,
            bits=format.bits, block_size=stored.block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        if not self.has_whole_bytes(name):
            found = self.graph.op("Slice", found, *(self.graph.constant([value]) for value in (0, width, -1)))
        return self._computed(found, stored.scale_dtype)

    def has_whole_bytes(self, name: str) -> bool:
        """Whether the rows of an embedding end with a byte: not where they have an odd number of 4-bit codes."""
        format = self._table_format(name)
        return isinstance(format, Floating) or self.source.shape(name)[1] * format.bits % 8 == 0

    def is_table(self, name: str) -> bool:
        """Whether an operator can look rows of the embedding `name` up by itself."""
        return self.source.row_index(name) is None and self.has_whole_bytes(name)

    def table(self, name: str) -> LookupTable:
        """The embedding `name` as inputs of `edgeblt::HashEmbedding`."""
        format = self._table_format(name)
        if isinstance(format, Floating):
            values = self._floating_rows(name, self._stored_in(format.bits))
            return LookupTable((values,), {"bits": format.bits, "block_size": BLOCK_SIZES[0]})
        stored = self._stored_codes(name, format)
        attributes = {"bits": format.bits, "block_size": stored.block_size}
        return LookupTable(tuple(stored.initializers(self.graph)), attributes)

    def _table_format(self, name: str) -> Floating | Linear:
        format = self.source.format(name)
        if isinstance(format, Codebook):
            raise EdgebltError(f"{name} is {format.describe()}, which has no lookup; choose int8 or int4 for it")
        return format

    def _stored_codes(self, name: str, format: Linear) -> LinearStored:
        """An embedding's codes; one block for a row of any width, else the format's own blocks."""
        rows, width = self.source.shape(name)
        block = format.block_size or max(1 << (width - 1).bit_length(), BLOCK_SIZES[0])
        code_shape, scales = (-(-width * format.bits // 8),), self._stored_in(format.scale_bits)
        return LinearStored(self.source, (name,), format, (rows, width), block, code_shape, scales)

    def linear(self, value: ir.Value, names: list[str]) -> ir.Value:
        """`value` [.., in] times the named weights [out, in], side by side: [.., sum of out]."""
        formats = [self.source.format(name) for name in names]
        if len(set(formats)) > 1 or (len(names) > 1 and not self._joins(names, formats[0])):
            return self.graph.op("Concat", *(self.linear(value, [name]) for name in names), axis=-1)
        shape = self._joined_shape(names)
        match formats[0]:
            case Floating() as format:
                return self._floating_product(value, names, shape, self._stored_in(format.bits))
            case Linear() as format if self.graph.is_portable:
                return self._dequantized_product(value, names, format, shape)
            case Linear() as format if not self.graph.is_for_cpu:
                return self._blocked_product(value, names, format, shape)
            case Linear(sparsity="") as format:
                self.graph.uses_dense(DENSE, dense_matmul_function)
                return self._dense_product(value, self.dense(names))
            case Linear() as format:
                return self._sparse_product(value, names, format, shape)
            case Codebook() as format if not self.graph.is_for_cpu:
                return self._codebook_product(value, names[0], format, shape)
            case Codebook() as format:  # a single row would be added up in another order
                product = self._codebook_product(self.graph.with_spare_row(value), names[0], format, shape)
                return self.graph.without_spare_row(product)

    def is_dense(self, names: list[str]) -> bool:
        """Whether the product with these weights, side by side, is one DenseMatMul."""
        formats = {self.source.format(name) for name in names}
        (format, *others) = formats
        return not others and isinstance(format, Linear) and not format.sparsity

    def dense(self, names: list[str]) -> Dense:
        """Inputs of the DenseMatMul with these weights."""
        assert self.is_dense(names)
        format, shape = cast(Linear, self.source.format(names[0])), self._joined_shape(names)
        return DenseStored(self.source, tuple(names), format, shape, self._stored_in(format.scale_bits)).dense(
            self.graph
        )

    def _joined_shape(self, names: list[str]) -> tuple[int, int]:
        return sum(self.source.shape(name)[0] for name in names), self.source.shape(names[0])[1]

    def _joins(self, names: list[str], format: WeightFormat) -> bool:
        """Whether the matrices can be one: a codebook's blocks run over the ends of rows, sparse rows come in pairs."""
        if isinstance(format, Linear) and format.sparsity and self.graph.is_for_cpu:
            return all(self.source.shape(name)[0] % 2 == 0 for name in names)
        return not isinstance(format, Codebook)

    def _floating_product(self, value: ir.Value, names: list[str], shape: tuple[int, int], dtype: str) -> ir.Value:
        joined, (rows, columns) = joined_name(names), shape

        def make() -> Arrays:
            transposed, start = np.empty((columns, rows), dtype), 0  # MatMul's operand is [in, out]
            for name in names:
                count = self.source.shape(name)[0]
                transposed[:, start : start + count] = self._floats(name, 0, count, dtype).T
                start += count
            return {joined: transposed}

        weight = self.graph.weight(joined, (columns, rows), dtype)
        self.graph.fill(lambda: iter([Piece(joined, 0, make)]))
        return self.graph.op("MatMul", value, self._computed(weight, dtype))

    def projection(self, value: ir.Value, names: list[str]) -> ir.Value:
        """The same with dense weights; for a `value` without rows, also the portable body computes nothing."""
        self.graph.uses_dense(PROJECTION, dense_projection_function)
        return self._dense_product(value, self.dense(names), PROJECTION)

    def _dense_product(self, value: ir.Value, dense: Dense, operator: str = DENSE) -> ir.Value:
        rows, columns = dense.shape
        return self.graph.op(operator, value, *dense.inputs, domain=EDGEBLT, K=columns, N=rows, **dense.attributes)

    def _blocked_product(self, value: ir.Value, names: list[str], format: Linear, shape: tuple[int, int]) -> ir.Value:
        rows, columns = shape
        block = min(own_block(format, columns), LARGEST_CUDA_BLOCK)
        blocked = (-(-columns // block), block * format.bits // 8)
        stored = LinearStored(self.source, tuple(names), format, shape, block, blocked, self.graph.computed_in, True)
        return self.graph.op(
            "MatMulNBits", value, *stored.initializers(self.graph), domain=MICROSOFT,
            K=columns, N=rows, bits=format.bits, block_size=block,
        )  # fmt: skip

    def _dequantized_product(
        self, value: ir.Value, names: list[str], format: Linear, shape: tuple[int, int]
    ) -> ir.Value:
        stored = PortableStored(self.source, tuple(names), format, shape, self._stored_in(format.scale_bits))
        return self.graph.op("MatMul", value, stored.dequantized(self.graph))

    def _sparse_product(self, value: ir.Value, names: list[str], format: Linear, shape: tuple[int, int]) -> ir.Value:
        rows, columns = shape
        stored = SparseStored(self.source, tuple(names), format, shape, joined_name(names))
        self.graph.uses(stored.operator, stored.function)
        return self.graph.op(
            stored.operator, value, *stored.initializers(self.graph), domain=EDGEBLT, K=columns, N=rows,
            **rounding_attributes(format, columns), **stored.attributes,
        )  # fmt: skip

    def _codebook_product(self, value: ir.Value, name: str, format: Codebook, shape: tuple[int, int]) -> ir.Value:
        rows, columns = shape
        count = rows * columns
        block_size = min(format.block_size, BLOCK_SIZES[-1])  # the operator has no larger ones
        block_count = -(-count // block_size)
        codes = self.graph.weight(f"{name}.codes", (-(-count // 2),), "uint8")
        scales = self.graph.weight(f"{name}.scales", (block_count,), self.graph.computed_in)

        def make() -> Arrays:
            encoded = cast(CodebookQuantized, self.source.encoded(name, 0, rows))
            largest = np.repeat(encoded.largest, format.block_size // block_size)[:block_count]
            return {f"{name}.codes": encoded.packed, f"{name}.scales": in_type(largest, self.graph.computed_in, name)}

        self.graph.fill(lambda: iter([Piece(name, 0, make)]))
        return self.graph.op(
            "MatMulBnb4", value, codes, scales, domain=MICROSOFT,
            K=columns, N=rows, block_size=block_size, quant_type=BNB4_TYPES[format.name],
        )  # fmt: skip

    def _floating_rows(self, name: str, dtype: str) -> ir.Value:
        """Floating-point numbers as they lie in the checkpoint, of `dtype`."""
        shape = self.source.shape(name)

        def make(start: int, stop: int) -> Arrays:
            return {name: self._floats(name, start, stop, dtype)}

        def fill() -> Iterator[Piece]:
            for start, stop in row_blocks(self.source.format(name), shape):
                yield Piece(f"{name}, row {start}", start, partial(make, start, stop))

        self.graph.fill(fill)
        return self.graph.weight(name, shape, dtype)

    def _index(self, name: str, index: NDArray[np.int32]) -> ir.Value:
        self.graph.fill(lambda: iter([Piece(name, 0, lambda: {name: index})]))
        return self.graph.weight(name, index.shape, "int32")

    def _floats(self, name: str, start: int, stop: int, dtype: str) -> NDArray[Any]:
        return in_type(cast(Matrix, self.source.encoded(name, start, stop)), dtype, name)

    def _stored_in(self, bits: int) -> str:
        """The type of floating-point numbers that the format has in so many bits."""
        return self.graph.computed_in if self.graph.contract.target == "cuda" else f"float{bits}"

    def _computed(self, value: ir.Value, dtype: str) -> ir.Value:
        return self.graph.cast(value, dtype, self.graph.computed_in)
