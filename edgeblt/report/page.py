"""A report as one self-contained HTML page: tables, text, and charts drawn by plotly.js, which is inlined."""

import base64
import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from edgeblt.bundle.result_files import check_result_file, write_result
from edgeblt.errors import EdgebltError
from edgeblt.installing import install_hint
from edgeblt.measure.benchmark import Benchmark
from edgeblt.measure.distribution import Percentiles
from edgeblt.measure.validation import Passage, Report
from edgeblt.report.accuracy import size_chart, speed_chart, tuning_chart
from edgeblt.report.charts import Chart, colour, devices_of, escaped
from edgeblt.report.passage import passage_chart
from edgeblt.report.results import Results, Row, differing_settings, join, read_results, setting, text_sizes
from edgeblt.report.speed import latency_chart, stage_size_chart, stage_time_chart
from edgeblt.report.suites import suite_charts, suite_tables
from edgeblt.report.sweeps import sweep_charts, sweep_tables
from edgeblt.runtime import native

_DATA = Path(__file__).parents[1] / "data" / "report"
_UNKNOWN = "–"  # noqa: RUF001 - a dash as in tables of figures
_VISIBLE = str.maketrans({"\n": "↵\n", "\t": "⇥\t", "\r": "␍"})


def write_report(results: Sequence[Path], out: Path) -> Path:
    """Reads JSON results of `edgeblt validate`, `bench`, `tune` and `sweep`, and writes the page, or replaces it.

    Raises EdgebltError for a file that is no such result, where plotly is absent, and where `out` cannot be written or
    is one of the results.
    """
    check_result_file(out)
    plotly_js = _plotly_js()
    page = report_page(read_results(results), plotly_js)
    for path in results:
        if os.path.exists(out) and os.path.samefile(path, out):
            raise EdgebltError(f"{out} is one of the results; choose another name for the report")
    write_result(out, page.encode())
    return out


def report_page(results: Results, plotly_js: str) -> str:
    """The whole page; `plotly_js` is the source of the library that draws its charts."""
    rows = join(results)
    charts: list[Chart] = []
    sections = [section for section in _sections(results, rows, charts) if section[1]]
    script = (_DATA / "page.js").read_text(encoding="utf-8")
    figures = {chart.name: {"data": chart.data, "layout": chart.layout | {"height": chart.height}} for chart in charts}
    # No part of the page may fetch anything, and no script run but these two, whatever a name in a result holds.
    policy = (
        f"default-src 'none'; script-src '{_hash(plotly_js)}' '{_hash(script)}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<li><a href="#{_anchor(title)}">{escaped(title)}</a></li>' for title, _ in sections)
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{escaped(title)}</h2>{inner}</section>' for title, inner in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>edgeblt report</title>
<style>{(_DATA / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>edgeblt report</h1>
<p class="lead">{escaped(_counts(results))}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<noscript><p>The charts need JavaScript; the tables and the texts do not.</p></noscript>
<main>{body}</main>
<footer>Written by edgeblt {escaped(native.package_version() or "")}. This page needs no network.</footer>
<script type="application/json" id="charts">{script_json(figures)}</script>
<script>{plotly_js}</script>
<script>{script}</script>
</body>
</html>
"""


def _sections(results: Results, rows: Sequence[Row], charts: list[Chart]) -> Iterable[tuple[str, str]]:
    """Titles and contents in the page's order; empty content where there is none. Appends the charts to `charts`."""

    def shown(*made: Chart | None) -> str:
        there = [chart for chart in made if chart]
        charts.extend(there)
        return "".join(map(_figure, there))

    yield "Summary", _summary(rows) + _notes(results, rows) if rows else ""
    yield "Accuracy, size and speed", shown(size_chart(rows), speed_chart(rows))
    yield "Latency", shown(latency_chart(rows))
    yield (
        "Entropy and patches",
        "".join(
            shown(passage_chart(number, label, passage)) + _passage(label, passage)
            for number, (label, passage) in enumerate(_passages(results.validations), 1)
        ),
    )
    yield "Stages", shown(stage_time_chart(rows), stage_size_chart(rows))
    yield "Patching threshold", shown(tuning_chart(results.tunings))
    yield "Search", shown(*sweep_charts(results.sweeps)) + sweep_tables(results.sweeps)
    yield "Noise, spelling and length", shown(*suite_charts(results.suites)) + suite_tables(results.suites)


def _counts(results: Results) -> str:
    counts = (
        (len(results.validations), "validation"),
        (len(results.benchmarks), "benchmark"),
        (len(results.tunings), "tuning"),
        (len(results.suites), "suite"),
        (len(results.sweeps), "sweep"),
    )
    said = [f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if count]
    devices = {validation.device for validation in results.validations}
    devices |= {benchmark.device for benchmark in results.benchmarks} | {suite.device for suite in results.suites}
    return "From " + ", ".join(said) + (f", on {len(devices)} devices." if len(devices) > 1 else ".")


def _figure(chart: Chart) -> str:
    name = escaped(chart.name)
    return (
        f'<figure aria-labelledby="{name}-title"><h3 id="{name}-title">{escaped(chart.title)}</h3><div class="scroll">'
        f'<div id="{name}" class="chart" role="img" aria-label="{escaped(chart.alternative)}" '
        f'style="height:{chart.height}px;min-width:{chart.least_width}px"></div></div>'
        f"<figcaption>{escaped(chart.caption)}</figcaption></figure>"
    )


# The summary.


def _summary(rows: Sequence[Row]) -> str:
    """Summary table: a row for each bundle and setting, grouped by device; empty columns are left out."""
    cells = [{title: cell(row) for title, cell in _COLUMNS.items()} for row in rows]
    titles = [title for title in _COLUMNS if any(of_row[title] != _UNKNOWN for of_row in cells)]
    head = "".join(f"<th{_CLASSES.get(title, '')} scope='col'>{escaped(title)}</th>" for title in ("Bundle", *titles))
    bodies = []
    for number, device in enumerate(devices_of(rows)):
        lines = [
            f'<tr><th class="device" scope="rowgroup" colspan="{len(titles) + 1}" style="--colour:{colour(number)}">'
            f"<strong>{escaped(device or 'unknown device')}</strong></th></tr>"
        ]
        for row, of_row in zip(rows, cells, strict=True):
            if row.result.device == device:
                columns = "".join(f"<td{_CLASSES.get(title, '')}>{of_row[title]}</td>" for title in titles)
                lines.append(f'<tr><th scope="row">{escaped(row.bundle)}</th>{columns}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return (
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="Summary">'
        f"<table><thead><tr>{head}</tr></thead>{''.join(bodies)}</table></div><figcaption>{escaped(_SUMMARY_WORDS)}"
        "</figcaption></figure>"
    )


_SUMMARY_WORDS = (
    "Each line is a bundle in one setting. Bits per byte: what the model needs on average for the next byte of the "
    "texts it was validated on, less is better; increase: over the reference it was made from. Boundary agreement: "
    "share of bytes at which bundle and reference agree whether a patch starts. Decoding: bytes generated a second, "
    "the median of the runs, and below it the slowest and the fastest. p50, p95, p99: half, 95% and 99% of the bytes "
    "took no more than that, those that arrive together sharing their time; and half, 95% and 99% of the waits from "
    "one arrival to the next were no longer. Acceptance rate: share of the drafted bytes that were accepted. "
    "Weights read: what generating a byte reads of the weights."
)


def _of_validation(cell: Callable[[Report], str]) -> Callable[[Row], str]:
    return lambda row: cell(row.validation) if row.validation else _UNKNOWN


def _of_benchmark(cell: Callable[[Benchmark], str]) -> Callable[[Row], str]:
    return lambda row: cell(row.benchmark) if row.benchmark else _UNKNOWN


def _decoding(benchmark: Benchmark) -> str:
    spread = benchmark.spread.get("decode_bytes_per_s")
    extremes = f"{_number(spread.low, ',.0f')} to {_number(spread.high, ',.0f')}" if spread else ""
    return f'{_number(benchmark.decode_bytes_per_s, ",.0f")}<span class="range">{extremes}</span>'


def _percentiles(latency: Percentiles | None) -> str:
    if latency is None:
        return _UNKNOWN
    upper = f"{_number(latency.p95, '.3g')}, {_number(latency.p99, '.3g')}"
    return f'{_number(latency.p50, ".3g")}<span class="range">{upper}</span>'


def _share(value: float | None) -> str:
    return _number(value, ".2%")


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "Recipe": lambda row: escaped(row.result.recipe),
    "Setting": lambda row: escaped(row.setting) or _UNKNOWN,
    "Provider": lambda row: escaped(row.result.provider),
    "Size": lambda row: decimal(max(row.result.bundle_bytes, 0)).replace(" ", "\N{NO-BREAK SPACE}"),
    "Bits per byte": _of_validation(lambda result: _number(result.bits_per_byte, ".4f")),
    "Increase": _of_validation(lambda result: _number(result.bits_per_byte_increase, "+z.5f")),
    "Boundary agreement": _of_validation(lambda result: _share(result.boundary_agreement)),
    "Decoding, bytes/s": _of_benchmark(_decoding),
    "To first byte, ms": _of_benchmark(lambda result: _number(result.time_to_first_byte_s * 1e3, ",.1f")),
    "A byte, p50; p95, p99, ms": _of_benchmark(lambda result: _percentiles(result.inter_byte_latency_ms)),
    "Between arrivals, p50; p95, p99, ms": _of_benchmark(lambda result: _percentiles(result.arrival_gap_ms)),
    "Bytes a patch": _of_benchmark(lambda result: _number(result.bytes_per_patch, ".2f")),
    "Acceptance rate": _of_benchmark(lambda result: _share(result.draft_acceptance)),
    "Weights read a byte, MB": _of_benchmark(lambda result: _number(result.weight_bytes_per_byte / 1e6, ",.2f")),
    "Keys and values read a byte, MB": _of_benchmark(lambda result: _number(result.cache_bytes_per_byte / 1e6, ",.2f")),
}
_CLASSES = dict.fromkeys(("Recipe", "Setting", "Provider"), ' class="words"')


def _notes(results: Results, rows: Sequence[Row]) -> str:
    """Notes on settings shared by all benchmarks, results without a partner, and results that are not comparable."""
    notes = []
    if results.benchmarks:
        differing, first = differing_settings(results.benchmarks), results.benchmarks[0]
        same = [words for field, words in setting(first).items() if field not in differing]
        notes.append(f"All benchmarks: {', '.join(same)}.")
    for what, other, alone in (
        ("benchmark", "validation", [row for row in rows if not row.validation]),
        ("validation", "benchmark", [row for row in rows if not row.benchmark]),
    ):
        if alone:
            names = "; ".join(dict.fromkeys(f"{row.label} on {row.result.device}" for row in alone))
            notes.append(
                f"No {other} of the same bundle, provider and threshold was given for the {what} of: {names}. "
                "Accuracy against speed leaves these out."
            )
    elsewhere: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.benchmark and row.validation and row.benchmark.device != row.validation.device:
            elsewhere.setdefault((row.benchmark.device, row.validation.device), []).append(row.label)
    for (device, other), labels in elsewhere.items():
        notes.append(f"On {device}, the accuracy of these was measured on {other}: {'; '.join(labels)}.")
    if len({text_sizes(validation) for validation in results.validations}) > 1:
        notes.append(
            "The validations are not all on the same texts: their bits per byte cannot be compared with each other. "
            "Each choice of texts has a Pareto front of its own."
        )
    items = "".join(f"<li>{escaped(note)}</li>" for note in dict.fromkeys(notes))
    return f'<ul class="notes">{items}</ul>' if items else ""


# The passages.


def _passages(validations: Iterable[Report]) -> Iterable[tuple[str, Passage]]:
    """Distinct passages, each with its bundle's name; the same passage from several devices is shown once."""
    seen: list[tuple[str, Passage]] = []
    for validation in validations:
        if (validation.bundle_id, validation.passage) not in seen and validation.passage.data:
            seen.append((validation.bundle_id, validation.passage))
            several = [other.device for other in validations if other.bundle_id == validation.bundle_id]
            where = f" on {validation.device}" if len(set(several)) > 1 else ""
            yield f"{validation.bundle}{where}", validation.passage


def _passage(label: str, passage: Passage) -> str:
    patches = "".join(f'<span class="patch">{_patch(patch)}</span>' for patch in passage.patches)
    return (
        f'<figure><p class="passage">{patches}</p><figcaption>The beginning of {escaped(passage.text)} as '
        f"{escaped(label)} cuts it: an upright line is where a patch starts.</figcaption></figure>"
    )


def _patch(patch: bytes) -> str:
    """HTML of a patch: complete characters as they are, other bytes and control characters as escapes."""
    lines = patch.decode("utf-8", "backslashreplace").translate(_VISIBLE).split("\n")
    return "\n".join("\t".join(escaped(part) for part in line.split("\t")) for line in lines)


# Text.


def _number(value: float | None, digits: str) -> str:
    return _UNKNOWN if value is None or not math.isfinite(value) else format(value, digits)


def _anchor(title: str) -> str:
    return "section-" + "".join(character if character.isalnum() else "-" for character in title.lower())


def script_json(value: Any) -> str:
    """JSON that cannot end the script element around it; numbers that are not finite become null."""
    return json.dumps(_finite(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _plotly_js() -> str:
    if not importlib.util.find_spec("plotly"):
        raise EdgebltError(f"a report needs plotly; install it with: {install_hint('report')}")
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source
