"""What the native operators refuse: attributes at the edges of int64, sizes that would wrap, indices out of range, and
more than there is memory for. Each is one line, and never an address."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import fuzz_operators
from edgeblt.runtime import native
from fuzzed_operators import OPERATORS, Case
from test_native import needs_library

pytestmark = needs_library
MOST = 2**31 - 1
HEADS = 2**20
RANGES = {
    "num_heads": (1, HEADS), "kv_num_heads": (1, HEADS), "head_dim": (1, HEADS), "vectors": (1, HEADS),
    "offset": (0, 2**40), "rule": (0, 5), "window": (-1, 2**63 - 1), "states": (1, 256),
}  # fmt: skip
EDGES = (0, -1, 2**20, 2**20 + 1, 2**31, 2**32, 2**40 + 1, 2**60, 2**62, 2**63 - 1, -(2**63))


def legal(operator: str, seed: int = 0) -> Case:
    """The first such case with something to compute, of one sequence."""
    cases = (OPERATORS[operator](np.random.default_rng([seed, number])) for number in range(100))
    whole = (case for case in cases if all(a is None or a.size for a in case.inputs.values()))
    return next(case for case in whole if not case.inputs.keys() & {"places", "sequences"})


def answer(case: Case) -> Any:
    path = native.library_path()
    assert path
    first, second = fuzz_operators.answer(case, path, 1)
    np.testing.assert_array_equal(first, second)
    return first


def refusal(case: Case) -> str:
    """What the operator itself says."""
    with pytest.raises(Exception, match="edgeblt::") as caught:
        answer(case)
    said = str(caught.value).partition("edgeblt::")[2].strip()
    assert "\n" not in said
    return said


def with_attribute(case: Case, name: str, value: Any) -> Case:
    attributes = case.attributes | {name: value}
    return replace(case, attributes={key: value for key, value in attributes.items() if value is not None})


@pytest.mark.parametrize("operator", ["WindowAttention", "DenseLayer"])
@pytest.mark.parametrize("power", [59, 60, 61, 62])
def test_heads_that_wrap_to_the_right_width_are_refused(operator: str, power: int) -> None:
    """(heads + 2 ** 60) * width is heads * width in 64 bits, where width is a multiple of 16."""
    case = legal(operator)
    heads = case.attributes["num_heads"] // case.attributes["kv_num_heads"]
    case = with_attribute(with_attribute(case, "kv_num_heads", 1), "num_heads", heads + 2**power)
    assert refusal(case).startswith(f"{operator}: num_heads is {heads + 2**power}, not 1 to {HEADS}; export")


@pytest.mark.parametrize("operator", ["LatentAttention", "DenseCrossAttention"])
@pytest.mark.parametrize("before", [1, 16, 100])
def test_an_offset_that_wraps_to_before_the_row_is_refused(operator: str, before: int) -> None:
    """The end of keys and values, 2 ** 63 and more, is less than any row is long."""
    case = with_attribute(legal(operator), "offset", 2**63 - before)
    assert refusal(case).startswith(f"{operator}: offset is {2**63 - before}, not 0 to {2**40}; export")


@pytest.mark.parametrize("operator", OPERATORS)
def test_attributes_out_of_range_are_refused_when_the_model_is_opened(operator: str) -> None:
    case = legal(operator)
    for name, legal_value in case.attributes.items():
        if isinstance(legal_value, float):
            continue
        lowest, highest = RANGES.get(name, (1, MOST))
        values = {*EDGES, *(legal_value + 2**power for power in (32, 60, 61)), lowest - 1, highest + 1}
        for value in sorted(values):
            if -(2**63) <= value < 2**63 and not lowest <= value <= highest:
                assert refusal(with_attribute(case, name, value)).startswith(f"{operator}: {name} is {value}, not")


@pytest.mark.parametrize("operator", OPERATORS)
def test_attributes_that_are_none_are_refused(operator: str) -> None:
    case = legal(operator)
    for name, value in case.attributes.items():
        kind = "float" if isinstance(value, float) else "integer"
        for other in (None, "text", 3 if kind == "float" else 1.5):
            assert refusal(with_attribute(case, name, other)) == (
                f"{operator}: {name} is missing, or no {kind}; export the model again"
            )
        if kind == "float":
            assert f"{name} is not finite" in refusal(with_attribute(case, name, float("nan")))


def test_a_window_beyond_any_cache_is_none() -> None:
    case = legal("WindowAttention")
    everything = answer(with_attribute(case, "window", -1))
    for window in (MOST, 2**31, 2**63 - 1):
        np.testing.assert_array_equal(answer(with_attribute(case, "window", window)), everything)
    assert "window is 0" in refusal(with_attribute(case, "window", 0))


def test_sizes_that_belong_together_do() -> None:
    case = legal("DenseCrossAttention")
    assert refusal(with_attribute(case, "attended", 8)).startswith(
        "DenseCrossAttention: attended and projected are 8 x"
    )
    wide = with_attribute(with_attribute(case, "num_heads", HEADS), "kv_num_heads", 1)
    assert "elements do not share" in refusal(with_attribute(wide, "head_dim", HEADS))


def with_input(case: Case, name: str, array: Any) -> Case:
    return replace(case, inputs=case.inputs | {name: array})


@pytest.mark.parametrize("operator", ["LatentAttention", "DenseCrossAttention"])
@pytest.mark.parametrize("value", [-1, -(2**63), 2**63 - 1, 2**31, None])
def test_an_index_beyond_the_rows_is_refused(operator: str, value: int | None) -> None:
    case = legal(operator)
    new = "new_rows" if operator == "LatentAttention" else "latents"
    index, rows, carried = (case.inputs[name] for name in ("latent_index", new, "carried_row"))
    assert index is not None and rows is not None and carried is not None
    value = len(rows) + len(carried) if value is None else value
    remedy = "it must be below their number"
    index = index.copy()
    index[-1] = value
    said = refusal(with_input(case, "latent_index", index))
    assert said == f"{operator}: latent_index is {value} for {len(carried)} carried and {len(rows)} new rows; {remedy}"


@pytest.mark.parametrize("operator", ["WindowAttention", "DenseLayer"])
@pytest.mark.parametrize("total", [-(2**31), -1, 0, 2**31 - 1])
def test_positions_beyond_the_cache_are_refused(operator: str, total: int) -> None:
    case = with_input(legal(operator), "total_length", np.array([total], np.int32))
    assert f"positions that end at {total} do not fit a cache of" in refusal(case)


def test_heads_of_no_elements_are_refused() -> None:
    """As many rows of them as anybody likes take no memory, but time."""
    case = legal("WindowAttention")
    past = np.zeros((1, case.attributes["kv_num_heads"], 2**31 - 1, 0), np.float32)
    case = replace(case, shared=False)
    for name in ("past_key", "past_value"):
        case = with_input(case, name, past)
    for name in ("cosines", "sines"):
        case = with_input(case, name, np.zeros((2**31 - 1, 0), np.float32))
    case = with_input(case, "total_length", np.array([2**31 - 1], np.int32))
    case = with_input(case, "projected", np.zeros((2**31 - 1, 0), np.float32))
    assert "; heads have 8 to 1048576 elements, a multiple of 8" in refusal(case)


@pytest.mark.parametrize("position", [-1, -(2**63), 2**62 + 1, 2**63 - 1])
def test_a_position_that_cannot_be_counted_from_is_refused(position: int) -> None:
    case = with_input(legal("EntropyPatch"), "position", np.array([position], np.int64))
    assert refusal(case) == f"EntropyPatch: position is {position}, not 0 to {2**62}"


def test_ids_at_the_ends_of_their_type_are_special_or_the_last_one() -> None:
    case = legal("EntropyPatch")
    ids = case.inputs["ids"]
    assert ids is not None
    for extreme, same in ((-(2**63), 0), (2**63 - 1, 259)):
        expected = answer(with_input(case, "ids", np.full_like(ids, same)))
        np.testing.assert_array_equal(answer(with_input(case, "ids", np.full_like(ids, extreme))), expected)


@pytest.mark.parametrize("operator", ["DenseLayer", "DenseCrossAttention"])
@pytest.mark.parametrize("part", ["codes", "scales", "zero_points"])
def test_weights_of_a_layer_that_are_no_initializer_are_refused(operator: str, part: str) -> None:
    case, name = legal(operator), f"output_{part}"
    said = refusal(replace(case, initializers=case.initializers - {name}))
    assert said == f"{operator}: {name} is no initializer; export the model again"


def test_zero_points_that_alone_come_with_each_run_are_those_of_that_run() -> None:
    case = legal("DenseMatMul")
    expected = answer(replace(case, initializers=frozenset(["codes", "scales", "zero_points"])))
    np.testing.assert_array_equal(answer(replace(case, initializers=frozenset(["codes", "scales"]))), expected)


def test_weights_that_come_with_each_run_are_those_of_that_run() -> None:
    """On two threads at once too."""
    size, chance = 512, np.random.default_rng(0)
    attributes = {"K": size, "N": size, "bits": 8, "block_size": 32, "blocks_per_scale": 1}
    codes = chance.integers(0, 256, (size // 16, size // 32, 16 * 32), dtype=np.uint8)
    scales = np.ones((size // 16, size // 32, 16), np.float32)
    x, zero_points = chance.normal(size=(8, size)).astype(np.float32), np.array([128], np.uint8)
    inputs: dict[str, Any] = {"x": x, "codes": codes, "scales": scales, "zero_points": zero_points}
    case = Case("DenseMatMul", attributes, inputs, frozenset(), ("y",))
    others = [case, with_input(case, "codes", 255 - codes)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.register_custom_ops_library(str(native.library_path()))
    session = onnxruntime.InferenceSession(fuzz_operators.model_of(case), options)
    feeds = [{name: array for name, array in some.inputs.items() if array is not None} for some in others]
    expected = [session.run(None, feed)[0] for feed in feeds]
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(100):
            if not np.array_equal(session.run(None, feeds[which])[0], expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not np.array_equal(expected[0], expected[1])
    assert not wrong


MEMORY_PROGRAM = """
import json, resource, sys
import numpy as np
import onnxruntime
sys.path.insert(0, sys.argv[1])
import fuzz_operators
from fuzzed_operators import Case
block, count = 256, 1 << 22  # as many rows of one column: rounded, each fills a block of 256 bytes
codes, scales = np.full((1, 1, 16 * block), 129, np.uint8), np.ones((1, 1, 16), np.float32)
attributes = {"K": 1, "N": 1, "bits": 8, "block_size": block, "blocks_per_scale": 1}
weights = {"codes": codes, "scales": scales, "zero_points": np.array([128], np.uint8)}
case = Case("DenseMatMul", attributes, {"x": np.ones((1, 1), np.float32)} | weights, frozenset(weights), ("y",))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
options.register_custom_ops_library(sys.argv[2])
session = onnxruntime.InferenceSession(fuzz_operators.model_of(case), options)
x = np.ones((count, 1), np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), -1))
said = []
for value in (x[:1], x, x[:1]):
    try:
        said.append(float(session.run(None, {"x": value})[0].sum()))
    except Exception as error:
        said.append(str(error))
print(json.dumps(said))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are limited as Linux does")
def test_a_run_without_enough_memory_is_refused_and_the_next_one_answers() -> None:
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(Path(__file__).parent), str(native.library_path())]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    first, refused, last = json.loads(done.stdout)
    assert first == last == 1
    assert "edgeblt::DenseMatMul: there is not enough memory; feed less at once" in refused
