"""Attention over a cache in fp16 or int8, in standard operators: slots are decoded, and attended to as float32.

Keys are rotated and, as values, encoded and decoded again before any row attends to them, so a row reads the same
numbers whether they come with it or were stored before. The format is that of `edgeblt.bundle.contract.CacheSpec`.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.contract import MICROSOFT, CacheFormat
from edgeblt.export.operators.function_writer import FLOAT, FunctionWriter, reference

LARGEST_HALF, LARGEST_FLOAT = 65504.0, 3.4e38
LARGEST_CODE = 127.0
LOWEST, HIGHEST, NOT_FINITE = -128.0, 126.0, 127.0  # exponents: of the smallest scale, of the largest, of none
_EXPONENTS = np.arange(256).astype(np.int8)  # 0 .. 127, -128 .. -1: a place counts from the end where it is negative
SCALES = np.where(_EXPONENTS == NOT_FINITE, np.nan, 2.0 ** (_EXPONENTS / 4)).astype(np.float32)


class CompactCache:
    """Writes the nodes of WindowAttention for a cache in fp16 or int8, whose inputs are given by name."""

    def __init__(self, writer: FunctionWriter, cache: Mapping[str, ir.Value], format: CacheFormat) -> None:
        self._writer, self._cache, self._format = writer, cache, format
        total = cache["total_length"]
        self._end = writer.op("Cast", total, to=ir.DataType.INT64)
        self._total_and_spare = writer.op("Add", total, writer.constant(np.array([1], np.int32)))

    def attend(self, projected: ir.Value) -> list[ir.Value]:
        """Attention of rows [T + 1, ..], a spare one last, like `attention` of matmuls.py: [attended, key, value]."""
        writer = self._writer
        rows = writer.op("Sub", writer.op("Shape", projected, end=1), writer.ints(1))
        begin = writer.op("Sub", self._end, rows)
        heads, kv_heads = (
            writer.op("Unsqueeze", writer.attribute(name), writer.ints(0)) for name in ("num_heads", "kv_num_heads")
        )
        both = writer.op("Add", heads, kv_heads)
        count = writer.op("Add", both, kv_heads)
        by_head = writer.op("Reshape", projected, writer.op("Concat", writer.ints(0), count, writer.ints(-1), axis=0))
        to_rotate, values = self._parts(by_head, both, kv_heads)
        query, keys = self._parts(self._rotate(to_rotate, begin), heads, kv_heads)
        stored = self._encode(writer.op("Concat", keys, values, axis=1))
        past = [self._cache["past_key"], self._cache["past_value"]]
        new = self._parts(stored, kv_heads, kv_heads)
        presents = [self._replaced(old, slots, begin, rows) for old, slots in zip(past, new, strict=True)]
        packed = self._rows(writer.op("Concat", query, self._decode(stored), axis=1))
        attended, _, _ = writer.ops(
            "GroupQueryAttention", packed, None, None, *(self._decode(slots) for slots in past),
            self._cache["total_length"], self._total_and_spare,
            outputs=3, domain=MICROSOFT, num_heads=reference("num_heads"), kv_num_heads=reference("kv_num_heads"),
            scale=reference("scale", kind=FLOAT), local_window_size=reference("window", "local_window_size"),
        )  # fmt: skip
        return [writer.op("Squeeze", attended, writer.ints(0)), *presents]

    def _parts(self, value: ir.Value, first: ir.Value, second: ir.Value) -> list[ir.Value]:
        """The first heads of [T + 1, heads, ..], and the others."""
        writer = self._writer
        return list(writer.ops("Split", value, writer.op("Concat", first, second, axis=0), outputs=2, axis=1))

    def _rows(self, heads: ir.Value) -> ir.Value:
        """[1, T + 1, all elements] of [T + 1, heads, head_dim]"""
        writer = self._writer
        return writer.op("Unsqueeze", writer.op("Flatten", heads, axis=1), writer.ints(0))

    def _rotate(self, heads: ir.Value, begin: ir.Value) -> ir.Value:
        """Heads [T + 1, heads, head_dim], adjacent pairs rotated by the angles of their slots, the first of `begin`."""
        writer = self._writer
        angles = (self._cache[name] for name in ("cosines", "sines"))
        rotated = writer.op("RotaryEmbedding", self._rows(heads), begin, *angles, domain=MICROSOFT, interleaved=1)
        return writer.op("Reshape", rotated, writer.op("Shape", heads))

    def _encode(self, value: ir.Value) -> ir.Value:
        """Keys or values [T + 1, heads, head_dim] as slots."""
        writer = self._writer
        if self._format == "fp16":
            halves = self._clipped(value, -LARGEST_HALF, LARGEST_HALF)
            return writer.op("Cast", halves, to=ir.DataType.FLOAT16)
        largest = writer.op("ReduceMax", writer.op("Abs", value), writer.ints(2), keepdims=1)
        octaves = writer.op("Log", writer.op("Div", largest, self._number(LARGEST_CODE)))
        quarters = writer.op("Ceil", writer.op("Mul", octaves, self._number(4 / np.log(2))))
        is_finite = writer.op("LessOrEqual", largest, self._number(LARGEST_FLOAT))
        exponent = writer.op("Where", is_finite, self._clipped(quarters, LOWEST, HIGHEST), self._number(NOT_FINITE))
        codes = writer.op("Round", writer.op("Div", value, self._scales(exponent)))
        codes = self._clipped(codes, -LARGEST_CODE, LARGEST_CODE)
        return writer.op("Cast", writer.op("Concat", codes, exponent, axis=2), to=ir.DataType.INT8)

    def _decode(self, slots: ir.Value) -> ir.Value:
        """The inverse of `_encode`, for slots of any leading dimensions."""
        writer = self._writer
        if self._format == "fp16":
            return writer.op("Cast", slots, to=ir.DataType.FLOAT)
        flat, last = writer.op("Flatten", slots, axis=-1), writer.ints(-1)
        codes = self._cut(flat, writer.ints(0), last, 1)
        exponents = writer.op("Reshape", self._cut(flat, last, writer.ints(1 << 30), 1), last)
        wide = writer.op("DequantizeLinear", codes, self._scales(exponents), axis=0)
        return writer.op("Reshape", wide, writer.op("Concat", writer.op("Shape", slots, end=-1), last, axis=0))

    def _scales(self, exponents: ir.Value) -> ir.Value:
        writer = self._writer
        return writer.op("Gather", writer.constant(SCALES), writer.op("Cast", exponents, to=ir.DataType.INT32))

    def _replaced(self, past: ir.Value, slots: ir.Value, begin: ir.Value, rows: ir.Value) -> ir.Value:
        """The cache [1, kv heads, C, ..] with the slots of all rows but the spare one."""
        writer = self._writer
        new = self._cut(slots, writer.ints(0), rows, 0)
        new = writer.op("Unsqueeze", writer.op("Transpose", new, perm=[1, 0, 2]), writer.ints(0))
        before = self._cut(past, writer.ints(0), begin, 2)
        return writer.op("Concat", before, new, self._cut(past, self._end, writer.ints(1 << 30), 2), axis=2)

    def _cut(self, value: ir.Value, begin: ir.Value, end: ir.Value, axis: int) -> ir.Value:
        return self._writer.op("Slice", value, begin, end, self._writer.ints(axis))

    def _clipped(self, value: ir.Value, least: float, most: float) -> ir.Value:
        return self._writer.op("Clip", value, self._number(least), self._number(most))

    def _number(self, number: float) -> ir.Value:
        return self._writer.constant(np.array(number, np.float32))
