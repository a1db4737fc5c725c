"""The recipes of the package against fp32 on noise, spelling and length, as tables for docs/evaluation.md.

    python benchmarks/evaluation.py [--bundles DIRECTORY] [--quick] [--threads 1]
    python benchmarks/evaluation.py --results FILE ...

Bundles of the bundled model are exported into DIRECTORY where they are not there yet. The suite `robust` is on all six
held-out texts, `long` on those of the kinds that the model was trained on (prose, code, typos). With --results, the
tables are of what `edgeblt validate --suite` wrote with --json. The last line is JSON: the verdicts.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeblt import Name, load
from edgeblt.evaluation.suite import run_suite
from edgeblt.evaluation.suite_report import ACCURACY, BITS, ComparedFigure, SuiteReport
from edgeblt.evaluation.text_scorer import ModelScorer
from edgeblt.export.export_bundle import export_bundle
from edgeblt.measure.reference import Text
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text, held_out_texts
from edgeblt.report.results import read_results

RECIPES = ("fp16", "int8", "sparse-int8", "int4", "sparse-int4", "int4-small", "nf4")
SEEN = ("prose", "code", "typos")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, help="by default a temporary directory")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.results:
        suites = read_results(arguments.results).suites
    else:
        with folder_of(arguments.bundles) as folder:
            suites = measure(folder, arguments.quick, arguments.threads)
    for suite in dict.fromkeys(report.suite for report in suites):
        show([report for report in suites if report.suite == suite])
    print(json.dumps({f"{report.suite}, {report.recipe}": report.verdict for report in suites}))


@contextmanager
def folder_of(given: Path | None) -> Iterator[Path]:
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def measure(folder: Path, quick: bool, threads: int | None) -> tuple[SuiteReport, ...]:
    """Reports of both suites on every recipe but fp32, with which they are compared."""
    for recipe in ("fp32", *RECIPES):
        if not (folder / recipe).exists():
            export_bundle(DEMO_CHECKPOINT, folder / recipe, Name(recipe))
    reference = ModelScorer(load(folder / "fp32", threads=threads))
    models = [load(folder / recipe, threads=threads) for recipe in RECIPES]
    seen = [Text(name, held_out_text(name)) for name in SEEN]
    robust = run_suite("robust", models, reference, "fp32", "fp32", held_out_texts(), quick)
    return (*robust, *run_suite("long", models, reference, "fp32", "fp32", seen, quick))


def show(reports: Sequence[SuiteReport]) -> None:
    """Tables of differences to fp32 with their intervals, a column for each recipe."""
    groups = dict.fromkeys(figure.group for figure in reports[0].figures)
    for group in groups:
        print(f"| {group} | fp32 |" + "".join(f" {report.recipe} |" for report in reports))
        print("| --- |" + " ---: |" * (len(reports) + 1))
        for first in reports[0].figures:
            if first.group == group and (first.is_main or first.text == SEEN[0] or is_over_all(first)):
                key = (first.group, first.name, first.text)
                cells = [cell(figure) for report in reports for figure in report.figures if names(figure) == key]
                own = f"{first.reference:.1%}" if first.unit == ACCURACY else f"{first.reference:.4f}"
                print(f"| {', '.join(filter(None, (first.text, first.name)))} | {own} | {' | '.join(cells)} |")
        print()


def is_over_all(figure: ComparedFigure) -> bool:
    """Whether a figure over all texts says something: not where languages that the model cannot write outweigh it."""
    return not figure.text and figure.group != "noise"


def names(figure: ComparedFigure) -> tuple[Any, ...]:
    return figure.group, figure.name, figure.text


def cell(figure: ComparedFigure) -> str:
    """Difference and interval, in thousandths of a bit, percentage points or nats; bold where it differs for sure."""
    scale, digits = (1000, 1) if figure.unit == BITS else (100, 1) if figure.unit == ACCURACY else (1, 3)
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in (figure.difference, figure.low, figure.high))
    return f"**{mean}** ({low}, {high})" if figure.differs else f"{mean} ({low}, {high})"


if __name__ == "__main__":
    main()
