"""Suites of validation on the report page: tables, charts as a browser draws them, and names that hold markup."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgeblt.evaluation.suite_report import ACCURACY, BITS, MARGIN, ComparedFigure, SuiteReport
from edgeblt.report import page
from edgeblt.report.results import Results, read_results
from edgeblt.report.suites import suite_charts, suite_tables
from test_report import HOSTILE, Elements, browse, needs_chromium, written


def figure(group: str, name: str, text: str, unit: str, difference: float) -> ComparedFigure:
    low, high = difference - 0.01, difference + 0.02
    said = "indistinguishable from fp32" if low <= 0 <= high else "costs much"
    return ComparedFigure(group, name, text, unit, bool(text), 18, 8, 2.0, 2.0 + difference, difference, low, high,
                          not low <= 0 <= high, said)  # fmt: skip


FIGURES = (
    figure("noise", "no noise", "", BITS, 0.001), figure("noise", "drop 10%", "", BITS, 0.125),
    figure("noise", "no noise", HOSTILE, BITS, 0.002), figure("noise", "drop", HOSTILE, BITS, 0.5),
    figure("spelling", "every probe", "", ACCURACY, -0.25), figure("spelling", "margin", "", MARGIN, 0.0625),
)  # fmt: skip


def suite(**changes: Any) -> SuiteReport:
    made = SuiteReport("robust", "int8", "a" * 12, "int8", 6_600_000, "cpu", "first", None, "fp32", "fp32", False, 0,
                       2000, 0.95, ("prose", HOSTILE), 12_345, FIGURES, "indistinguishable from fp32")  # fmt: skip
    return dataclasses.replace(made, **changes)


SUITES = (suite(), suite(bundle=HOSTILE, recipe=HOSTILE, verdict=HOSTILE))


def test_suites_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_results([written(tmp_path / "suites.json", *SUITES)]).suites == SUITES


def test_charts() -> None:
    """One for each group, a trace for each bundle; kinds of noise on one text, and margins, are left to tables."""
    noise, spelling = suite_charts(SUITES)
    assert [len(chart.data) for chart in (noise, spelling)] == [2, 2]
    first = noise.data[0]
    assert first["x"] == [0.001, 0.125, 0.002] and first["error_x"]["array"][1] == 0.145 - 0.125
    assert abs(first["error_x"]["arrayminus"][0] - 0.01) < 1e-12
    assert [round(place) for place in first["y"]] == [0, 1, 2]
    assert spelling.data[0]["x"] == [-25.0]  # percentage points
    assert HOSTILE not in str(noise.layout) + str(noise.data)


def test_other_texts_and_sizes_are_not_compared() -> None:
    others = (suite(), suite(texts=("other",)), suite(bytes=7), suite(reference="another"), suite(device="second"))
    charts = [chart for chart in suite_charts(others) if chart.name.startswith("suite-noise")]
    assert [len(chart.data) for chart in charts] == [2, 1, 1, 1]
    assert len({chart.name for chart in charts}) == 4
    assert {trace["name"] for trace in charts[0].data} == {"int8 (cpu, first)", "int8 (cpu, second)"}
    assert suite_tables(()) == "" and list(suite_charts(())) == []


def test_tables() -> None:
    source = page.report_page(Results((), (), (), SUITES), "")
    assert "From 2 suites." in source and HOSTILE not in source
    text = Elements(source).text
    assert "+0.1250 (+0.1150 .. +0.1450) *" in text and "+0.0010 (-0.0090 .. +0.0210)" in text
    assert "-25.0 (-26.0 .. -23.0) *" in text and "+0.0625" in text


@pytest.mark.slow  # test_report.py always draws the other charts
@needs_chromium
def test_a_browser_draws_them(tmp_path: Path) -> None:
    source = page.report_page(Results((), (), (), SUITES), page._plotly_js())
    elements, said = browse(source, tmp_path)
    assert said == []
    assert all(elements.count("svg", f"suite-{group}-0") >= 1 for group in ("noise", "spelling"))
    assert elements.text.strip().startswith("edgeblt report")
