"""The recipes of the package against fp32 on noise, spelling and length, as tables for docs/evaluation.md.

    python benchmarks/evaluation.py [--bundles DIRECTORY] [--quick] [--threads 1]
    python benchmarks/evaluation.py --results FILE ...
    python benchmarks/evaluation.py --positions FP32-BUNDLE

Bundles of the bundled model are exported into DIRECTORY where they are not there yet. The suite `robust` is on all six
held-out texts, `long` on those of the kinds that the model was trained on (prose, code, typos). With --results, the
tables are of what `edgeblt validate --suite` wrote with --json. The last line is JSON: the verdicts. With --positions,
bits per byte of the same bytes at several ranges of positions, and the largest difference of a log-probability to
transformers on 8,192 bytes, for which that takes some gigabytes.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgeblt import Name, load
from edgeblt.evaluation.long_context import BUCKETS, DOCUMENTS, joined
from edgeblt.evaluation.suite import run_suite
from edgeblt.evaluation.suite_report import ACCURACY, BITS, ComparedFigure, SuiteReport
from edgeblt.evaluation.text_scorer import ModelScorer, ReferenceScorer
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
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
    parser.add_argument("--positions", type=Path)
    arguments = parser.parse_args()
    if arguments.positions:
        print(json.dumps(same_bytes_by_position(ModelScorer(load(arguments.positions, threads=arguments.threads)))))
        return
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


def same_bytes_by_position(scorer: ModelScorer) -> dict[str, float]:
    """Bits per byte in ranges of positions less those of the same bytes at 256 to 4,096; and transformers beside it."""
    texts = [Text(name, held_out_text(name)) for name in SEEN]
    total = sum(len(text.data) for text in texts)
    starts = [number * total // DOCUMENTS for number in range(DOCUMENTS)]
    documents = [joined(texts, start, BUCKETS[-1]) for start in starts]
    scored = scorer.score(documents, lambda count: None)
    bits, positions = np.full((DOCUMENTS, total), np.nan), np.full((DOCUMENTS, total), -1)
    for number, (start, logprobs) in enumerate(zip(starts, scored, strict=True)):
        places = (start + np.arange(len(logprobs))) % total
        bits[number, places], positions[number, places] = -logprobs / np.log(2), np.arange(len(logprobs))
    early = np.nanmean(np.where((positions >= 256) & (positions < 4096), bits, np.nan), axis=0)
    found = {}
    for low, high in itertools.pairwise((4096, 8192, 16384)):
        late = np.nanmean(np.where((positions >= low) & (positions < high), bits, np.nan), axis=0)
        found[f"{low} to {high}"] = round(float(np.nanmean(late - early)), 4)
    (theirs,) = ReferenceScorer(TransformersReference(DEMO_CHECKPOINT)).score([documents[0][:8192]], lambda count: None)
    return found | {"transformers": float(np.abs(scored[0][:8192] - theirs).max())}


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
    """Whether to show a figure over all texts: no noise, where languages never seen outweigh all, nor 6 needles."""
    return not figure.text and figure.group != "noise" and ", at " not in figure.name


def names(figure: ComparedFigure) -> tuple[Any, ...]:
    return figure.group, figure.name, figure.text


def cell(figure: ComparedFigure) -> str:
    """Difference and interval, in thousandths of a bit, percentage points or nats; bold where it differs for sure."""
    scale, digits = (1000, 1) if figure.unit == BITS else (100, 1) if figure.unit == ACCURACY else (1, 3)
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in (figure.difference, figure.low, figure.high))
    return f"**{mean}** ({low}, {high})" if figure.differs else f"{mean} ({low}, {high})"


if __name__ == "__main__":
    main()
