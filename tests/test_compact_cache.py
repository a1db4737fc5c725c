"""`edgeblt::WindowAttention` over caches in half precision and in int8: kernel and portable body against float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import test_window_attention as attention
from edgeblt.bundle.contract import EDGEBLT, MICROSOFT, CacheFormat
from edgeblt.export.operators import matmuls
from test_native import LEVELS, open_model, using

FORMATS: tuple[CacheFormat, ...] = ("fp16", "int8")
TYPES = {"fp16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}
PORTABLE = "portable"
Doubles = NDArray[np.float64]


def encoded(values: NDArray[Any], format: CacheFormat) -> NDArray[Any]:
    """Slots of keys or values [.., width], from the definition in float64."""
    if format == "fp16":
        halves: NDArray[np.float16] = np.clip(values, -65504, 65504).astype(np.float16)
        return halves
    largest = np.abs(values.astype(np.float64)).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.ceil(4 * np.log2(largest / 127)), -128, 126)
    codes = np.clip(np.rint(values / 2.0 ** (exponent / 4)), -127, 127)
    return np.concatenate([codes, exponent], axis=-1).astype(np.int8)


def decoded(slots: NDArray[Any], format: CacheFormat) -> Doubles:
    wide: Doubles = slots.astype(np.float64)
    return wide if format == "fp16" else wide[..., :-1] * 2.0 ** (wide[..., -1:] / 4)


@dataclass(frozen=True)
class Compact:
    case: attention.Case
    format: CacheFormat

    def model(self) -> bytes:
        case, kind = self.case, TYPES[self.format]
        kinds = {
            "last_slot": ir.DataType.INT32,
            "total_length": ir.DataType.INT32,
            "past_key": kind,
            "past_value": kind,
        }
        names = {
            "projected": 2,
            "past_key": 4,
            "past_value": 4,
            "last_slot": 1,
            "total_length": 1,
            "cosines": 2,
            "sines": 2,
        }
        inputs = [
            ir.val(name, kinds.get(name, ir.DataType.FLOAT), [f"{name}_{axis}" for axis in range(rank)])
            for name, rank in names.items()
        ]
        outputs = [
            ir.val("attended", ir.DataType.FLOAT, ["rows", "width"]),
            ir.val("present_key", kind, [f"key_{axis}" for axis in range(4)]),
            ir.val("present_value", kind, [f"value_{axis}" for axis in range(4)]),
        ]
        attributes: list[ir.Attr] = [
            ir.AttrInt64("num_heads", case.heads), ir.AttrInt64("kv_num_heads", case.kv_heads),
            ir.AttrInt64("window", case.window), ir.AttrFloat32("scale", case.scale),
        ]  # fmt: skip
        node = ir.Node(EDGEBLT, matmuls.ATTENTION, inputs, attributes, outputs=outputs)
        opsets = {"": 23, MICROSOFT: 1, EDGEBLT: 1}
        graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports=opsets, name="attention")
        functions = [matmuls.window_attention_function(kv_cache=self.format)]
        found = ir.Model(graph, ir_version=11, functions=functions)
        serialized: bytes = ir.serde.serialize_model(found).SerializeToString()
        return serialized

    def run(self, session: onnxruntime.InferenceSession, cuts: list[int]) -> tuple[NDArray[np.float32], list[Any]]:
        """What the rows attend to, fed in parts, and the cache afterwards; past and present are one buffer."""
        case = self.case
        cache = [encoded(array, self.format)[None] for array in (case.keys, case.values)]
        parts = []
        for start, end in zip([0, *cuts], [*cuts, len(case.rows)], strict=True):
            out = np.empty((end - start, case.heads * case.width), np.float32)
            binding = session.io_binding()
            inputs: dict[str, NDArray[Any]] = {
                "projected": case.rows[start:end].reshape(end - start, -1).copy(),
                "past_key": cache[0], "past_value": cache[1],
                "last_slot": np.array([case.past + end - 1], np.int32),
                "total_length": np.array([case.past + end], np.int32),
                "cosines": np.cos(case.angles), "sines": np.sin(case.angles),
            }  # fmt: skip
            outputs = {"attended": out, "present_key": cache[0], "present_value": cache[1]}
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
            parts.append(out.reshape(end - start, case.heads, case.width))
        return np.concatenate(parts), cache

    def exact(self, cache: list[NDArray[Any]]) -> Doubles:
        """What the rows attend to in this cache."""
        case, turned = self.case, self.case._turned()
        keys, values = (decoded(array[0], self.format) for array in cache)
        result = np.empty((len(case.rows), case.heads, case.width))
        for row, slot in enumerate(range(case.past, case.past + len(case.rows))):
            first = 0 if case.window < 0 else max(slot - case.window + 1, 0)
            for head in range(case.heads):
                group = head // (case.heads // case.kv_heads)
                scores = keys[group, first : slot + 1] @ turned[row, head] * case.scale
                shares = np.exp(scores - scores.max())
                result[row, head] = shares @ values[group, first : slot + 1] / shares.sum()
        return result


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("level", [*LEVELS, PORTABLE])
@settings(deadline=None, max_examples=12)
@given(case=attention.cases(), data=st.data())
def test_rows_are_exact_and_the_same_in_any_company(
    level: str, format: CacheFormat, case: attention.Case, data: st.DataObject
) -> None:
    """Attention to what the cache then holds is within float32; the cache is within a step of the definition."""
    compact = Compact(case, format)
    with using(level if level != PORTABLE else LEVELS[0]):
        session = open_model(compact.model(), kernel=level != PORTABLE)
        whole, cache = compact.run(session, [])
        error = attention.largest(whole - compact.exact(cache))
        assert error < 2e-5 * max(1.0, attention.largest(case.rows)) ** 2
        expected = [case.keys.copy(), case.values.copy()]
        expected[0][:, case.past : case.past + len(case.rows)] = case._turned()[
            :, case.heads : case.heads + case.kv_heads
        ].transpose(1, 0, 2)
        expected[1][:, case.past : case.past + len(case.rows)] = case.rows[:, case.heads + case.kv_heads :].transpose(
            1, 0, 2
        )
        for array, stored in zip(expected, cache, strict=True):
            step = 2.0**-10 if format == "fp16" else 2.0**0.25 / 127
            bound = np.abs(array).max(axis=-1, keepdims=True) * step * 0.51 + 1e-6
            assert (np.abs(decoded(stored[0], format) - array) <= bound).all()
        cuts = sorted(data.draw(st.sets(st.integers(1, len(case.rows) - 1)))) if len(case.rows) > 1 else []
        for parts in (cuts, list(range(1, len(case.rows)))):
            again, kept = compact.run(session, parts)
            np.testing.assert_array_equal(again, whole)
            for one, other in zip(kept, cache, strict=True):
                np.testing.assert_array_equal(one, other)
