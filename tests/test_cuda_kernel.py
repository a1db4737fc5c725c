"""The CUDA kernel of `edgeblt::EntropyPatch` without a device: its source run by the CPU, thread by thread, against the
rules in plain Python."""

import ctypes
import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import patching_oracle
import test_entropy_patch as patching
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.export.operators.entropy_patch import setting_defaults

ROOT = Path(__file__).parents[1]
WIDTH = patching.WIDTH
GUARD = 64  # elements beside every array, which must stay as they are and must not be read
UNIT = patching.UNIT
# Which thread goes first: in order, backwards, and at random.
ORDERS = (0, 1, 20260101)
needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")


class State(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("entropy", "space", "since")]


class Settings(ctypes.Structure):
    _fields_ = [
        ("rule", ctypes.c_int64),
        ("threshold", ctypes.c_float),
        ("threshold_add", ctypes.c_float),
        ("max_patch_length", ctypes.c_int64),
        ("patch_size", ctypes.c_int64),
    ]


class Work(ctypes.Structure):
    """`PatchWork` of native/cuda/entropy_patch.h."""

    _fields_ = [
        ("logits", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("length", "width", "position")),
        ("state", State),
        ("settings", Settings),
        *((name, ctypes.c_void_p) for name in ("sequences", "sequence_states")),
        ("sequence_count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("entropies", "patch_starts", "states")),
    ]


@functools.cache
def compile_emulated(directory: Path) -> ctypes.CDLL:
    path = directory / "emulated.so"
    include = ROOT / "native" / "tests" / "emulated_cuda"
    options = ["-std=c++17", "-O1", "-w", "-ffp-contract=off"]
    source = ROOT / "native" / "tests" / "emulated_entropy_patch.cpp"
    command = ["c++", *options, "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(path))
    library.run_entropy_patch.argtypes = [ctypes.POINTER(Work), ctypes.c_void_p, ctypes.c_uint]
    library.run_entropy_patch.restype = ctypes.c_char_p
    library.last_stream.restype = ctypes.c_void_p
    return library


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel's source, compiled with a header in place of CUDA's own."""
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    return compile_emulated(tmp_path_factory.getbasetemp())


def guarded(array: NDArray[Any], outside: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """`array` in the middle of a larger one, and that."""
    whole = np.full(array.size + 2 * GUARD, outside, array.dtype)
    inside = whole[GUARD : GUARD + array.size].reshape(array.shape)
    inside[...] = array
    return inside, whole


class Emulation:
    """The operator, as `test_entropy_patch.run` is it for ONNX Runtime."""

    def __init__(self, library: ctypes.CDLL, order: int = 0) -> None:
        self.library, self.order = library, order
        self.stream: int | None = None

    def call(
        self,
        rule: PatchingRule,
        logits: NDArray[np.float32],
        ids: NDArray[np.int64],
        position: int,
        state: NDArray[np.float32],
    ) -> patching.Results:
        length, width = logits.shape
        # What lies beside the inputs would be the largest logit there is, and an id that is a start.
        (logits, _), (ids, _) = guarded(logits, 3e38), guarded(ids, 2)
        entropies, entropies_whole = guarded(np.full(length, np.nan, np.float32), 7)
        starts, starts_whole = guarded(np.full(length, 9, np.uint8), 9)
        states, states_whole = guarded(np.full((length, 3), np.nan, np.float32), 7)
        defaults = setting_defaults(rule)
        knobs = Settings(int(rule.rule), *(value[0] for value in defaults.values()))
        work = Work(
            logits.ctypes.data, ids.ctypes.data, length, width, position, State(*state.tolist()), knobs, None, None, 0,
            entropies.ctypes.data, starts.ctypes.data, states.ctypes.data,
        )  # fmt: skip
        error = self.library.run_entropy_patch(ctypes.byref(work), self.stream, self.order)
        assert error is None, error
        for whole, outside in ((entropies_whole, 7), (starts_whole, 9), (states_whole, 7)):
            assert (whole[:GUARD] == outside).all() and (whole[-GUARD:] == outside).all()
        assert set(starts.tolist()) <= {0, 1}
        return patching.Results(entropies.copy(), starts.astype(bool), states.copy())

    def run(
        self,
        rule: PatchingRule,
        logits: NDArray[np.float32],
        ids: NDArray[np.int64],
        sizes: list[int],
        position: int = 0,
        state: NDArray[np.float32] | None = None,
    ) -> patching.Results:
        state = np.full(3, np.nan, np.float32) if state is None else state  # nothing may come of it at position 0
        parts, begin = [], 0
        for size in sizes:
            rows = slice(begin, begin + size)
            parts.append(self.call(rule, logits[rows], ids[rows], position + begin, state))
            state, begin = parts[-1].states[-1], begin + size
        assert begin == len(ids)
        return patching.Results(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@pytest.mark.parametrize("rule", Rule)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_the_kernel_decides_as_the_oracle_in_any_chunks(emulated: ctypes.CDLL, rule: Rule, data: st.DataObject) -> None:
    kernel = Emulation(emulated, data.draw(st.sampled_from(ORDERS)))
    knobs, logits, entropies, ids, sizes = data.draw(patching.sequences(rule))
    whole = kernel.run(knobs, logits, ids, [len(ids)])
    np.testing.assert_array_equal(whole.patch_starts, patching_oracle.patch_starts(knobs, entropies, ids))
    np.testing.assert_allclose(whole.entropies, entropies, atol=1e-4)
    np.testing.assert_array_equal(whole.states, patching.expected_states(knobs, whole.entropies, ids))
    patching.assert_same_bits(kernel.run(knobs, logits, ids, sizes), whole)
    patching.assert_same_bits(kernel.run(knobs, logits, ids, [1] * len(ids)), whole)
    begin = data.draw(st.integers(1, len(ids))) - 1
    state = whole.states[begin - 1] if begin else None
    rest = kernel.run(knobs, logits[begin:], ids[begin:], [len(ids) - begin], begin, state)
    patching.assert_same_bits(rest, whole.rows(slice(begin, None)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("maximum", [None, 1, 5, 70])
@pytest.mark.parametrize("rule", Rule)
def test_long_chunks_are_decided_by_the_oracle(
    emulated: ctypes.CDLL, rule: Rule, maximum: int | None, order: int
) -> None:
    """Over 32 rows entropies and decisions are two launches; starts are rare enough to lie several warps back."""
    chance = np.random.default_rng([rule, maximum or 0])
    levels = np.where(chance.random(133) < 0.03, 12, chance.integers(1, 3, 133))
    logits = np.stack([patching.row_of_level(level) for level in levels.tolist()])
    ids = np.append(1, chance.choice([101, 101, 101, 36, 2], 132, p=[0.5, 0.3, 0.15, 0.04, 0.01]))
    knobs = PatchingRule(rule, 1.1, 0.4, maximum, 45)
    kernel = Emulation(emulated, order)
    whole = kernel.run(knobs, logits, ids, [133])
    expected = patching_oracle.patch_starts(knobs, levels * patching.STEP, ids)
    np.testing.assert_array_equal(whole.patch_starts, expected)
    np.testing.assert_array_equal(whole.states, patching.expected_states(knobs, whole.entropies, ids))
    for sizes in ([1, 32, 33, 31, 36], [64, 69], [1] * 133):
        patching.assert_same_bits(kernel.run(knobs, logits, ids, sizes), whole)


@pytest.mark.parametrize("rule", Rule)
def test_far_positions_keep_counting(emulated: ctypes.CDLL, rule: Rule) -> None:
    begin, length, since = 2**40, 50, 3
    knobs = PatchingRule(rule, 9.0, 9.0, max_patch_length=7, patch_size=2**31 - 1)
    logits, state = np.zeros((length, WIDTH), np.float32), np.array([0, 0, since], np.float32)
    starts = Emulation(emulated).run(knobs, logits, np.full(length, 101), [12, 38], begin, state).patch_starts
    assert starts.tolist() == [rule is Rule.BYTE or (since + i + 1) % 7 == 0 for i in range(length)]


def test_every_id_is_known_to_be_a_space_or_not(emulated: ctypes.CDLL) -> None:
    ids = np.arange(300)
    states = Emulation(emulated).run(PatchingRule(Rule.SPACE), np.zeros((300, 3), np.float32), ids, [300]).states
    assert states[:, 1].tolist() == [patching_oracle.is_space_like(token) for token in ids.tolist()]


def error_bound(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[T] nats: first-order rounding of log S - W / S with S = sum e**d, W = sum e**d * d over V logits.

    e**d has 3 units, and |d| for its rounded d; a term of W has 2 more; each addition has one, of which a lane makes
    V / 32, and 5 follow between lanes.
    """
    exact = logits.astype(np.float64)
    difference = exact - exact.max(axis=1, keepdims=True)
    share = np.exp(difference)
    additions = -(-logits.shape[1] // 32) + 5
    own = 3 + np.abs(difference)
    total = share.sum(axis=1)
    total_error = (share * (own + additions)).sum(axis=1) / total
    mean = (share * np.abs(difference)).sum(axis=1) / total
    weighted_error = (share * np.abs(difference) * (own + additions + 2)).sum(axis=1) / total
    bound: NDArray[np.float64] = total_error + weighted_error + mean * (total_error + 1) + 2 * np.log(total) + mean + 2
    return bound * UNIT


@pytest.mark.parametrize("scale", [1e-3, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 37, 259, 260, 1000])
def test_entropies_are_within_rounding_and_the_same_in_any_company(
    emulated: ctypes.CDLL, width: int, scale: float
) -> None:
    logits = (np.random.default_rng(width).normal(size=(35, width)) * scale).astype(np.float32)
    ids, knobs, kernel = np.full(35, 1), PatchingRule(Rule.THRESHOLD), Emulation(emulated)
    whole = kernel.run(knobs, logits, ids, [35])
    error = np.abs(whole.entropies - patching_oracle.entropies(logits))
    assert (error <= error_bound(logits)).all(), (error / error_bound(logits)).max()
    for sizes in ([1] * 35, [32, 3], [2, 33]):
        patching.assert_same_bits(kernel.run(knobs, logits, ids, sizes), whole)


def test_entropies_of_extreme_logits(emulated: ctypes.CDLL) -> None:
    logits = np.zeros((9, 260), np.float32)
    logits[:7] = patching.extreme_logits()
    logits[7] = -3e38
    logits[7, 100] = 3e38  # their difference overflows
    logits[8] = np.finfo(np.float32).max
    expected = np.log([*patching.EXTREME_COUNTS, 1, 260])
    actual = Emulation(emulated).run(PatchingRule(Rule.THRESHOLD), logits, np.full(9, 1), [9]).entropies
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert actual[3] == actual[7] == 0


@pytest.mark.parametrize(("length", "launches"), [(0, 0), (1, 1), (16, 1), (32, 1), (33, 2), (200, 2)])
def test_decoding_is_one_launch_in_the_caller_s_stream(emulated: ctypes.CDLL, length: int, launches: int) -> None:
    kernel, before = Emulation(emulated), emulated.launches()
    kernel.stream = 0x1000 + length
    kernel.call(
        PatchingRule(Rule.BYTE), np.zeros((length, 2), np.float32), np.zeros(length, int), 0, np.zeros(3, np.float32)
    )
    assert emulated.launches() == before + launches
    assert not launches or emulated.last_stream() == kernel.stream


@pytest.mark.parametrize("length", [1, 33])
def test_a_launch_that_fails_is_said(emulated: ctypes.CDLL, length: int) -> None:
    emulated.refuse_launches(True)
    try:
        with pytest.raises(AssertionError, match="invalid configuration argument"):
            Emulation(emulated).run(
                PatchingRule(Rule.BYTE), np.zeros((length, 2), np.float32), np.zeros(length, int), [length]
            )
    finally:
        emulated.refuse_launches(False)


def test_more_rows_than_a_grid_has_blocks_are_refused(emulated: ctypes.CDLL) -> None:
    """Their number would be cut to 32 bits, and rows be left out. Nothing is read, so nothing need be there."""
    before = emulated.launches()
    work = Work(length=4 * (2**31 - 1) + 1, width=1)
    assert emulated.run_entropy_patch(ctypes.byref(work), None, 0) == (
        b"more rows at once than a grid has blocks; feed less at once"
    )
    assert emulated.launches() == before


@needs_compiler
def test_the_emulation_finds_threads_that_do_not_meet(tmp_path: Path) -> None:
    """A barrier that one warp leaves out, and an exchange that half a warp does."""
    (tmp_path / "broken.cpp").write_text(
        "#include <cuda_runtime.h>\n#include <cstdio>\n"
        "void block() { if (threadIdx.x < 32) __syncthreads(); }\n"
        "void warp() { if (threadIdx.x % 32 < 16) __shfl_xor_sync(~0U, 1.0F, 1); }\n"
        "void fine() { __syncthreads(); __ballot_sync(~0U, 1); }\n"
        "int main() { cudaLaunchConfig_t how{}; how.gridDim = dim3(1); how.blockDim = dim3(64);\n"
        '  for (auto kernel : {block, warp, fine}) std::printf("%d ", cudaLaunchKernelEx(&how, kernel)); }\n'
    )
    include = ROOT / "native" / "tests" / "emulated_cuda"
    program = str(tmp_path / "broken")
    subprocess.run(["c++", "-std=c++17", f"-I{include}", program + ".cpp", "-o", program], check=True)
    assert subprocess.run([program], capture_output=True, check=True, timeout=60).stdout == b"719 719 0 "
