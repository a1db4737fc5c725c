"""Memory bandwidth of this machine, which bounds decoding where weights exceed the caches."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeblt.bundle.examination.onnx_graph import FLOAT, Node, Value
from edgeblt.errors import EdgebltError
from edgeblt.measure.products.graph_writer import write_model
from edgeblt.runtime import native
from edgeblt.runtime.machine.cores import check_threads, usable_cores
from edgeblt.runtime.providers import session_options

BUFFER_BYTES = 512 << 20
_WIDTH = 4096  # columns of the matrix that is read
_SMALLEST = 1 << 20

Buffer = NDArray[np.float32]


@dataclass(frozen=True)
class Bandwidth:
    """Bandwidth of the best of several readers; field by field JSON."""

    bytes_per_s: float
    reader: str
    readers: dict[str, float]  # the best bytes per second of each
    threads: int
    buffer_bytes: int


def measure_bandwidth(threads: int | None = None, buffer_bytes: int = BUFFER_BYTES, repeats: int = 7) -> Bandwidth:
    """Reads a buffer, far larger than any cache by default, in several ways in turn, on `threads` or all cores.

    The fastest run of the fastest reader counts, as other work on the machine can only slow reading down. Raises
    EdgebltError for counts below 1 and buffers below a megabyte.
    """
    check_threads(threads)
    threads = usable_cores() if threads is None else threads
    for name, value, least in (("repeats", repeats, 1), ("buffer", buffer_bytes, _SMALLEST)):
        if value < least:
            raise EdgebltError(f"{name} is {value}; it must be at least {least}")
    matrix = np.ones((buffer_bytes // (4 * _WIDTH), _WIDTH), np.float32)  # ones, as zeros would be a single shared page
    with ThreadPoolExecutor(threads) as pool:
        readers = memory_readers(matrix, threads, pool)
        for read in readers.values():
            read()
        rounds = [{name: matrix.nbytes / _seconds(read) for name, read in readers.items()} for _ in range(repeats)]
    rates = {name: max(rates[name] for rates in rounds) for name in readers}
    best = max(rates, key=lambda name: rates[name])
    return Bandwidth(rates[best], best, rates, threads, matrix.nbytes)


def memory_readers(matrix: Buffer, threads: int, pool: ThreadPoolExecutor) -> dict[str, Callable[[], object]]:
    """Functions by name that each read all of `matrix` once, on no more than `threads` cores.

    numpy's product takes as many cores as its library likes, so that it may only be had where all are to be used.
    """
    session = onnxruntime.InferenceSession(
        product_graph(), session_options(threads), providers=["CPUExecutionProvider"]
    )
    row = np.ones((1, len(matrix)), np.float32)
    pieces = np.array_split(matrix, 4 * threads)  # more than threads, so that a slowed core gets fewer

    def in_threads(read: Callable[[Buffer], object]) -> Callable[[], object]:
        return lambda: list(pool.map(read, pieces))

    readers = {
        "onnxruntime MatMul": lambda: session.run(None, {"row": row, "matrix": matrix}),
        "numpy maximum": in_threads(lambda piece: piece.view(np.uint8).max()),
    }
    if threads >= usable_cores():
        readers["numpy product"] = in_threads(lambda piece: row[0, : len(piece)] @ piece)
    if native.library_path():
        readers["native"] = in_threads(native.read_memory)
    return readers


def _seconds(read: Callable[[], object]) -> float:
    started = time.perf_counter()
    read()
    return time.perf_counter() - started


def product_graph() -> bytes:
    """An ONNX model: row [1, n] times matrix [n, m], all float32."""
    names = ("row", "matrix", "product")
    row, matrix, product = (Value(name, FLOAT, (f"{name}_rows", f"{name}_columns")) for name in names)
    return write_model([Node("", "MatMul", names[:2], names[2:], ())], [row, matrix], [product], {}, {"": 23})
