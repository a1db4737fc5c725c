"""Results of a check on a GPU and their limits, as Markdown and JSON; nothing is measured here."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgeblt.bundle.dataclass_json import dataclass_document, parse_dataclass
from edgeblt.inspection import ProviderNodes
from edgeblt.measure.benchmark import Benchmark
from edgeblt.measure.validation import Report

MOST_BITS = 0.002  # a byte: of fp16 over float32, and of a quantized bundle over its kind for the cpu
LEAST_AGREEMENT = 0.995  # share of fp16's patch boundaries equal to float32's
LEAST_SPEEDUP = 20  # decoding, over the faster of transformers' two precisions on the same GPU
SHAPE_OPERATORS = frozenset(
    {"Cast", "Concat", "Greater", "Shape"}
)  # operators on shapes and counts, which may run on the CPU
HALF, FLOAT = "fp16", "fp32"  # the cpu computes fp16 in float32, so both stand side by side
TRANSFORMERS = ("transformers float32", "transformers float16")
ON_GPU = "{} on cuda".format

DECODE, PREFILL = "decode", "prefill"
_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Environment:
    gpu: str
    compute_capability: str
    gpu_bytes: int
    driver: str | None  # None where nvidia-smi is missing
    driver_cuda: str  # the newest CUDA that the driver knows
    processor: str
    cores: int
    python: str
    onnxruntime: str
    onnxruntime_cuda: str
    cudnn: bool
    torch: str
    torch_gpu: str | None  # None: torch has none, and transformers runs on the CPU
    transformers: str
    native_kernels: str
    native_cuda_kernels: str  # used, or why not


@dataclass(frozen=True)
class Accuracy:
    recipe: str
    target: str  # the bundle's
    report: Report


@dataclass(frozen=True)
class Placement:
    recipe: str
    stages: tuple[ProviderNodes, ...]


@dataclass(frozen=True)
class Timed:
    """Seconds that each run took for so many `bytes`; run N of all that are timed together is of the same round."""

    work: str
    name: str  # such as "int8 on cuda"
    bytes: int
    seconds: tuple[float, ...]

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / statistics.median(self.seconds)

    def times(self, other: "Timed") -> float:
        """How many times as fast, the median of the rounds that both took part in."""
        pairs = zip(self.seconds, other.seconds, strict=False)
        return statistics.median(self.bytes * theirs / (other.bytes * ours) for ours, theirs in pairs)


@dataclass(frozen=True)
class SuiteRun:
    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: tuple[str, ...]  # names


@dataclass(frozen=True)
class Failure:
    what: str
    reason: str


Record = Environment | Accuracy | Placement | Timed | Benchmark | SuiteRun | Failure
Kind = TypeVar("Kind", bound=Record)
_KINDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (Environment, Accuracy, Placement, Timed, Benchmark, SuiteRun, Failure)
}


@dataclass(frozen=True)
class Limit:
    """`value` None: it was not measured, and the limit not held."""

    what: str
    value: float | None
    bound: float
    is_least: bool

    @property
    def held(self) -> bool:  # NaN exceeds every bound
        return self.value is not None and (self.value >= self.bound if self.is_least else self.value <= self.bound)


@dataclass
class Results:
    """Records of one check in the order they come; `recipes` are the requested ones."""

    recipes: tuple[str, ...]
    quick: bool
    records: list[Record] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)

    def accuracy(self, recipe: str, target: str, provider: str) -> Report | None:
        for each in self.of(Accuracy):
            if (each.recipe, each.target, each.report.provider) == (recipe, target, provider):
                return each.report
        return None

    def timed(self, work: str, name: str) -> Timed | None:
        """The last record, which has all rounds up to then."""
        found = [record for record in self.records if isinstance(record, Timed) and record.seconds]
        return next((timed for timed in reversed(found) if (timed.work, timed.name) == (work, name)), None)

    def fastest_transformers(self, work: str) -> Timed | None:
        """On the GPU, in float32 or float16."""
        found = [self.timed(work, ON_GPU(name)) for name in TRANSFORMERS]
        return max(filter(None, found), key=lambda timed: timed.bytes_per_s, default=None)

    def speedup(self, work: str, name: str) -> float | None:
        timed, other = self.timed(work, name), self.fastest_transformers(work)
        return timed.times(other) if timed and other else None

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [record for record in self.records if isinstance(record, kind)]


def write_record(record: Record) -> str:
    """One line of JSON."""
    return json.dumps({type(record).__name__: dataclass_document(record)})


def read_records(path: Path) -> list[Record]:
    """Complete records of a file whose writer may have been stopped within a line."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            ((kind, document),) = json.loads(line).items()
        except json.JSONDecodeError:
            break
        records.append(parse_dataclass(_KINDS[kind], document, str(path)))
    return records


def limits(results: Results) -> tuple[Limit, ...]:
    """All of them, measured or not."""
    found: list[Limit] = []
    fastest = results.fastest_transformers(DECODE)
    other = fastest.name if fastest else "transformers on the same GPU"
    for recipe in results.recipes:
        found += _accuracy_limits(results, recipe)
        speedup = results.speedup(DECODE, ON_GPU(recipe))
        found.append(Limit(f"{recipe} on cuda: decoding, times {other}", speedup, LEAST_SPEEDUP, True))
        strangers = _strangers(results, recipe)
        found.append(Limit(f"{recipe} on cuda: nodes on the CPU, but those on shapes", strangers, 0, False))
    tests: list[SuiteRun] = results.of(SuiteRun)
    failed = sum(each.failed for each in tests) if tests else None
    found.append(Limit("tests on cuda that fail", failed, 0, False))
    found.append(Limit("tests on cuda that pass", sum(each.passed for each in tests) if tests else None, 1, True))
    return tuple(found)


def _accuracy_limits(results: Results, recipe: str) -> list[Limit]:
    report = results.accuracy(recipe, "cuda", "cuda")
    if recipe == HALF:
        increase = abs(report.bits_per_byte_increase) if report else None
        agreement = report.boundary_agreement if report else None
        return [
            Limit(f"{recipe} on cuda: bits per byte from float32", increase, MOST_BITS, False),
            Limit(f"{recipe} on cuda: patch boundaries as in float32", agreement, LEAST_AGREEMENT, True),
        ]
    beside = results.accuracy(recipe, "cpu", "cpu")
    difference = abs(report.bits_per_byte - beside.bits_per_byte) if report and beside else None
    return [Limit(f"{recipe} on cuda: bits per byte from the cpu's", difference, MOST_BITS, False)]


def _strangers(results: Results, recipe: str) -> int | None:
    placements: list[Placement] = [each for each in results.of(Placement) if each.recipe == recipe]
    if not placements:
        return None
    stages = [stage for placement in placements for stage in placement.stages if stage.provider == _CPU]
    return sum(count for stage in stages for name, count in stage.operators.items() if name not in SHAPE_OPERATORS)


def document(results: Results) -> dict[str, Any]:
    """All of it, for JSON; what is no finite number is null."""
    kinds = {"accuracy": Accuracy, "placement": Placement, "timed": Timed, "benchmarks": Benchmark, "tests": SuiteRun}
    found: dict[str, Any] = {"environment": next(iter(results.of(Environment)), None), "quick": results.quick}
    found |= {"recipes": results.recipes, "stage_seconds": results.stage_seconds}
    found |= {name: results.of(kind) for name, kind in kinds.items()}
    found["timed"] = [each for each in found["timed"] if each is results.timed(each.work, each.name)]
    found["speedups"] = {f"{each.work}, {each.name}": results.speedup(each.work, each.name) for each in found["timed"]}
    found["limits"] = [dataclasses.asdict(limit) | {"held": limit.held} for limit in limits(results)]
    found["failures"] = results.of(Failure)
    return dict(_finite(dataclass_document(found)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(results: Results) -> str:
    """A report of settings, table, limits and failures; a figure that was not measured is absent."""
    parts = [_described(results), _table(_HEADER, _rows(results))]
    limit_rows = [_limit_row(limit) for limit in limits(results)]
    parts.append(_table(("limit", "measured", "allowed", ""), limit_rows))
    placed = list(_placed_lines(results.of(Placement)))
    if placed:
        parts.append("Nodes on the CPU, recipes with the same together:\n\n" + "\n".join(placed))
    for tests in results.of(SuiteRun):
        counts = f"{tests.passed} passed, {tests.failed} failed, {tests.skipped} skipped"
        parts.append(f"Tests on cuda: {counts}, in {tests.seconds:.0f} s.")
    failures = [f"- {failure.what}: {failure.reason}" for failure in results.of(Failure)]
    failures += [f"- failed: {name}" for tests in results.of(SuiteRun) for name in tests.failures]
    if failures:
        parts.append("What went wrong:\n\n" + "\n".join(failures))
    return "\n\n".join(parts) + "\n"


def _described(results: Results) -> str:
    lines = ["A quick run: few bytes and few rounds."] if results.quick else []
    for environment in results.of(Environment):
        values = dataclass_document(environment).items()
        lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in values if value is not None]
    return "\n".join(lines)


_HEADER = (
    "recipe", "bundle for", "runs on", "bits per byte", "from float32", "boundaries", "KL, nats", "top-1",
    "decode, bytes/s", "times transformers", "prefill, bytes/s", "times transformers",
)  # fmt: skip


def _rows(results: Results) -> Iterable[tuple[str, ...]]:
    places: tuple[tuple[str, str], ...] = (("cpu", "cpu"), ("cuda", "cpu"), ("cuda", "cuda"))
    for recipe in results.recipes:
        for target, provider in places:
            shown = FLOAT if recipe == HALF and target == "cpu" else recipe
            name = f"{shown} on {provider}" if target == provider else ""
            cells = (*_accuracy_cells(results.accuracy(recipe, target, provider)), *_speed_cells(results, name))
            if any(cells):
                yield (shown, target, provider, *cells)
    for precision in TRANSFORMERS:
        for device in ("cuda", "cpu"):
            cells = _speed_cells(results, f"{precision} on {device}")
            if any(cells):
                yield (precision, "", device, *[""] * 5, *cells)


def _accuracy_cells(report: Report | None) -> tuple[str, ...]:
    if report is None:
        return ("",) * 5
    kl, bits, increase = report.mean_kl, report.bits_per_byte, report.bits_per_byte_increase
    return (
        f"{bits:.4f}",
        f"{increase:+.5f}",
        f"{report.boundary_agreement:.4%}",
        f"{kl:.2e}",
        f"{report.top1_agreement:.3%}",
    )


def _speed_cells(results: Results, name: str) -> tuple[str, ...]:
    cells: list[str] = []
    for work in (DECODE, PREFILL):
        timed, speedup = results.timed(work, name), results.speedup(work, name)
        cells += [f"{timed.bytes_per_s:,.1f}" if timed else "", "" if speedup is None else f"{speedup:,.1f}"]
    return tuple(cells)


def _limit_row(limit: Limit) -> tuple[str, ...]:
    value = "not measured" if limit.value is None else f"{limit.value:.6g}"
    allowed = f"at {'least' if limit.is_least else 'most'} {limit.bound:g}"
    return limit.what, value, allowed, "held" if limit.held else "NOT held"


def _placed_lines(placements: Sequence[Placement]) -> Iterable[str]:
    recipes: dict[str, list[str]] = {}
    for placement in placements:
        total = sum(stage.nodes for stage in placement.stages)
        stages = [
            f"{stage.stage} {', '.join(f'{count} {name}' for name, count in stage.operators.items())}"
            for stage in placement.stages
            if stage.provider == _CPU
        ]
        recipes.setdefault(f"of {total}: {'; '.join(stages) or 'none'}", []).append(placement.recipe)
    return (f"- {', '.join(names)}, {line}" for line, names in recipes.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
