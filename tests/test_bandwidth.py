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

MEGABYTE = 1 << 20


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_is_measured(threads: int) -> None:
    measured = measure_bandwidth(threads, 2 * MEGABYTE + 5, repeats=2)
    assert (measured.threads, measured.buffer_bytes) == (threads, 2 * MEGABYTE)
    assert measured.bytes_per_s == max(measured.readers.values()) == measured.readers[measured.reader]
    assert len(measured.readers) == 3 and all(0 < rate < 1e15 for rate in measured.readers.values())


def test_readers_read_everything() -> None:
    """Each element counts: what the readers give of random numbers needs all of them."""
    chance = np.random.default_rng(0)
    matrix = chance.integers(0, 9, (37, 4096)).astype(np.float32)  # their sums are exact
    with ThreadPoolExecutor(2) as pool:
        results: dict[str, Any] = {name: read() for name, read in bandwidth.memory_readers(matrix, 2, pool).items()}
    sums = matrix.sum(axis=0, dtype=np.float64)
    np.testing.assert_array_equal(results["onnxruntime MatMul"][0], sums[None])
    np.testing.assert_array_equal(np.sum(results["numpy product"], axis=0), sums)
    assert max(results["numpy maximum"]) == matrix.view(np.uint8).max()


def test_the_graph_is_what_onnx_would_write() -> None:
    model = onnx.load_from_string(bandwidth.product_graph())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


def test_refused() -> None:
    for arguments in ({"threads": 0}, {"repeats": 0}, {"buffer_bytes": MEGABYTE - 1}, {"threads": -3}):
        with pytest.raises(EdgebltError) as refused:
            measure_bandwidth(**arguments)
        assert re.fullmatch(r"(threads|repeats|buffer) is -?\d+; it must be at least \d+", str(refused.value))
