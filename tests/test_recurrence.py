"""`edgeblt::CausalConvolution` and `SelectiveScan`: kernels of every level, and portable bodies, against float64."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgeblt.bundle.contract import EDGEBLT
from edgeblt.export.mambabyte.numerics import silu, softplus
from edgeblt.export.operators.recurrence import causal_convolution_function, selective_scan_function
from edgeblt.runtime import native
from fuzzed_operators import Case, causal_convolution, selective_scan
from test_native import needs_library

Outputs = list[np.ndarray[Any, Any]]
MAKERS = {"CausalConvolution": causal_convolution, "SelectiveScan": selective_scan}
FUNCTIONS = {"CausalConvolution": causal_convolution_function, "SelectiveScan": selective_scan_function}


def cases(operator: str) -> Iterator[Case]:
    for seed in range(12):
        case = MAKERS[operator](np.random.default_rng(seed))
        if len(next(iter(case.inputs.values()))):  # type: ignore[arg-type]
            yield case


def given_to(case: Case) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value for name, value in case.inputs.items() if value is not None}


def expected(case: Case) -> Outputs:
    """Both outputs in float64, part by part."""
    given = {name: value.astype(np.float64) for name, value in given_to(case).items() if name != "sequences"}
    slots, results = given["past"].reshape(-1, *given["past"].shape[-2:]).copy(), []
    for rows, source, target in parts(case):
        inputs = {name: values if name in FIXED else values[rows] for name, values in given.items()}
        result, slots[target] = expected_part(case, inputs | {"past": slots[source]})
        results.append(result)
    return [np.concatenate(results), slots.reshape(given["past"].shape)]


def parts(case: Case) -> Iterator[tuple[slice, int, int]]:
    """Rows of each part, with the slots that it begins and ends in."""
    given, start = given_to(case), 0
    for end, source, target in given.get("sequences", np.zeros(0)).tolist() or [(len(given["split"]), 0, 0)]:
        yield slice(start, end), source, target
        start = end


def expected_part(case: Case, given: dict[str, np.ndarray[Any, Any]]) -> Outputs:
    channels = int(case.attributes["channels"])
    if case.operator == "CausalConvolution":
        rows = np.concatenate([given["past"], given["split"][:, :channels]])
        count = len(given["split"])
        total = given["bias"] + sum(rows[tap : tap + count] * given["kernel"][tap] for tap in range(4))
        return [silu(np.asarray(total)), rows[-3:]]
    states, rank = int(case.attributes["states"]), int(case.attributes["rank"])
    state, results = given["past"], []
    for x, split, step, selected in zip(*(given[name] for name in ("x", "split", "step", "selected")), strict=True):
        step = softplus(step + given["step_bias"])
        added = selected[rank : rank + states, None] * (step * x)
        state = np.exp(step * given["decay"]) * state + added
        results.append((selected[rank + states :] @ state + given["skip"] * x) * silu(split[channels:]))
    return [np.array(results), state]


def check(found: Outputs, wanted: Outputs) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())


@needs_library
@pytest.mark.parametrize("level", native.status().levels)
@pytest.mark.parametrize("operator", MAKERS)
def test_kernels_of_every_level(operator: str, level: str) -> None:
    path = native.library_path()
    assert path
    library = ctypes.CDLL(str(path))
    before = library.edgeblt_level()
    library.edgeblt_use_level(native.LEVELS.index(level))
    try:
        for case in cases(operator):
            check(run(case, str(path)), expected(case))
    finally:
        library.edgeblt_use_level(before)


@pytest.mark.parametrize("operator", MAKERS)
def test_portable_bodies(operator: str) -> None:
    for case in cases(operator):
        if not len(given_to(case).get("sequences", ())):
            check(run(case, None), expected(case))


@needs_library
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("operator", MAKERS)
def test_rows_have_the_same_bits_in_any_company(operator: str, threads: int) -> None:
    """One by one, each from the state that the row before it left, on one thread or several."""
    path = str(native.library_path())
    for case in cases(operator):
        whole, given, alone, rows = run(case, path, threads), given_to(case), None, []
        by_row = [name for name in given if name not in (*FIXED, "past", "sequences")]
        slots = given["past"].reshape(-1, 1, *given["past"].shape[-2:])
        for own, source, target in parts(case):
            state = slots[source]
            for row in range(own.start, own.stop):
                inputs = {**given, "past": state, "sequences": np.zeros((0, 3), np.int64)}
                inputs |= {name: given[name][row : row + 1] for name in by_row}
                row_case = Case(operator, case.attributes, dict(inputs), case.initializers, case.outputs)
                alone = alone or opened(row_case, path)
                single, state = alone.run(None, inputs)
                rows.append(single)
            slots[target] = state
        assert np.concatenate(rows).tobytes() == whole[0].tobytes() and slots.tobytes() == whole[1].tobytes()


@needs_library
@pytest.mark.parametrize("operator", MAKERS)
@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[2, 0, 1], [2, 1, 0]], "ends at row 2, from slot 1 to 0, do not fit 3 rows and 2 slots"),
        ([[4, 0, 1]], "ends at row 4"),
        ([[0, 0, 1], [3, 0, 1]], "ends at row 0"),
        ([[1, 0, 1], [-(1 << 63), 0, 1], [3, 0, 1]], "ends at row -9223372036854775808"),
        ([[3, -1, 1]], "from slot -1 to 1"),
        ([[3, 0, 2]], "from slot 0 to 2"),
        ([[3, (1 << 63) - 1, 1]], "from slot 9223372036854775807"),
        ([[1, 0, 1], [2, 0, 1]], "sequences end at row 2 of 3"),
        ([], "2 slots, and no sequences in them"),
    ],
)
def test_parts_that_are_not_there_are_refused(operator: str, sequences: list[list[int]], message: str) -> None:
    case = next(case for case in cases(operator) if "sequences" in case.inputs)
    given = given_to(case)
    inputs = {
        name: value if name in FIXED else np.resize(value, (3, *value.shape[1:])) for name, value in given.items()
    }
    inputs["past"] = np.zeros((2, *given["past"].shape[-2:]), np.float32)
    inputs["sequences"] = np.array(sequences, np.int64).reshape(-1, 3)
    with pytest.raises(Exception, match=message):
        run(Case(operator, case.attributes, dict(inputs), case.initializers, case.outputs), str(native.library_path()))


FIXED = ("kernel", "bias", "step_bias", "decay", "skip")


def run(case: Case, library: str | None, threads: int = 1) -> Outputs:
    """The node's outputs, by the library's kernel or, without, its portable body."""
    return list(opened(case, library, threads).run(None, {name: value for name, value in case.inputs.items()}))


def opened(case: Case, library: str | None, threads: int = 1) -> Any:
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in case.inputs.items()
        if value is not None
    ]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in case.outputs]
    node = onnx.helper.make_node(
        case.operator, list(case.inputs), list(case.outputs), domain=EDGEBLT, **case.attributes
    )
    graph = onnx.helper.make_graph([node], "graph", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(EDGEBLT, 1)]
    function = onnx.FunctionProto.FromString(ir.to_proto(FUNCTIONS[case.operator](23)).SerializeToString())
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=[function])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if library:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
