"""Speed of this machine's matrix products, without a bundle: `edgeblt doctor --speed`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from edgeblt.measure.bandwidth import measure_bandwidth
from edgeblt.measure.products.product_graphs import DENSE, Product, open_product, products, runner
from edgeblt.progress import progress
from edgeblt.runtime import native
from edgeblt.runtime.machine.cores import usable_cores
from edgeblt.runtime.machine.device import device_name

SECONDS = 5.0  # time for the products, without opening graphs and reading memory
_BITS = (8, 4, 32)
_LEAST_ROUNDS = 3
_AT_A_TIME = 0.002  # seconds: short, to fall between what else runs
_BANDWIDTH_REPEATS = 3
NOISE = 1.1  # a product counts as slower from this ratio on

Case = tuple[int, int, int, int]  # bits, inputs, outputs, rows


@dataclass(frozen=True)
class Matrix:
    """A matrix to multiply with, and how many copies of it a run goes through."""

    inputs: int
    outputs: int
    copied_bytes: int  # weights of all copies: more than the caches hold, or less
    rows: tuple[int, ...]  # rows of inputs: decoding, checking drafts, reading a prompt


MATRICES = (
    Matrix(128, 384, 1 << 20, (1, 8, 64)),
    Matrix(1024, 1024, 4 << 20, (1, 8, 64)),
    Matrix(2048, 5632, 64 << 20, (1, 8)),
)


@dataclass(frozen=True)
class ProductTime:
    """Least time of one product on one thread; field by field JSON."""

    operator: str  # DenseMatMul is ours, the others are ONNX Runtime's
    level: str | None  # instructions of our kernel
    bits: int  # bits of a weight
    inputs: int
    outputs: int
    rows: int
    microseconds: float
    weight_bytes: int

    @property
    def case(self) -> Case:
        """Bits, inputs, outputs and rows, by which products compare."""
        return self.bits, self.inputs, self.outputs, self.rows

    def describe(self) -> str:
        return f"int{self.bits}, {self.inputs:,} x {self.outputs:,}, {self.rows} row{'s' * (self.rows > 1)}"


@dataclass(frozen=True)
class ProductSpeed:
    """Field by field JSON: `speed` in that of `edgeblt doctor`."""

    device: str
    level: str | None  # instructions in use; None where the native library is not
    bandwidths: dict[str, float]  # bytes per second of reading memory, by the number of threads
    products: tuple[ProductTime, ...]
    finding: str  # a sentence


def measure_products(seconds: float = SECONDS, matrices: tuple[Matrix, ...] = MATRICES) -> ProductSpeed:
    """Times products at every level of instructions available, beside ONNX Runtime's, for about `seconds` in all.

    On one thread. The level in use is set again afterwards.
    """
    status = native.status()
    level = status.level if status.reason is None else None
    bandwidths = {str(count): measure_bandwidth(count, repeats=_BANDWIDTH_REPEATS).bytes_per_s
                  for count in sorted({1, usable_cores()})}  # fmt: skip
    cases = sum(len(matrix.rows) for matrix in matrices) * len(_BITS)
    times: list[ProductTime] = []
    try:
        with progress("timing products", cases, "cases") as advance:
            for matrix in matrices:
                for bits in _BITS:
                    for found in _times(matrix, bits, seconds / cases, timed_levels(status), level):
                        times += found
                        advance(1)
    finally:
        if level:
            native.use_level(level)
    return ProductSpeed(device_name(), level, bandwidths, tuple(times), finding(times, level))


def timed_levels(status: native.NativeStatus) -> tuple[str, ...]:
    """Levels of instructions to time: the scalar reference only where there is no other; none without the library."""
    levels = status.levels if status.reason is None else ()
    return tuple(level for level in levels if level != "scalar") or levels


def _times(
    matrix: Matrix, bits: int, seconds: float, levels: tuple[str, ...], used: str | None
) -> Iterator[list[ProductTime]]:
    """Times of every product with weights of so many bits, for one number of rows after the other.

    Where one is faster than ours at the level in use, `used`, all are timed again, as it may be noise.
    """
    opened = []
    for product in products(bits, matrix.inputs, matrix.outputs, ours=bool(levels)):
        copies = max(1, matrix.copied_bytes // product.weight_bytes)
        opened.append((product, copies, open_product(product, copies, threads=1)))
    for rows in matrix.rows:
        named: list[tuple[Product, str | None]] = []
        runs: list[Callable[[], float]] = []
        for product, copies, session in opened:
            run = runner(session, rows)
            for level in levels if product.operator == DENSE else (None,):
                named.append((product, level))
                runs.append(partial(_time_per_node, run, copies, level))
        least = interleaved(runs, seconds)
        ours = [took for (_, level), took in zip(named, least, strict=True) if level and level == used]
        if ours and min(ours) > NOISE * min(least):
            least = list(map(min, least, interleaved(runs, seconds)))
        yield [
            ProductTime(product.operator, level, bits, matrix.inputs, matrix.outputs, rows, took * 1e6,
                        product.weight_bytes)
            for (product, level), took in zip(named, least, strict=True)
        ]  # fmt: skip


def _time_per_node(run: Callable[[], None], nodes: int, level: str | None) -> float:
    """Seconds of a node, from as many runs as fit in a short time."""
    if level:
        native.use_level(level)
    count, began = 0, time.perf_counter()
    while True:
        run()
        count += 1
        took = time.perf_counter() - began
        if took >= _AT_A_TIME:
            return took / (count * nodes)


def interleaved(runs: list[Callable[[], float]], seconds: float) -> list[float]:
    """Least of the times that each function gives: all in turn, several rounds, until `seconds` are over."""
    for run in runs:
        run()  # the first one fills caches and buffers
    least = [float("inf")] * len(runs)
    rounds, began = 0, time.perf_counter()
    while rounds < _LEAST_ROUNDS or time.perf_counter() - began < seconds:
        least = [min(best, run()) for best, run in zip(least, runs, strict=True)]
        rounds += 1
    return least


def finding(times: list[ProductTime], level: str | None) -> str:
    """One sentence: whether another level, or ONNX Runtime, is faster than `level`, which is in use."""
    if level is None:
        return "The native library is not used here, so there is nothing to compare ONNX Runtime's products with."
    used = {each.case: each for each in times if each.operator == DENSE and each.level == level}
    levels = [each for each in times if each.level not in (None, level)]
    others = [each for each in times if each.level is None and each.case in used]
    faster = [said for name, found in (("another level", levels), ("ONNX Runtime", others))
              if (said := _faster(name, found, used))]  # fmt: skip
    if not faster:
        return f"No product is slower at level {level}, which is used, than at another level or in ONNX Runtime."
    return f"Level {level} is used, but {'; '.join(faster)}."


def _faster(name: str, others: list[ProductTime], used: dict[Case, ProductTime]) -> str:
    """Clause that says in how many cases, and where most, others are faster than what is used; empty for none."""
    ratios = {each: used[each.case].microseconds / each.microseconds for each in others}
    cases = {each.case for each, ratio in ratios.items() if ratio > NOISE}
    if not cases:
        return ""
    worst = max(ratios, key=lambda each: ratios[each])
    what = f"{worst.level or worst.operator}, {worst.describe()}"
    remedy = f"; EDGEBLT_NATIVE={worst.level} chooses it" if worst.level else ""
    return f"{name} is faster in {len(cases)} of {len(used)} cases, up to {ratios[worst]:.1f} times ({what}{remedy})"
