"""Time of one matrix product by each operator ONNX Runtime has for it: what docs/quantization.md chooses from.

    python benchmarks/operators.py [--inputs 1024] [--outputs 2816] [--threads 1] [--repeats 15]

Random weights; all operators in turn, many times over, medians in microseconds. The last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgeblt.runtime.machine.device import device_name

ROWS = (1, 8, 64)  # rows of inputs: decoding, verifying a draft, reading a prompt
SECONDS = 0.02  # duration of one measurement, far above the clock's resolution
Arrays = dict[str, np.ndarray]
Case = tuple[str, str, dict[str, Any], list[str], Arrays]  # operator, its domain, attributes, inputs, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--outputs", type=int, default=2816)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    sessions = {
        name: open_session(case, arguments.inputs, arguments.threads)
        for name, case in cases(arguments.inputs, arguments.outputs).items()
    }
    medians = {name: [0.0] * len(ROWS) for name in sessions}
    for column, rows in enumerate(ROWS):
        times = interleaved(sessions, np.random.default_rng(0).normal(size=(rows, arguments.inputs)), arguments.repeats)
        for name, microseconds in times.items():
            medians[name][column] = statistics.median(microseconds)
    print(f"{arguments.inputs} x {arguments.outputs}, {arguments.threads} thread(s), {device_name()}, microseconds")
    print(f"{'':40}" + "".join(f"{f'M={rows}':>10}" for rows in ROWS))
    for name, values in medians.items():
        print(f"{name:40}" + "".join(f"{value:10.0f}" for value in values))
    result = {"device": device_name(), **vars(arguments), "rows": ROWS, "microseconds": medians}
    print(json.dumps(result))


def cases(inputs: int, outputs: int) -> dict[str, Case]:
    """Operators by the name to show, with weights of their own kind."""
    chance = np.random.default_rng(1)
    dense = chance.normal(size=(inputs, outputs)).astype(np.float32)
    codes = chance.integers(0, 255, (inputs, outputs), dtype=np.uint8)
    found: dict[str, Case] = {
        "MatMul fp32": ("MatMul", "", {}, ["x", "b"], {"b": dense}),
        "DynamicQuantizeMatMul int8": (
            "DynamicQuantizeMatMul", "com.microsoft", {}, ["x", "b", "scale", "zero"],
            {"b": codes, "scale": np.full(outputs, 0.01, np.float32), "zero": np.full(outputs, 128, np.uint8)},
        ),
    }  # fmt: skip
    for bits, block in ((8, 16), (8, 32), (8, 128), (4, 16), (4, 32), (4, 128), (4, 256)):
        blocks = -(-inputs // block)
        weights: Arrays = {
            "b": chance.integers(0, 255, (outputs, blocks, block * bits // 8), dtype=np.uint8),
            "scale": np.full((outputs, blocks), 0.01, np.float32),
        }
        attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4}
        name = f"MatMulNBits {bits}-bit, blocks of {block}"
        found[name] = ("MatMulNBits", "com.microsoft", attributes, ["x", "b", "scale"], weights)
        if bits == 4 and block == 32:
            points = chance.integers(0, 255, (outputs, -(-blocks // 2)), dtype=np.uint8)
            found[f"{name}, zero points"] = (
                "MatMulNBits", "com.microsoft", attributes, ["x", "b", "scale", "zero"], weights | {"zero": points},
            )  # fmt: skip
    count = inputs * outputs
    bnb4: Arrays = {
        "b": chance.integers(0, 255, count // 2, dtype=np.uint8),
        "scale": np.full(count // 64, 0.01, np.float32),
    }
    attributes = {"K": inputs, "N": outputs, "block_size": 64, "quant_type": 1}
    found["MatMulBnb4 nf4"] = ("MatMulBnb4", "com.microsoft", attributes, ["x", "b", "scale"], bnb4)
    return found


def open_session(case: Case, inputs: int, threads: int) -> onnxruntime.InferenceSession:
    operator, domain, attributes, names, weights = case
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def interleaved(
    sessions: dict[str, onnxruntime.InferenceSession], values: np.ndarray, repeats: int
) -> dict[str, list[float]]:
    """Microseconds a run, `repeats` measurements of each session in turn."""
    feeds = {"x": values.astype(np.float32)}
    runs = {name: (lambda session=session: session.run(None, feeds)) for name, session in sessions.items()}
    counts = {name: max(1, int(SECONDS / seconds(run, 2))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, counts[name]) * 1e6)
    return times


def seconds(run: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    main()
