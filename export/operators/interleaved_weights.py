"""A DenseMatMul's weights in MatMulNBits' order, in operators that ONNX Runtime runs once, when it opens a graph.

`quant/formats/interleaved_layout.py` describes how they are stored. ONNX Runtime takes some time for each operator,
whatever the sizes, so a body holds no more of them than the dense weights of its graph need (`DenseForms`).
"""

from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from edgeblt.bundle.contract import GROUP
from edgeblt.export.operators.function_writer import FunctionWriter


@dataclass(frozen=True)
class DenseForms:
    """Forms of the dense weights that a graph holds."""

    only_bytes: bool = False  # all codes have 8 bits
    only_symmetric: bool = False  # no zero points

    def __and__(self, other: "DenseForms") -> "DenseForms":
        """Forms of both graphs' weights together."""
        return DenseForms(self.only_bytes and other.only_bytes, self.only_symmetric and other.only_symmetric)


@dataclass(frozen=True)
class InterleavedWeights:
    """Codes, scales and zero points of one product in a function's body, and the names of its attributes."""

    writer: FunctionWriter
    forms: DenseForms
    bits: str
    rows: str
    blocks_per_scale: str
    stored_codes: ir.Value  # uint8 [groups, blocks, bytes]
    stored_scales: ir.Value
    stored_zero_points: ir.Value  # uint8 [groups, blocks, bytes] or [1]

    def codes(self) -> ir.Value:
        """uint8 [N, blocks, block_size * bits / 8]"""
        writer = self.writer
        runs = self._apart(writer.op("Reshape", self.stored_codes, writer.ints(0, 0, -1, GROUP, 1, 4)))
        by_row = writer.op("Transpose", runs, perm=[0, 3, 1, 2, 4, 5])
        width = writer.op("Div", writer.op("Shape", self.stored_codes, start=2, end=3), writer.ints(GROUP))
        per_byte = () if self.forms.only_bytes else (self._per_byte,)
        shape = writer.op("Concat", writer.ints(-1), self._blocks, width, *per_byte, axis=0)
        return self._together(first_rows(writer, writer.op("Reshape", by_row, shape), self.rows))

    def scales(self) -> ir.Value:
        """float32 [N, blocks]"""
        writer = self.writer
        count = writer.op("Squeeze", self._blocks, writer.ints(0))
        blocks = writer.op("Range", writer.constant_int(0), count, writer.constant_int(1))
        index = writer.op("Div", blocks, writer.attribute(self.blocks_per_scale))
        return writer.op(
            "Cast", self._by_row(writer.op("Gather", self.stored_scales, index, axis=1)), to=ir.DataType.FLOAT
        )

    def zero_points(self) -> ir.Value | None:
        """uint8 [N, ceil(blocks * bits / 8)], or nothing where all are the middle of the codes."""
        writer = self.writer
        if self.forms.only_symmetric:
            return None
        groups = writer.op("Shape", self.stored_codes, start=0, end=1)
        width = writer.op("Div", writer.ints(GROUP), self._per_byte)
        shape = writer.op("Concat", groups, self._blocks, writer.ints(1), width, axis=0)
        same = writer.op("Expand", self.stored_zero_points, writer.op("Concat", groups, self._blocks, width, axis=0))
        points = self._apart(writer.op("Reshape", same, shape))
        rows = self._by_row(writer.op("Reshape", points, writer.ints(0, 0, GROUP)))
        if self.forms.only_bytes:
            return rows
        missing = writer.op("Mod", self._blocks, self._per_byte)  # to whole bytes
        filled = writer.op("Pad", rows, writer.op("Concat", writer.ints(0, 0, 0), missing, axis=0))
        return self._together(
            writer.op("Reshape", filled, writer.op("Concat", writer.ints(0, -1), self._per_byte, axis=0))
        )

    def _by_row(self, values: ir.Value) -> ir.Value:
        """[N, blocks] of values [groups, blocks, 16]."""
        writer = self.writer
        apart = writer.op("Transpose", values, perm=[0, 2, 1])
        return first_rows(writer, writer.op("Reshape", apart, self._flat), self.rows)

    def _apart(self, packed: ir.Value) -> ir.Value:
        """Numbers [.., per byte, n] of bytes [.., 1, n]."""
        if self.forms.only_bytes:
            return packed
        upper = self.writer.op("BitShift", packed, self._starts, direction="LEFT")
        return self.writer.op("BitShift", upper, self._unused_byte, direction="RIGHT")

    def _together(self, numbers: ir.Value) -> ir.Value:
        """Bytes [..] of numbers [.., per byte], the first in the low bits."""
        writer = self.writer
        if self.forms.only_bytes:
            return numbers
        first, last = (writer.op("Gather", numbers, writer.constant_int(index), axis=-1) for index in (0, -1))
        shifted = writer.op("BitShift", last, self._unused_byte, direction="LEFT")
        return writer.op("BitwiseOr", first, shifted)

    @cached_property
    def _blocks(self) -> ir.Value:
        """int64 [1]"""
        return self.writer.op("Shape", self.stored_codes, start=1, end=2)

    @cached_property
    def _flat(self) -> ir.Value:
        """int64 [2]: the shape of a number for each row and block."""
        return self.writer.op("Concat", self.writer.ints(-1), self._blocks, axis=0)

    @cached_property
    def _per_byte(self) -> ir.Value:
        """int64 [1]: numbers in a byte, 1 or 2."""
        if self.forms.only_bytes:
            return self.writer.ints(1)
        return self.writer.op("Div", self.writer.ints(8), self.writer.attribute(self.bits))

    @cached_property
    def _unused(self) -> ir.Value:
        """int64 []: bits of a byte that a number leaves, 0 or 4."""
        return self.writer.op("Sub", self.writer.constant_int(8), self.writer.attribute(self.bits))

    @cached_property
    def _unused_byte(self) -> ir.Value:
        return self.writer.op("Cast", self._unused, to=ir.DataType.UINT8)

    @cached_property
    def _starts(self) -> ir.Value:
        """uint8 [per byte, 1]: bits above each number."""
        writer = self.writer
        step = writer.op("Neg", writer.attribute(self.bits))
        starts = writer.op("Range", self._unused, writer.constant_int(-1), step)
        return writer.op("Unsqueeze", writer.op("Cast", starts, to=ir.DataType.UINT8), writer.ints(1))


def first_rows(writer: FunctionWriter, values: ir.Value, rows: str) -> ir.Value:
    """The first rows, whose count is the attribute `rows`."""
    end = writer.op("Unsqueeze", writer.attribute(rows), writer.ints(0))
    return writer.op("Slice", values, writer.ints(0), end, writer.ints(0))
