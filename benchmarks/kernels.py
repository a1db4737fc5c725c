"""Times of the native library's matrix products beside ONNX Runtime's, through ONNX Runtime, in one interleaved run.

    python benchmarks/kernels.py [--shapes 128x384,1024x1024] [--rows 1,8,64] [--threads 1,2] [--weights hot,cold]
                                 [--products dense|forms|sparse] [--levels best|all|avx2,avx512] [--cycles] [--toy]

Weights are random, the sparse ones half zeros. A run has 8 nodes of a product's weights (hot), or many, each with
weights of its own, more than the caches hold (cold), as a model's other layers push a layer's weights out. All products
take turns; the median and the least of their times per node are shown, in microseconds, and the bytes of weights per
second of the least. `forms` are all sizes of dense blocks, blocks with zero points, and blocks of 16 inputs within 128
weights of one scale. --cycles counts the processor's cycles in the program itself instead of time (Linux, one thread):
on a busy machine these are steadier. The last line is JSON. Its `worst` is the largest ratio of a dense product's least
time, at the level that is used by itself, to that of the fastest of ONNX Runtime's with the same bits a weight.
"""

import argparse
import ctypes
import json
import os
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.export.operators import matmuls
from edgeblt.measure.bandwidth import measure_bandwidth
from edgeblt.quant.formats import interleaved_layout, sparse_layout
from edgeblt.quant.formats.weight_format import pack
from edgeblt.runtime import native
from edgeblt.runtime.machine.device import device_name

Arrays = dict[str, NDArray[Any]]
SHAPES = "128x384,1024x1024,1024x2816,2048x5632"  # the bundled model's and larger
ROWS = "1,2,4,8,16,64,128"  # rows of inputs: decoding, checking drafts, reading a prompt
ROUNDS = 31
COLD_BYTES = 96 << 20  # bytes of all copies of one product's weights
HOT_NODES = 8  # nodes of one product in a run, so that starting the run counts little


@dataclass(frozen=True)
class Product:
    """One node `op` of `domain` with these weights; `bytes` of them are read in a run."""

    op: str
    domain: str
    weights: Arrays
    attributes: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.weights.values())


def main() -> None:
    arguments = parsed()
    if arguments.cycles and arguments.threads != "1":
        raise SystemExit("--cycles counts those of one thread; use it with --threads 1")
    clock = cycle_counter() if arguments.cycles else time.perf_counter
    if native.library_path() is None:
        raise SystemExit(f"there is nothing to time: {native.status().reason}")
    best = native.status().level or ""
    levels = {"best": [best], "all": list(native.status().levels)}.get(arguments.levels) or arguments.levels.split(",")
    print(f"{device_name()}, kernels of level {', '.join(levels)}")
    results: list[dict[str, Any]] = []
    bandwidths: dict[int, float] = {}  # bytes per second, by threads
    for threads in map(int, arguments.threads.split(",")):
        print(f"\n{threads} thread(s)")
        if not arguments.cycles and not arguments.toy:
            bandwidths[threads] = measure_bandwidth(threads).bytes_per_s
            print(f"memory is read at {rate(bandwidths[threads], False)}")
        for shape in arguments.shapes.split(","):
            for weights in arguments.weights.split(","):
                results += measure(shape, weights == "cold", threads, levels, arguments, clock)
    worst = worst_ratio(results, best)
    print(json.dumps({
        "device": device_name(), "level": best, "bandwidths": bandwidths, "worst": worst, "results": results,
    }))  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="inputs x outputs, commas between")
    parser.add_argument("--threads", default="1", help="one measurement after the other")
    parser.add_argument("--rows", default=ROWS, help="rows of inputs")
    parser.add_argument("--weights", default="hot,cold", help="within the caches, out of them")
    parser.add_argument("--products", default="dense", choices=("dense", "forms", "sparse"))
    parser.add_argument("--levels", default="best", help="instructions of the native kernels: all, or scalar,avx2,..")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measurements of each product, in turn")
    parser.add_argument(
        "--seconds", type=float, default=0.004, help="of one measurement: short, to fall between what else runs"
    )
    parser.add_argument("--cycles", action="store_true", help="count cycles, not time; for one thread")
    parser.add_argument("--toy", action="store_true", help="the smallest run that does everything once, for tests")
    arguments = parser.parse_args()
    if arguments.toy:
        arguments.shapes, arguments.rows, arguments.rounds, arguments.seconds = "256x48", "1,3", 2, 1e-5
    return arguments


def measure(
    shape: str, cold: bool, threads: int, levels: list[str], arguments: argparse.Namespace, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    columns, outputs = map(int, shape.split("x"))
    products = PRODUCTS[arguments.products](columns, outputs)
    copies = COLD_BYTES >> (10 * arguments.toy)
    nodes = {n: 1 + copies // p.bytes if cold else HOT_NODES for n, p in products.items()}
    sessions = {n: open_session(p, columns, nodes[n], cold, threads) for n, p in products.items()}
    results = []
    for count in map(int, arguments.rows.split(",")):
        inputs = np.random.default_rng(0).normal(size=(count, columns)).astype(np.float32)
        runs = {
            (name, level): runner(sessions[name], inputs, level)
            for name, product in products.items()
            for level in (levels if product.domain == EDGEBLT else [""])
        }
        times = interleaved(runs, arguments.seconds, arguments.rounds, clock)
        unit, per = ("thousands of cycles", 1e-3) if arguments.cycles else ("microseconds", 1e6)
        where = "out of" if cold else "within"
        print(f"\n{columns} x {outputs}, {count} row(s), weights {where} the caches, {unit}: median, least, and rate")
        for (name, level), durations in times.items():
            per_run = [value / nodes[name] for value in durations]
            median, least = statistics.median(per_run), min(per_run)
            read = rate(products[name].bytes / least, arguments.cycles)
            print(f"  {name + (level and ', ' + level):50}{median * per:9.1f}{least * per:9.1f}  {read}")
            results.append({
                "product": name, "level": level, "inputs": columns, "outputs": outputs, "rows": count, "cold": cold,
                "threads": threads, "unit": unit, "median": median * per, "least": least * per,
                "weight_bytes": products[name].bytes,
            })  # fmt: skip
    return results


def worst_ratio(results: list[dict[str, Any]], level: str) -> dict[str, Any] | None:
    """The dense product that is slowest beside ONNX Runtime's with the same bits a weight; None without any."""
    worst: dict[str, Any] | None = None
    for ours in results:
        if not ours["product"].startswith(matmuls.DENSE) or ours["level"] != level:
            continue
        names = [ours["product"].replace(matmuls.DENSE, "MatMulNBits")]
        if ours["product"] == f"{matmuls.DENSE} int8, blocks of 128":
            names.append("DynamicQuantizeMatMul int8")
        same = ("inputs", "outputs", "rows", "cold", "threads")
        theirs = [r for r in results if r["product"] in names and all(r[key] == ours[key] for key in same)]
        if not theirs:
            continue
        fastest = min(theirs, key=lambda result: float(result["least"]))
        ratio = ours["least"] / fastest["least"]
        if worst is None or ratio > worst["ratio"]:
            worst = {"ratio": ratio, "product": ours["product"], "against": fastest["product"]}
            worst |= {key: ours[key] for key in same}
    return worst


def dense_products(columns: int, rows: int) -> dict[str, Product]:
    eight, four, _ = random_weights(columns, rows)
    products = {
        "DynamicQuantizeMatMul int8": Product(
            "DynamicQuantizeMatMul", MICROSOFT,
            {"b": np.ascontiguousarray(eight.T), "scale": np.full(1, 0.01, np.float32), "zero": np.zeros(1, np.int8)},
            {},
        )
    }  # fmt: skip
    for values, bits in ((eight, 8), (four, 4)):
        for op in ("MatMulNBits", matmuls.DENSE):
            for block in (32, 128):
                products[f"{op} int{bits}, blocks of {block}"] = dense(values, bits, block, op)
    return products


def sparse_products(columns: int, rows: int) -> dict[str, Product]:
    eight, four, chance = random_weights(columns, rows)
    products = dense_products(columns, rows)
    for values, bits in ((eight, 8), (four, 4)):
        for group in sparse_layout.GROUPS:
            kept = np.argsort(chance.random((rows, columns // group, group)), axis=2) < group // 2
            half = values * kept.reshape(rows, columns)
            name = f"SparseMatMul int{bits}, {group // 2} of {group}, blocks of 128"
            products[name] = sparse(half, bits, group)
        half = values * (chance.random(values.shape) < 0.5)
        products[f"MaskedMatMul int{bits}, a half, blocks of 128"] = masked(half, bits)
    return products


def dense_forms(columns: int, rows: int) -> dict[str, Product]:
    eight, four, _ = random_weights(columns, rows)
    products = {}
    for values, bits in ((eight, 8), (four, 4)):
        for block in (16, 32, 64, 128, 256):
            for points in (False, True) if bits == 4 and block in (32, 64) else (False,):
                for op in ("MatMulNBits", matmuls.DENSE):
                    name = f"{op} int{bits}, blocks of {block}" + ", zero points" * points
                    products[name] = dense(values, bits, block, op, points)
        name = f"{matmuls.DENSE} int{bits}, inputs by 16, blocks of 128"
        products[name] = dense(values, bits, 16, matmuls.DENSE, blocks_per_scale=8)
    return products


def random_weights(columns: int, rows: int) -> tuple[NDArray[np.int8], NDArray[np.int8], np.random.Generator]:
    chance = np.random.default_rng(1)
    eight = chance.integers(-127, 128, (rows, columns)).astype(np.int8)
    return eight, chance.integers(-8, 8, (rows, columns)).astype(np.int8), chance


def dense(
    values: NDArray[np.int8], bits: int, block: int, op: str, points: bool = False, blocks_per_scale: int = 1
) -> Product:
    rows, columns = values.shape
    middle = 1 << (bits - 1)
    blocks = columns // block
    codes = (values.astype(np.int16) + middle).astype(np.uint8).reshape(rows, blocks, block)
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block}
    scales = np.full((rows, blocks // blocks_per_scale), 0.01, np.float16)
    zero_points = np.random.default_rng(2).integers(0, 2 * middle, (rows, blocks)).astype(np.uint8)
    if op == matmuls.DENSE:
        shared = interleaved_layout.same_zero_points(bits)
        weights: Arrays = {
            "codes": interleaved_layout.interleave_codes(codes, bits),
            "scales": interleaved_layout.interleave_scales(scales),
            "zero_points": interleaved_layout.interleave_zero_points(zero_points, bits) if points else shared,
        }
        return Product(op, EDGEBLT, weights, attributes | {"blocks_per_scale": blocks_per_scale})
    weights = {"codes": pack(codes, bits), "scales": scales.astype(np.float32)}  # with halves MatMulNBits is slower
    if points:
        weights["zero_points"] = pack(zero_points, bits)
    return Product(op, MICROSOFT, weights, attributes | {"accuracy_level": 4})


def sparse(values: NDArray[np.int8], bits: int, group: int) -> Product:
    attributes, scales = sparse_parts(values, bits)
    tiles = sparse_layout.pack_tiles(values, bits, group)
    weights: Arrays = {"tiles": tiles, "scales": sparse_layout.pair_scales(scales)}
    return Product(matmuls.SPARSE, EDGEBLT, weights, attributes | {"group": group})


def masked(values: NDArray[np.int8], bits: int) -> Product:
    attributes, scales = sparse_parts(values, bits)
    stored = sparse_layout.pack_masked(values, bits)
    weights: Arrays = {"mask": stored.mask, "values": stored.values, "offsets": stored.offsets, "scales": scales}
    return Product(matmuls.MASKED, EDGEBLT, weights, attributes)


def sparse_parts(values: NDArray[np.int8], bits: int) -> tuple[dict[str, int], NDArray[np.float16]]:
    rows, columns = values.shape
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": 128, "blocks_per_scale": 1}
    return attributes, np.full((rows, -(-columns // 128)), 0.01, np.float16)


PRODUCTS = {"dense": dense_products, "forms": dense_forms, "sparse": sparse_products}


def open_session(
    product: Product, columns: int, count: int, own_weights: bool, threads: int
) -> onnxruntime.InferenceSession:
    """`count` nodes of the product of the same inputs, with weights of their own or all with the same."""
    value = ir.val("x", ir.DataType.FLOAT, ["rows", columns])
    nodes, initializers, outputs = [], [], []
    weights: list[ir.Value] = []
    for copy in range(count):
        if own_weights or not copy:
            weights = [weight(name, array, copy) for name, array in product.weights.items()]
            initializers += weights
        outputs.append(ir.val(f"y_{copy}", ir.DataType.FLOAT, ["rows", "outputs"]))
        attributes = [ir.AttrInt64(name, number) for name, number in product.attributes.items()]
        nodes.append(ir.Node(product.domain, product.op, [value, *weights], attributes, outputs=[outputs[-1]]))
    opsets = {"": 23, MICROSOFT: 1, EDGEBLT: 1}
    graph = ir.Graph([value], outputs, nodes=nodes, initializers=initializers, opset_imports=opsets, name="product")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # equal nodes would be one
    reason = native.register(options)
    assert reason is None, reason
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=11))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def weight(name: str, array: NDArray[Any], copy: int) -> ir.Value:
    own = array.copy()
    if own.dtype.itemsize == 1 and name in ("b", "codes", "tiles", "values"):
        own.flat[0] ^= copy % 127  # ONNX Runtime keeps equal weights once
    tensor = ir.tensor(own, name=f"{name}_{copy}")
    return ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(own.shape))


def runner(
    session: onnxruntime.InferenceSession, inputs: NDArray[np.float32], level: str
) -> tuple[str, Callable[[], None]]:
    """A run of the session, and the level it is for, which the caller sets."""
    binding = session.io_binding()
    binding.bind_cpu_input("x", inputs)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return level, lambda: session.run_with_iobinding(binding)


def interleaved(
    runs: dict[tuple[str, str], tuple[str, Callable[[], None]]], seconds: float, rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], list[float]]:
    """Durations of a run in units of `clock`: each product for about `seconds` at a time, in turn, many rounds."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    repeats: dict[tuple[str, str], int] = {}
    for _ in range(rounds):
        for name, (level, run) in runs.items():
            if level:
                native.use_level(level)
            if name not in repeats:
                repeats[name] = max(1, round(seconds / once(run)))
            begin = clock()
            for _ in range(repeats[name]):
                run()
            times[name].append((clock() - begin) / repeats[name])
    return times


def once(run: Callable[[], None]) -> float:
    run()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def rate(bytes_per_unit: float, cycles: bool) -> str:
    return f"{bytes_per_unit:.1f} bytes a cycle" if cycles else f"{bytes_per_unit / 1e9:.1f} GB/s"


def cycle_counter() -> Callable[[], float]:
    """This thread's cycles outside the kernel, by Linux's perf_event_open."""
    numbers = {"x86_64": 298, "aarch64": 241}
    if os.uname().sysname != "Linux" or os.uname().machine not in numbers:
        raise SystemExit("cycles can be counted on Linux only; leave out --cycles")
    attributes = bytearray(128)  # struct perf_event_attr: type 0 and config 0 are cycles
    struct.pack_into("II", attributes, 0, 0, len(attributes))
    struct.pack_into("Q", attributes, 40, 1 << 5 | 1 << 6)  # not the kernel's, not the hypervisor's
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    descriptor = ctypes.CDLL(None).syscall(numbers[os.uname().machine], buffer, 0, -1, -1, 0)
    if descriptor < 0:
        raise SystemExit("this machine lets no program count its cycles; leave out --cycles")
    return lambda: float(struct.unpack("Q", os.read(descriptor, 8))[0])


if __name__ == "__main__":
    main()
