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


def expected(case: Case) -> Outputs:
    """Both outputs in float64."""
    given = {name: np.asarray(value, np.float64) for name, value in case.inputs.items()}
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
        check(run(case, None), expected(case))


@needs_library
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("operator", MAKERS)
def test_rows_have_the_same_bits_in_any_company(operator: str, threads: int) -> None:
    """One by one, each from the state that the row before it left, on one thread or several."""
    for case in cases(operator):
        whole, alone = run(case, str(native.library_path()), threads), None
        by_row = [name for name, value in case.inputs.items() if value is not None and name not in FIXED]
        past, rows = np.asarray(case.inputs["past"]), []
        for row in range(len(whole[0])):
            inputs = {**case.inputs, "past": past}
            inputs |= {name: case.inputs[name][row : row + 1] for name in by_row}  # type: ignore[index]
            row_case = Case(operator, case.attributes, inputs, case.initializers, case.outputs)
            alone = alone or opened(row_case, str(native.library_path()))
            single, past = alone.run(None, inputs)
            rows.append(single)
        assert np.concatenate(rows).tobytes() == whole[0].tobytes() and past.tobytes() == whole[1].tobytes()


FIXED = ("past", "kernel", "bias", "step_bias", "decay", "skip")


def run(case: Case, library: str | None, threads: int = 1) -> Outputs:
    """The node's outputs, by the library's kernel or, without, its portable body."""
    return list(opened(case, library, threads).run(None, {name: value for name, value in case.inputs.items()}))


def opened(case: Case, library: str | None, threads: int = 1) -> Any:
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape)
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
