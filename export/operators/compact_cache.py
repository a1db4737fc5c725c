"""Attention over a cache in float16 or int8, in standard operators: slots are decoded, and attended to as float32.

Keys are rotated and, as values, encoded and decoded again before any row attends to them, so a row reads the same
numbers whether they come with it or were stored before. The format is that of `edgeblt.bundle.contract.CacheSpec`.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.contract import MICROSOFT, CacheFormat
from edgeblt.export.operators.function_writer import FLOAT, FunctionWriter, reference

LARGEST_HALF = 65504.0
LARGEST_CODE = 127.0
EXPONENTS = np.arange(-128, 127)
SCALES = np.append(2.0 ** (EXPONENTS / 4), np.nan).astype(np.float32)  # by exponent + 128


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
        rotated = self._rotate(self._cut(by_head, writer.ints(0), both, 1), begin)
        query = self._cut(rotated, writer.ints(0), heads, 1)
        new = [self._cut(rotated, heads, both, 1), self._cut(by_head, both, count, 1)]
        stored = [self._encode(value) for value in new]
        past = [self._cache["past_key"], self._cache["past_value"]]
        presents = [self._replaced(old, value, begin, rows) for old, value in zip(past, stored, strict=True)]
        packed = writer.op("Concat", query, *(self._decode(value) for value in stored), axis=1)
        shape = writer.op("Concat", writer.ints(1), writer.op("Add", rows, writer.ints(1)), writer.ints(-1), axis=0)
        flat = writer.op("Reshape", packed, shape)
        attended, _, _ = writer.ops(
            "GroupQueryAttention", flat, None, None, *(self._decode(value) for value in past),
            self._cache["total_length"], self._total_and_spare,
            outputs=3, domain=MICROSOFT, num_heads=reference("num_heads"), kv_num_heads=reference("kv_num_heads"),
            scale=reference("scale", kind=FLOAT), local_window_size=reference("window", "local_window_size"),
        )  # fmt: skip
        return [writer.op("Squeeze", attended, writer.ints(0)), *presents]

    def _cut(self, value: ir.Value, begin: ir.Value, end: ir.Value, axis: int) -> ir.Value:
        return self._writer.op("Slice", value, begin, end, self._writer.ints(axis))

    def _rotate(self, heads: ir.Value, begin: ir.Value) -> ir.Value:
        """Heads [T + 1, heads, head_dim], adjacent pairs rotated by the angles of their slots."""
        writer = self._writer
        last = writer.op("Add", self._end, writer.ints(1))
        cosine, sine = (
            writer.op("Unsqueeze", self._cut(self._cache[name], begin, last, 0), writer.ints(1))
            for name in ("cosines", "sines")
        )
        pairs = writer.op("Reshape", heads, writer.ints(0, 0, -1, 2))
        first, second = (
            writer.op("Squeeze", self._cut(pairs, writer.ints(place), writer.ints(place + 1), 3), writer.ints(3))
            for place in (0, 1)
        )
        even = writer.op("Sub", writer.op("Mul", first, cosine), writer.op("Mul", second, sine))
        odd = writer.op("Add", writer.op("Mul", first, sine), writer.op("Mul", second, cosine))
        turned = writer.op("Concat", *(writer.op("Unsqueeze", part, writer.ints(3)) for part in (even, odd)), axis=3)
        return writer.op("Reshape", turned, writer.op("Shape", heads))

    def _encode(self, value: ir.Value) -> ir.Value:
        """Keys or values [T + 1, kv heads, head_dim] as slots."""
        writer = self._writer
        if self._format == "fp16":
            limits = (writer.constant(np.array(sign * LARGEST_HALF, np.float32)) for sign in (-1, 1))
            return writer.op("Cast", writer.op("Clip", value, *limits), to=ir.DataType.FLOAT16)
        largest = writer.op("ReduceMax", writer.op("Abs", value), writer.ints(2), keepdims=1)
        steps = writer.op("Div", largest, writer.constant(np.array(LARGEST_CODE, np.float32)))
        octaves = writer.op("Mul", writer.op("Log", steps), writer.constant(np.array(4 / np.log(2), np.float32)))
        limits = (writer.constant(np.array(limit, np.float32)) for limit in (EXPONENTS[0], EXPONENTS[-1]))
        exponent = writer.op("Clip", writer.op("Ceil", octaves), *limits)
        codes = writer.op("Round", writer.op("Div", value, self._scales(exponent)))
        limits = (writer.constant(np.array(sign * LARGEST_CODE, np.float32)) for sign in (-1, 1))
        codes = writer.op("Clip", codes, *limits)
        return writer.op("Cast", writer.op("Concat", codes, exponent, axis=2), to=ir.DataType.INT8)

    def _decode(self, slots: ir.Value) -> ir.Value:
        """The inverse of `_encode`, of slots of any leading dimensions."""
        writer = self._writer
        wide = writer.op("Cast", slots, to=ir.DataType.FLOAT)
        if self._format == "fp16":
            return wide
        last, far = writer.ints(-1), writer.ints(1 << 30)
        codes = writer.op("Slice", wide, writer.ints(0), last, last)
        return writer.op("Mul", codes, self._scales(writer.op("Slice", wide, last, far, last)))

    def _scales(self, exponent: ir.Value) -> ir.Value:
        writer = self._writer
        place = writer.op(
            "Cast", writer.op("Add", exponent, writer.constant(np.array(128, np.float32))), to=ir.DataType.INT64
        )
        return writer.op("Gather", writer.constant(SCALES), place)

    def _replaced(self, past: ir.Value, slots: ir.Value, begin: ir.Value, rows: ir.Value) -> ir.Value:
        """The cache [1, kv heads, C, ..] with the slots of all rows but the spare one."""
        writer = self._writer
        new = self._cut(slots, writer.ints(0), rows, 0)
        new = writer.op("Unsqueeze", writer.op("Transpose", new, perm=[1, 0, 2]), writer.ints(0))
        before = self._cut(past, writer.ints(0), begin, 2)
        return writer.op("Concat", before, new, self._cut(past, self._end, writer.ints(1 << 30), 2), axis=2)
