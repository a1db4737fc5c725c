"""Benchmarks as rows: CSV with every figure, and a Markdown table with the figures that people compare."""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence

from edgeblt.measure.benchmark import TEXT, Benchmark
from edgeblt.measure.distribution import Percentiles

_COLUMNS: dict[str, Callable[[Benchmark], str]] = {
    "bundle": lambda row: row.bundle.replace("|", "\\|"),
    "recipe": lambda row: row.recipe.replace("|", "\\|"),
    "size, MB": lambda row: f"{row.bundle_bytes / 1e6:,.1f}",
    "provider": lambda row: row.provider,
    "threads": lambda row: "auto" if row.threads is None else str(row.threads),
    "threshold": lambda row: "own" if row.threshold is None else f"{row.threshold:g}",
    "draft": lambda row: row.draft,
    "decoded": lambda row: decoded(row),
    "prompt": lambda row: f"{row.prompt_bytes:,}",
    "first byte, ms": lambda row: f"{row.time_to_first_byte_s * 1e3:,.1f}",
    "prefill, bytes/s": lambda row: f"{row.prefill_bytes_per_s:,.0f}",
    "decoding, bytes/s": lambda row: _with_spread(row, "decode_bytes_per_s", row.decode_bytes_per_s),
    "a byte, p50 / p95 / p99, ms": lambda row: percentiles(row.inter_byte_latency_ms),
    "between arrivals, ms": lambda row: percentiles(row.arrival_gap_ms),
    "bytes/patch": lambda row: f"{row.bytes_per_patch:.2f}",
    "bytes/pass": lambda row: f"{row.bytes_per_pass:.2f}",
    "acceptance rate": lambda row: share(row.draft_acceptance),
    "weights/byte, MB": lambda row: f"{row.weight_bytes_per_byte / 1e6:,.2f}",
    "keys, values/byte, MB": lambda row: f"{row.cache_bytes_per_byte / 1e6:,.2f}",
    "of the limit": lambda row: share(row.bandwidth_share),
    "per million bytes": lambda row: "" if row.cost_per_million_bytes is None else f"{row.cost_per_million_bytes:.4g}",
}
_LEFT = 8  # leading columns that are aligned to the left
_OPTIONAL = (
    "threshold",
    "between arrivals, ms",
    "acceptance rate",
    "of the limit",
    "per million bytes",
)  # left out where no row has one
_NOTHING = ("", "own")


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def percentiles(found: Percentiles | None) -> str:
    return " / ".join(f"{value:.2f}" for value in (found.p50, found.p95, found.p99)) if found else ""


def decoded(row: Benchmark) -> str:
    """Short description of the bytes that were decoded."""
    if row.decode == TEXT:
        return "the text"
    return f"temperature {row.temperature:g}" if row.temperature else "greedy"


def table(benchmarks: Sequence[Benchmark]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of cells for each benchmark."""
    rows = [[shown(row) for shown in _COLUMNS.values()] for row in benchmarks]
    kept = [
        index
        for index, name in enumerate(_COLUMNS)
        if name not in _OPTIONAL or any(row[index] not in _NOTHING for row in rows)
    ]
    headings = list(_COLUMNS)
    return [headings[index] for index in kept], [[row[index] for index in kept] for row in rows]


def markdown(benchmarks: Sequence[Benchmark]) -> str:
    """A table as llama-bench prints them, and a line about the device and the runs."""
    headings, rows = table(benchmarks)
    left = list(_COLUMNS)[:_LEFT]
    lines = [headings, ["---" if name in left else "---:" for name in headings], *rows]
    first = benchmarks[0]
    devices = ", ".join(dict.fromkeys(row.device for row in benchmarks))
    note = f"{devices}; medians (extremes) of {first.repeats}, {first.new_bytes:,} bytes after a prompt of {first.text}"
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}\n"


def csv_text(benchmarks: Sequence[Benchmark]) -> str:
    """CSV with a column for every field, nested ones as `outer.inner`; unknown values are empty."""
    rows = [_flat(dataclasses.asdict(row)) for row in benchmarks]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(fields: dict[str, object], outer: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{outer}{name}.")
        elif not isinstance(value, tuple):  # quantiles are left to the charts
            flat[outer + name] = value
    return flat


def _with_spread(row: Benchmark, name: str, value: float) -> str:
    spread = row.spread[name]
    return f"{value:,.1f} ({spread.low:,.1f} .. {spread.high:,.1f})"
