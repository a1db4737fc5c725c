"""Contents of a report: results read from JSON, benchmarks joined with validations, Pareto fronts. Nothing is drawn."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgeblt.bundle.dataclass_json import parse_dataclass
from edgeblt.errors import EdgebltError
from edgeblt.evaluation.suite_report import SuiteReport
from edgeblt.measure.benchmark import TEXT, Benchmark
from edgeblt.measure.sweep_result import Sweep
from edgeblt.measure.tuning import Tuning
from edgeblt.measure.validation import Report

Result = TypeVar("Result")
AnyResult = Benchmark | Report | Tuning | SuiteReport | Sweep
TextSizes = tuple[tuple[str, int], ...]

_REMEDY = "give what `edgeblt validate`, `bench`, `tune` or `sweep` wrote with --json"
_LARGEST_FILE = 1 << 28
_LONGEST_INTEGER = 18  # digits: no count of bytes has more, and longer numbers may exceed a float
_QUANTILES = 101


@dataclass(frozen=True)
class Results:
    """Distinct results in the order in which they were read."""

    benchmarks: tuple[Benchmark, ...]
    validations: tuple[Report, ...]
    tunings: tuple[Tuning, ...]
    suites: tuple[SuiteReport, ...] = ()
    sweeps: tuple[Sweep, ...] = ()


@dataclass(frozen=True)
class Row:
    """A bundle in one setting on one device: its benchmark, its validation or both."""

    bundle: str  # its name, and its id where another bundle has the name too
    setting: str  # the settings that differ between benchmarks; empty where none does
    benchmark: Benchmark | None
    validation: Report | None

    @property
    def label(self) -> str:
        """Name of the row, unique for its device."""
        return ", ".join(filter(None, (self.bundle, self.setting)))

    @property
    def result(self) -> Benchmark | Report:
        """The benchmark, or else the validation: the result whose device the row belongs to."""
        result = self.benchmark or self.validation
        assert result
        return result


def read_results(paths: Iterable[Path]) -> Results:
    """The results in JSON files, each an object or an array of objects.

    Raises EdgebltError naming the file that cannot be read, is not JSON, or holds anything but such results.
    """
    found: list[AnyResult] = []
    for path in paths:
        for result in _read_file(path):
            if result not in found:  # a file given twice, or copied into another
                found.append(result)
    return Results(
        tuple(result for result in found if isinstance(result, Benchmark)),
        tuple(result for result in found if isinstance(result, Report)),
        tuple(result for result in found if isinstance(result, Tuning)),
        tuple(result for result in found if isinstance(result, SuiteReport)),
        tuple(result for result in found if isinstance(result, Sweep)),
    )


def join(results: Results) -> tuple[Row, ...]:
    """A row for each benchmark with its matching validation, and a row for each validation that matches none.

    They match if bundle, provider and threshold are the same; a validation made on the same device is preferred, then
    one on more bytes. Rows of one device are adjacent.
    """
    pairs = [(benchmark, _partner(benchmark, results.validations)) for benchmark in results.benchmarks]
    used = [partner for _, partner in pairs]
    alone = [validation for validation in results.validations if not any(validation is other for other in used)]
    rows = [
        Row("", "", benchmark, validation) for benchmark, validation in [*pairs, *((None, other) for other in alone)]
    ]
    devices = list(dict.fromkeys(row.result.device for row in rows))
    rows.sort(key=lambda row: devices.index(row.result.device))
    return _labelled(rows)


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the points that no other point dominates (less is better in both coordinates).

    They are in the order of the first coordinate; points that are not finite are left out.
    """
    finite = (index for index, point in enumerate(points) if all(map(math.isfinite, point)))
    front: list[int] = []
    for index in sorted(finite, key=lambda index: points[index]):
        if not front or points[index][1] < points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return tuple(front)


def text_sizes(validation: Report) -> TextSizes:
    """Names and sizes of the texts: bits per byte are comparable where these are the same."""
    return tuple((name, text.bytes) for name, text in validation.texts.items())


def setting(benchmark: Benchmark) -> dict[str, str]:
    """Settings of a benchmark in words, by field."""
    count = benchmark.threads
    threads = "threads by size" if count is None else "1 thread" if count == 1 else f"{count} threads"
    own = benchmark.threshold is None
    return {
        "provider": benchmark.provider,
        "threads": threads,
        "draft": "no drafts" if benchmark.draft == "none" else f"drafts {benchmark.draft}",
        "decode": "real text"
        if benchmark.decode == TEXT
        else f"temperature {benchmark.temperature:g}"
        if benchmark.temperature
        else "greedy",
        "threshold": "own threshold" if own else f"threshold {benchmark.threshold:g}",
        "text": benchmark.text,
        "prompt_bytes": f"{benchmark.prompt_bytes:,} bytes before",
        "new_bytes": f"{benchmark.new_bytes:,} bytes decoded",
        "prepared": "prepared" if benchmark.prepared else "not prepared",
    }


def _partner(benchmark: Benchmark, validations: Iterable[Report]) -> Report | None:
    def same(result: Benchmark | Report) -> tuple[object, ...]:
        return result.bundle_id, result.provider, result.threshold

    candidates = [validation for validation in validations if same(validation) == same(benchmark)]
    return max(candidates, key=lambda other: (other.device == benchmark.device, other.bytes), default=None)


def differing_settings(benchmarks: Iterable[Benchmark]) -> list[str]:
    """Names of the fields of `setting` that differ between benchmarks."""
    settings = [setting(benchmark) for benchmark in benchmarks]
    return [name for name in (settings[0] if settings else ()) if len({each[name] for each in settings}) > 1]


def _labelled(rows: Sequence[Row]) -> tuple[Row, ...]:
    ids: dict[str, set[str]] = {}
    for row in rows:
        ids.setdefault(row.result.bundle, set()).add(row.result.bundle_id)
    differing = differing_settings(row.benchmark for row in rows if row.benchmark)
    seen: Counter[tuple[str, str, str]] = Counter()
    labelled = []
    for row in rows:
        name = row.result.bundle if len(ids[row.result.bundle]) == 1 else f"{row.result.bundle} {row.result.bundle_id}"
        words = [setting(row.benchmark)[field] for field in differing] if row.benchmark else []
        key = (row.result.device, name, ", ".join(words))
        seen[key] += 1
        if seen[key] > 1:
            words.append(f"again ({seen[key]})")
        labelled.append(dataclasses.replace(row, bundle=name, setting=", ".join(words)))
    return tuple(labelled)


def _read_file(path: Path) -> list[AnyResult]:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            raise EdgebltError(f"{path} is not a regular file of at most {_LARGEST_FILE >> 20} MB; {_REMEDY}")
        document = json.loads(path.read_bytes(), parse_int=_integer)
    except OSError as error:
        raise EdgebltError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from None
    except RecursionError:
        raise EdgebltError(f"{path} is nested too deeply; {_REMEDY}") from None
    except EdgebltError:
        raise
    except ValueError as error:
        raise EdgebltError(f"{path} is not JSON ({' '.join(str(error).split())[:200]}); {_REMEDY}") from None
    if not isinstance(document, list):
        return [_parse(document, str(path))]
    if not document:
        raise EdgebltError(f"{path} holds no results; {_REMEDY}")
    return [_parse(entry, f"{path}[{index}]") for index, entry in enumerate(document)]


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _parse(document: Any, where: str) -> AnyResult:
    kinds: tuple[tuple[str, Callable[[Any, str], AnyResult]], ...] = (
        ("decode_bytes_per_s", _benchmark),
        ("boundary_agreement", lambda document, where: parse_dataclass(Report, document, where)),
        ("suite", lambda document, where: parse_dataclass(SuiteReport, document, where)),
        ("front", lambda document, where: parse_dataclass(Sweep, document, where)),
        ("chosen_threshold", lambda document, where: parse_dataclass(Tuning, document, where)),
    )
    for field, parse in kinds:
        if isinstance(document, dict) and field in document:
            return parse(document, where)
    raise EdgebltError(f"{where} is no result of a validation, benchmark, tuning or sweep; {_REMEDY}")


def _benchmark(document: Any, where: str) -> Benchmark:
    benchmark = parse_dataclass(Benchmark, document, where)
    count = len(benchmark.inter_byte_latency_quantiles_ms)
    if count != _QUANTILES:
        raise EdgebltError(f"{where} has {count} quantiles instead of {_QUANTILES}; run `edgeblt bench` again")
    return benchmark
