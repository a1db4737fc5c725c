"""Suites of validation in a report: charts of differences with their intervals, and tables of the same."""

from collections import Counter
from collections.abc import Iterator, Sequence

from edgeblt.evaluation.suite_report import ACCURACY, MARGIN, ComparedFigure, SuiteReport
from edgeblt.report.charts import GREY, LEGEND_BELOW, Chart, Json, colour, html_table, shortened, shown
from edgeblt.report.suite_table import cells, is_shown, label

_GROUPS = {
    "noise": (
        "Noise",
        "Each line is a kind of noise on the texts: the share says how many characters, letters or words it changes.",
    ),
    "spelling": ("Spelling", "Each line is a kind of question about the letters of a word."),
    "position": ("Position", "Each line is a range of positions in long texts."),
    "needle": ("Needles", "Each line is where in a long text a number was written that is asked for at its end."),
}
_ROW_PIXELS, _MARK_PIXELS = 16, 9


def suite_charts(suites: Sequence[SuiteReport]) -> Iterator[Chart]:
    """A chart for each group of figures: differences to the reference with intervals, a colour for each bundle."""
    for group, (title, words) in _GROUPS.items():
        for number, same in enumerate(_comparable(suites, group)):
            yield _chart(f"suite-{group}-{number}", title, words, group, same)


def suite_tables(suites: Sequence[SuiteReport]) -> str:
    """HTML tables: the verdicts, then for each group of figures differences and intervals, a column for each bundle."""
    if not suites:
        return ""
    rows = [
        [name, suite.recipe, f"{suite.suite}{', quick' if suite.is_quick else ''}", suite.device, suite.verdict]
        for name, suite in zip(_names(suites), suites, strict=True)
    ]
    parts = [_table("Verdicts", ["Bundle", "Recipe", "Suite", "Device", "Verdict"], rows)]
    for group, (title, _) in _GROUPS.items():
        for same in _comparable(suites, group):
            labels = _labels(same, group)
            columns = [title, *(f"{name} − {suite.reference_recipe}" for name, suite in same.items())]  # noqa: RUF001
            found = [{label(figure): figure for figure in suite.figures} for suite in same.values()]
            rows = [[name, *(_cell(figures.get(name)) for figures in found)] for name in labels]
            parts.append(_table(title, columns, rows))
    return "".join(parts)


def _comparable(suites: Sequence[SuiteReport], group: str) -> list[dict[str, SuiteReport]]:
    """Suites with figures of a group, by their names; those of other texts, sizes or references lie apart."""
    found: dict[tuple[object, ...], dict[str, SuiteReport]] = {}
    for name, suite in zip(_names(suites), suites, strict=True):
        if any(figure.group == group for figure in suite.figures):
            key = (suite.texts, suite.bytes, suite.reference, suite.reference_recipe, suite.seed)
            found.setdefault(key, {})[name] = suite
    return list(found.values())


def _names(suites: Sequence[SuiteReport]) -> list[str]:
    """The bundles' names, with provider and device, or a number, where the same suite was run on one of that name."""
    counts = Counter((suite.bundle, suite.suite) for suite in suites)
    seen: Counter[str] = Counter()
    names = []
    for suite in suites:
        is_single = counts[suite.bundle, suite.suite] == 1
        name = suite.bundle if is_single else f"{suite.bundle} ({suite.provider}, {suite.device})"
        key = f"{suite.suite} {name}"
        seen[key] += 1
        names.append(name if seen[key] == 1 else f"{name}, again ({seen[key]})")
    return names


def _labels(suites: dict[str, SuiteReport], group: str) -> list[str]:
    """Names of the figures that people are shown, in order."""
    figures = (figure for suite in suites.values() for figure in suite.figures)
    return list(dict.fromkeys(label(figure) for figure in figures if figure.group == group and is_shown(figure)))


def _chart(name: str, title: str, words: str, group: str, suites: dict[str, SuiteReport]) -> Chart:
    def drawn(suite: SuiteReport) -> list[ComparedFigure]:
        chosen = (figure for figure in suite.figures if figure.group == group and is_shown(figure))
        return [figure for figure in chosen if figure.unit != MARGIN]

    labels = list(dict.fromkeys(label(figure) for suite in suites.values() for figure in drawn(suite)))
    is_accuracy = any(figure.unit == ACCURACY for suite in suites.values() for figure in drawn(suite))
    scale, unit = (100.0, "percentage points") if is_accuracy else (1.0, "bits per byte")
    traces = tuple(
        _trace(number, len(suites), bundle, drawn(suite), labels, scale)
        for number, (bundle, suite) in enumerate(suites.items())
    )
    reference = shortened(next(iter(suites.values())).reference_recipe)
    better = "right of zero it is better" if is_accuracy else "left of zero it is better"
    layout: Json = {
        "xaxis": {
            "title": {"text": f"difference to {shown(reference)}, {unit}"},
            "zeroline": True,
            "zerolinecolor": GREY,
        },
        "yaxis": {
            "tickvals": list(range(len(labels))),
            "ticktext": [shown(text) for text in labels],
            "range": [len(labels) - 0.5, -0.5],
            "automargin": True,
        },
        "legend": dict(LEGEND_BELOW),
        "margin": {"t": 8, "r": 16},
    }  # fmt: skip
    return Chart(
        name,
        title,
        f"{words} A mark is the difference of a bundle to {reference} in {unit}, and {better}; its bar is its "
        f"confidence interval: where that reaches across zero, the bundle cannot be told from {reference}.",
        f"Differences of {len(suites)} bundles to {reference} in {len(labels)} figures, which the tables below have.",
        110 + len(labels) * (_ROW_PIXELS + _MARK_PIXELS * len(suites)),
        traces,
        layout,
        least_width=620,
    )


def _trace(
    number: int, count: int, bundle: str, figures: Sequence[ComparedFigure], labels: Sequence[str], scale: float
) -> Json:
    shift = 0.7 * ((number + 0.5) / count - 0.5)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": shown(bundle),
        "x": [scale * figure.difference for figure in figures],
        "y": [labels.index(label(figure)) + shift for figure in figures],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [scale * (figure.high - figure.difference) for figure in figures],
            "arrayminus": [scale * (figure.difference - figure.low) for figure in figures],
            "thickness": 1.5,
            "width": 3,
        },
        "customdata": [f"{shown(label(figure))}<br>{shown(figure.verdict)}" for figure in figures],
        "hovertemplate": "%{customdata}<br>%{x:.4f}<extra>%{fullData.name}</extra>",
        "marker": {"color": colour(number), "size": 6},
    }


def _cell(figure: ComparedFigure | None) -> str:
    if figure is None:
        return "–"  # noqa: RUF001 - a dash as in tables of figures
    _, _, difference, interval, _ = cells(figure)
    mark = "" if figure.low <= 0 <= figure.high else " *"
    return f"{difference} ({interval}){mark}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    note = "" if title == "Verdicts" else " Difference and interval; * where the interval does not hold zero."
    return html_table(title, columns, rows, f"{title}.{note}")
