"""Reading memory: that every reader reads all of it, and what the measurement says of itself."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest

from edgeblt.errors import EdgebltError
from edgeblt.measure import bandwidth
from edgeblt.measure.bandwidth import measure_bandwidth
from edgeblt.runtime import native
from edgeblt.runtime.machine.cores import usable_cores

MEGABYTE = 1 << 20


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_is_measured(threads: int) -> None:
    measured = measure_bandwidth(threads, 2 * MEGABYTE + 5, repeats=2)
    assert (measured.threads, measured.buffer_bytes) == (threads, 2 * MEGABYTE)
    assert measured.bytes_per_s == max(measured.readers.values()) == measured.readers[measured.reader]
    assert {"onnxruntime MatMul", "numpy maximum"} <= measured.readers.keys()
    assert ("numpy product" in measured.readers) == (threads >= usable_cores())  # which may take all of them
    assert ("native" in measured.readers) == (native.library_path() is not None)
    assert all(0 < rate < 1e15 for rate in measured.readers.values())


def test_readers_read_everything() -> None:
    """Each element counts: what the readers give of random numbers needs all of them."""
    chance = np.random.default_rng(0)
    matrix = chance.integers(0, 9, (37, 4096)).astype(np.float32)  # their sums are exact
    threads = usable_cores()
    with ThreadPoolExecutor(threads) as pool:
        readers = bandwidth.memory_readers(matrix, threads, pool)
        results: dict[str, Any] = {name: read() for name, read in readers.items()}
    sums = matrix.sum(axis=0, dtype=np.float64)
    np.testing.assert_array_equal(results["onnxruntime MatMul"][0], sums[None])
    np.testing.assert_array_equal(np.sum(results["numpy product"], axis=0), sums)
    assert max(results["numpy maximum"]) == matrix.view(np.uint8).max()
    if native.library_path():
        assert sum(results["native"]) % 2**64 == words(matrix.tobytes())


@pytest.mark.skipif(native.library_path() is None, reason="there is no native library")
@pytest.mark.parametrize("count", [0, 1, 7, 8, 63, 64, 65, 255, 256, 257, 1000, 4096 + 13])
def test_the_library_reads_every_byte(count: int) -> None:
    data = np.random.default_rng(count).integers(0, 256, count, np.uint8)
    assert native.read_memory(data) == words(data.tobytes())


def words(data: bytes) -> int:
    """Sum of little-endian 64-bit words, modulo 2 ** 64."""
    return sum(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)) % 2**64


def test_the_graph_is_what_onnx_would_write() -> None:
    model = onnx.load_from_string(bandwidth.product_graph())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


def test_refused() -> None:
    for arguments in ({"threads": 0}, {"repeats": 0}, {"buffer_bytes": MEGABYTE - 1}, {"threads": -3}):
        with pytest.raises(EdgebltError) as refused:
            measure_bandwidth(**arguments)
        assert re.fullmatch(r"(threads|repeats|buffer) is -?\d+; it must be at least \d+", str(refused.value))
