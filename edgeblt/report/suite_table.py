"""Suites of validation as tables for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeblt.printable import printable
from edgeblt.report.narrow_tables import add_row, new_table, show

if TYPE_CHECKING:  # the runtime, slow to import
    from edgeblt.evaluation.suite_report import ComparedFigure, SuiteReport


def show_suites(reports: "Sequence[SuiteReport]") -> None:
    """Prints a table for each bundle, and one of the verdicts on all."""
    for report in reports:
        shown = [figure for figure in report.figures if is_shown(figure)]
        columns = (report.reference_recipe, report.recipe, "difference", f"{report.confidence:.0%} interval", "verdict")
        for group in dict.fromkeys(figure.group for figure in shown):
            table = new_table(f"{report.bundle}: {group}", group, *columns)
            for figure in shown:
                if figure.group == group:
                    add_row(table, label(figure), *cells(figure))
            show(table)
    table = new_table("verdicts", "bundle", "recipe", "on the main figures")
    for report in reports:
        add_row(table, report.bundle, report.recipe, report.verdict)
    show(table)
    first = reports[0]
    show(
        printable(
            f"suite {first.suite}{', quick' if first.is_quick else ''}: {first.bytes:,} bytes a model; compared with "
            f"{first.reference}, recipe {first.reference_recipe}; {first.resamples:,} bootstrap resamples"
        )
    )


def is_shown(figure: "ComparedFigure") -> bool:
    """Whether a table for people has the figure: not those of one kind of noise on one text."""
    return not figure.text or figure.name.startswith(("no ", "every "))


def label(figure: "ComparedFigure") -> str:
    return f"{figure.text}, {figure.name}" if figure.text else figure.name


def cells(figure: "ComparedFigure") -> tuple[str, str, str, str, str]:
    """Both values, the difference, its interval and the verdict, in the figure's unit."""
    if figure.unit == "accuracy":
        values = [f"{figure.reference:.1%}", f"{figure.value:.1%}"]
        points = (f"{100 * value:+.1f}" for value in (figure.difference, figure.low, figure.high))
    else:
        values = [f"{figure.reference:.4f}", f"{figure.value:.4f}"]
        points = (f"{value:+.4f}" for value in (figure.difference, figure.low, figure.high))
    difference, low, high = points
    return (*values, difference, f"{low} .. {high}", figure.verdict)  # type: ignore[return-value]
