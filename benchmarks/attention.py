"""Times of attention over a cache: the native library's at every level beside its portable body, through ONNX Runtime.

    python benchmarks/attention.py [--threads 1] [--library OTHER.so] [--toy]

One row, as a byte is decoded, four, as a draft is checked, and 128, as a prompt is read. A run computes four layers
with a cache each. All take turns; the least time of a run is shown, in microseconds per row and layer. The last line is
JSON.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.export.operators import matmuls
from edgeblt.runtime import native
from edgeblt.runtime.machine.device import device_name

# heads, heads of keys, elements of a head, window (-1: none), filled slots
SHAPES = {
    "12 heads of 64, window 512": (12, 12, 64, 512, 575),
    "4 heads of 32, window 128": (4, 4, 32, 128, 191),
    "16 heads of 64 over 4 of keys, all 1,024 slots": (16, 4, 64, -1, 1024),
}
TOY_SHAPES = {"2 heads of 16, window 64": (2, 2, 16, 64, 191)}
ROWS = (1, 4, 128)
LAYERS = 4
PORTABLE = "portable body"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--library", help="another build of the native library, to time beside the installed one")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--seconds", type=float, default=0.004, help="of one measurement")
    parser.add_argument("--toy", action="store_true", help="a small shape, a few rounds: only to see that all runs")
    arguments = parser.parse_args()
    rounds, seconds = (2, 0.0) if arguments.toy else (arguments.rounds, arguments.seconds)
    results = []
    for name, shape in (TOY_SHAPES if arguments.toy else SHAPES).items():
        variants = open_variants(model(*shape[:4]), arguments.threads, arguments.library)
        for rows in ROWS:
            runs = {variant: runner(session, rows, *shape) for variant, (session, _) in variants.items()}
            least = least_times(runs, {variant: use for variant, (_, use) in variants.items()}, rounds, seconds)
            print(f"{name}, {rows} row(s): microseconds per row and layer")
            for variant, duration in least.items():
                per_row = duration * 1e6 / rows / LAYERS
                print(f"  {variant:32}{per_row:9.2f}")
                results.append({"shape": name, "rows": rows, "variant": variant, "microseconds": per_row})
    print(json.dumps({"device": device_name(), "threads": arguments.threads, "results": results}))


Variants = dict[str, tuple[onnxruntime.InferenceSession, Callable[[], object]]]


def open_variants(content: bytes, threads: int, other: str | None) -> Variants:
    """Sessions by what computes in them, each with a function that sets the level it runs at."""
    variants: Variants = {}
    for prefix, path in (("", native.library_path()), ("other ", other)):
        if not path:
            continue
        library = ctypes.CDLL(str(path))
        session = open_session(content, threads, str(path))
        for number, level in enumerate(native.LEVELS):
            if library.edgeblt_level_available(number):
                variants[prefix + level] = session, partial(library.edgeblt_use_level, number)
    variants[PORTABLE] = open_session(content, threads, None), lambda: None
    return variants


def open_session(content: bytes, threads: int, library: str | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    if library:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def model(heads: int, kv_heads: int, width: int, window: int) -> bytes:
    """One node of attention for each layer, all of the same rows."""
    angles: list[str | int] = ["slots", width // 2]
    values = {
        "projected": ir.val("projected", ir.DataType.FLOAT, ["rows", (heads + 2 * kv_heads) * width]),
        "last_slot": ir.val("last_slot", ir.DataType.INT32, [1]),
        "total_length": ir.val("total_length", ir.DataType.INT32, [1]),
        "cosines": ir.val("cosines", ir.DataType.FLOAT, angles), "sines": ir.val("sines", ir.DataType.FLOAT, angles),
    }  # fmt: skip
    nodes, inputs, outputs = [], list(values.values()), []
    attributes = [
        ir.AttrInt64("num_heads", heads), ir.AttrInt64("kv_num_heads", kv_heads), ir.AttrInt64("window", window),
        ir.AttrFloat32("scale", width**-0.5),
    ]  # fmt: skip
    for layer in range(LAYERS):
        cache = [ir.val(f"past_{layer}_{part}", ir.DataType.FLOAT, [1, kv_heads, "slots", width]) for part in range(2)]
        given = [ir.val(f"attended_{layer}", ir.DataType.FLOAT, ["rows", heads * width])]
        given += [ir.val(f"present_{layer}_{part}", ir.DataType.FLOAT, cache[0].shape) for part in range(2)]
        operands = [values["projected"], *cache, *(values[name] for name in list(values)[1:])]
        nodes.append(ir.Node(EDGEBLT, matmuls.ATTENTION, operands, attributes, outputs=given))
        inputs += cache
        outputs += given
    opsets = {"": 23, MICROSOFT: 1, EDGEBLT: 1}
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports=opsets, name="attention")
    functions = [matmuls.window_attention_function()]
    serialized: bytes = ir.serde.serialize_model(
        ir.Model(graph, ir_version=11, functions=functions)
    ).SerializeToString()
    return serialized


def runner(
    session: onnxruntime.InferenceSession, rows: int, heads: int, kv_heads: int, width: int, window: int, filled: int
) -> Callable[[], None]:
    """A function that runs the layers on `rows` rows, the last of which is slot `filled - 1`."""
    chance, binding = np.random.default_rng(0), session.io_binding()
    kept: dict[str, NDArray[Any]] = {
        "projected": chance.normal(size=(rows, (heads + 2 * kv_heads) * width)).astype(np.float32),
        "last_slot": np.array([filled - 1], np.int32), "total_length": np.array([filled], np.int32),
    }  # fmt: skip
    angles = chance.uniform(0, 6, (filled + 1, width // 2)).astype(np.float32)
    kept |= {"cosines": np.cos(angles), "sines": np.sin(angles)}
    for layer in range(LAYERS):
        for part in range(2):
            cache = chance.normal(size=(1, kv_heads, filled + 1, width)).astype(np.float32)
            kept[f"past_{layer}_{part}"] = cache
            binding.bind_output(f"present_{layer}_{part}", "cpu", 0, np.float32, cache.shape, cache.ctypes.data)
        out = kept[f"attended_{layer}"] = np.empty((rows, heads * width), np.float32)
        binding.bind_output(f"attended_{layer}", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    for value in session.get_inputs():
        array = kept[value.name]
        binding.bind_input(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(kept: object = kept) -> None:
        session.run_with_iobinding(binding)

    return run


def least_times(
    runs: dict[str, Callable[[], None]], uses: dict[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, float]:
    """Least seconds of a run, each variant for about `seconds` at a time, in turn."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for variant, run in runs.items():
            uses[variant]()
            spent = 0.0
            while True:
                begin = time.perf_counter()
                run()
                duration = time.perf_counter() - begin
                spent += duration
                least[variant] = min(least[variant], duration)
                if spent >= seconds:
                    break
    return least


if __name__ == "__main__":
    main()
