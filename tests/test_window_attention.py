"""`edgeblt::WindowAttention`: the kernel and the portable body against float64, and rows against themselves."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.export.operators import matmuls
from test_native import at_every_level, needs_library, open_model, using

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A cache of `capacity` slots of which `past` are filled, and the rows that follow, [rows, heads + 2 kv, width]."""

    heads: int
    kv_heads: int
    window: int
    capacity: int
    past: int
    rows: Floats
    keys: Floats  # [kv heads, capacity, width]
    values: Floats
    angles: Floats  # [capacity, width / 2]

    @property
    def width(self) -> int:
        return int(self.rows.shape[2])

    @property
    def scale(self) -> float:
        return float(np.float32(self.width**-0.5))

    def model(self, batch: bool = False) -> bytes:
        """With a `batch` of one around rows, as bundles of earlier versions have it; these need the kernel."""
        kinds = {"last_slot": ir.DataType.INT32, "total_length": ir.DataType.INT32}
        names = ("projected", "past_key", "past_value", "last_slot", "total_length", "cosines", "sines")
        ranks = (2 + batch, 4, 4, 1, 1, 2, 2)
        inputs = [
            ir.val(name, kinds.get(name, ir.DataType.FLOAT), [f"{name}_{axis}" for axis in range(rank)])
            for name, rank in zip(names, ranks, strict=True)
        ]
        outputs = [
            ir.val(name, ir.DataType.FLOAT, [f"{name}_{axis}" for axis in range(rank)])
            for name, rank in (("attended", 2 + batch), ("present_key", 4), ("present_value", 4))
        ]
        attributes: list[ir.Attr] = [
            ir.AttrInt64("num_heads", self.heads), ir.AttrInt64("kv_num_heads", self.kv_heads),
            ir.AttrInt64("window", self.window), ir.AttrFloat32("scale", self.scale),
        ]  # fmt: skip
        node = ir.Node(EDGEBLT, matmuls.ATTENTION, inputs, attributes, outputs=outputs)
        opsets = {"": 23, MICROSOFT: 1, EDGEBLT: 1}
        graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports=opsets, name="attention")
        functions = [] if batch else [matmuls.window_attention_function()]
        model = ir.Model(graph, ir_version=11, functions=functions)
        serialized: bytes = ir.serde.serialize_model(model).SerializeToString()
        return serialized

    def run(self, session: onnxruntime.InferenceSession, cuts: list[int]) -> Floats:
        """[rows, heads, width], the rows fed in parts, past and present in one buffer as a session of edgeblt's."""
        keys, values = self.keys[None].copy(), self.values[None].copy()
        parts = []
        for start, end in zip([0, *cuts], [*cuts, len(self.rows)], strict=True):
            out = np.empty((end - start, self.heads * self.width), np.float32)
            binding = session.io_binding()
            inputs: dict[str, NDArray[Any]] = {
                "projected": self.rows[start:end].reshape(end - start, -1).copy(),
                "past_key": keys, "past_value": values,
                "last_slot": np.array([self.past + end - 1], np.int32),
                "total_length": np.array([self.past + end], np.int32),
                "cosines": np.cos(self.angles), "sines": np.sin(self.angles),
            }  # fmt: skip
            outputs = {"attended": out, "present_key": keys, "present_value": values}
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
            parts.append(out.reshape(end - start, self.heads, self.width))
        return np.concatenate(parts)

    def exact(self) -> NDArray[np.float64]:
        """The definition, one row and head at a time."""
        turned = self._turned()
        keys, values = self.keys.astype(np.float64), self.values.astype(np.float64)
        result = np.empty((len(self.rows), self.heads, self.width))
        for row, slot in enumerate(range(self.past, self.past + len(self.rows))):
            keys[:, slot] = turned[row, self.heads : self.heads + self.kv_heads]
            values[:, slot] = self.rows[row, self.heads + self.kv_heads :]
            first = 0 if self.window < 0 else max(slot - self.window + 1, 0)
            for head in range(self.heads):
                group = head // (self.heads // self.kv_heads)
                scores = keys[group, first : slot + 1] @ turned[row, head] * self.scale
                shares = np.exp(scores - scores.max())
                result[row, head] = shares @ values[group, first : slot + 1] / shares.sum()
        return result

    def _turned(self) -> NDArray[np.float64]:
        angles = self.angles[self.past : self.past + len(self.rows), None].astype(np.float64)
        even, odd = self.rows[..., 0::2].astype(np.float64), self.rows[..., 1::2].astype(np.float64)
        turned = np.empty(self.rows.shape)
        turned[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        turned[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        return turned


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads, width = draw(st.integers(1, 3)), 16 * draw(st.sampled_from([1, 2, 3, 4, 8]))
    heads = kv_heads * draw(st.integers(1, 3))
    past, count = draw(st.integers(0, 140)), draw(st.integers(1, 80))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    capacity = past + count + draw(st.integers(1, 5))
    rows = chance.normal(size=(count, heads + 2 * kv_heads, width)) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    cache = chance.normal(size=(2, kv_heads, capacity, width)).astype(np.float32)
    angles = chance.uniform(-7, 7, (capacity, width // 2)).astype(np.float32)
    window = draw(st.sampled_from([-1, 1, 2, 7, 33, 1000]))
    return Case(heads, kv_heads, window, capacity, past, rows.astype(np.float32), cache[0], cache[1], angles)


def largest(array: NDArray[Any]) -> float:
    return float(np.abs(array).max())


@at_every_level
@settings(deadline=None, max_examples=25)
@given(case=cases(), data=st.data())
def test_rows_are_exact_and_the_same_in_any_company(level: str, case: Case, data: st.DataObject) -> None:
    """Within float32 of the definition; and how the rows are cut into runs changes no bit."""
    with using(level):
        session = open_model(case.model(), kernel=True)
        whole = case.run(session, [])
        assert largest(whole - case.exact()) < 2e-5 * max(1.0, largest(case.rows)) ** 2
        one_by_one = case.run(session, list(range(1, len(case.rows))))
        np.testing.assert_array_equal(one_by_one, whole)
        cuts = sorted(data.draw(st.sets(st.integers(1, len(case.rows) - 1)))) if len(case.rows) > 1 else []
        np.testing.assert_array_equal(case.run(session, cuts), whole)


@settings(deadline=None, max_examples=15)
@given(case=cases())
def test_the_portable_body_agrees(case: Case) -> None:
    found = case.run(open_model(case.model(), kernel=False), [])
    assert largest(found - case.exact()) < 2e-5 * max(1.0, largest(case.rows)) ** 2


def some_case(count: int = 20, heads: int = 4, width: int = 64) -> Case:
    chance = np.random.default_rng(1)
    rows = chance.normal(size=(count, 2 * heads, width)).astype(np.float32)
    cache = chance.normal(size=(2, heads // 2, 300, width)).astype(np.float32)
    angles = chance.uniform(0, 6, (300, width // 2)).astype(np.float32)
    return Case(heads, heads // 2, 100, 300, 200, rows, cache[0], cache[1], angles)


@needs_library
def test_threads_change_no_bit() -> None:
    case = some_case(60)
    one, three = (case.run(open_model(case.model(), kernel=True, threads=threads), []) for threads in (1, 3))
    np.testing.assert_array_equal(one, three)


@needs_library
def test_slots_outside_the_window_are_not_read() -> None:
    """What they hold, not a number or infinite, comes to nothing."""
    case = some_case()
    expected = case.run(open_model(case.model(), kernel=True), [])
    case.keys[:, :101], case.values[:, :101] = np.nan, np.inf
    case.keys[:, 220:] = np.nan
    np.testing.assert_array_equal(case.run(open_model(case.model(), kernel=True), []), expected)


@needs_library
def test_past_and_present_apart() -> None:
    """Without one buffer for both the past is copied first."""
    case = some_case()
    session = open_model(case.model(), kernel=True)
    attended, keys, values = session.run(None, {
        "projected": case.rows.reshape(len(case.rows), -1), "past_key": case.keys[None],
        "past_value": case.values[None], "last_slot": np.array([219], np.int32),
        "total_length": np.array([220], np.int32), "cosines": np.cos(case.angles), "sines": np.sin(case.angles),
    })  # fmt: skip
    np.testing.assert_array_equal(attended.reshape(20, 4, 64), case.run(session, []))
    np.testing.assert_array_equal(keys[0, :, :200], case.keys[:, :200])
    np.testing.assert_array_equal(values[0, :, 200:220], case.rows[:, 6:].transpose(1, 0, 2))


@needs_library
def test_bundles_of_earlier_versions_run() -> None:
    case = some_case()
    attended, *_ = open_model(case.model(batch=True), kernel=True).run(None, {
        "projected": case.rows.reshape(1, 20, -1), "past_key": case.keys[None], "past_value": case.values[None],
        "last_slot": np.array([219], np.int32), "total_length": np.array([220], np.int32),
        "cosines": np.cos(case.angles), "sines": np.sin(case.angles),
    })  # fmt: skip
    assert attended.shape == (1, 20, 256)
    np.testing.assert_array_equal(attended.reshape(20, 4, 64), case.run(open_model(case.model(), kernel=True), []))


@needs_library
@pytest.mark.parametrize(("change", "said"), [
    ({"total_length": np.array([301], np.int32)}, "do not fit a cache"),
    ({"total_length": np.array([19], np.int32)}, "do not fit a cache"),
    ({"projected": np.zeros((20, 64), np.float32)}, "projected is 20 x 64"),
    ({"past_value": np.zeros((1, 2, 299, 64), np.float32)}, "past_value is"),
    ({"sines": np.zeros((300, 16), np.float32)}, "sines is"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change: dict[str, NDArray[Any]], said: str) -> None:
    case = some_case()
    feeds = {
        "projected": case.rows.reshape(20, -1), "past_key": case.keys[None], "past_value": case.values[None],
        "last_slot": np.array([219], np.int32), "total_length": np.array([220], np.int32),
        "cosines": np.cos(case.angles), "sines": np.sin(case.angles),
    }  # fmt: skip
    with pytest.raises(Exception, match=said):
        open_model(case.model(), kernel=True).run(None, feeds | change)
