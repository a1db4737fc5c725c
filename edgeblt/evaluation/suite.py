"""Suites that compare bundles with a reference on the same items, and the comparison itself."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.evaluation.intervals import CONFIDENCE, RESAMPLES
from edgeblt.evaluation.long_context import LongSuite
from edgeblt.evaluation.robust_suite import RobustSuite
from edgeblt.evaluation.suite_report import SuiteFigure, SuiteReport, compared_figures, overall_verdict
from edgeblt.evaluation.text_scorer import Advance, ModelScorer, TextScorer
from edgeblt.measure.reference import Text
from edgeblt.model import Model
from edgeblt.progress import BYTES, progress


class Suite(Protocol):
    """Items to score, each with its unit and weight, and the figures over them."""

    @property
    def bytes(self) -> int:
        """Bytes that a model reads."""
        ...

    @property
    def units(self) -> NDArray[np.int64]:
        """The unit [n] that each item is resampled with."""
        ...

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight [n] of each item in means."""
        ...

    @property
    def figures(self) -> tuple[SuiteFigure, ...]: ...

    def values(self, scorer: TextScorer, advance: Advance) -> NDArray[np.float64]:
        """A model's value [n] for each item: bits, 1 for a right answer, or nats."""
        ...


class _MakeSuite(Protocol):
    def __call__(self, texts: Sequence[Text], quick: bool, seed: int) -> Suite: ...


SUITES: Mapping[str, _MakeSuite] = MappingProxyType({"robust": RobustSuite, "long": LongSuite})


def make_suite(name: str, texts: Sequence[Text], quick: bool = False, seed: int = 0) -> Suite:
    """A suite's items, the same for the same texts and seed on every machine.

    name: robust or long.
    texts: what they are made from, with different names.
    quick: a smaller suite, whose intervals are wider.

    Raises EdgebltError for another name, texts of one name, and texts that are too short.
    """
    if name not in SUITES:
        raise EdgebltError(f"there is no suite {name!a:.60}; use one of {', '.join(SUITES)}")
    names = [text.name for text in texts]
    for text in names:
        if names.count(text) > 1:
            raise EdgebltError(f"the text {text!a} is given twice; give each text once, under its own name")
    return SUITES[name](texts, quick, seed)


def run_suite(
    name: str,
    models: Sequence[Model],
    reference: TextScorer,
    reference_name: str,
    reference_recipe: str,
    texts: Sequence[Text],
    quick: bool = False,
    seed: int = 0,
) -> tuple[SuiteReport, ...]:
    """Compares each model with the reference, which is run once, by a suite.

    models: open bundles.
    reference: `ModelScorer(model)` or `ReferenceScorer(reference)`.
    reference_name, reference_recipe: what reports call it, and its recipe, which verdicts name.
    name, texts, quick, seed: as `make_suite` takes them.

    Results are the same on any number of threads. Raises EdgebltError as `make_suite` does, and where a model fails.
    """
    suite = make_suite(name, texts, quick, seed)
    with progress(f"scoring the suite {name}", suite.bytes * (len(models) + 1), BYTES) as advance:
        theirs = suite.values(reference, advance)
        ours = [suite.values(ModelScorer(model), advance) for model in models]
    report = partial(_report, name, suite, reference_name, reference_recipe, texts, quick, seed, theirs)
    return tuple(report(model, values) for model, values in zip(models, ours, strict=True))


def _report(
    name: str,
    suite: Suite,
    reference_name: str,
    reference_recipe: str,
    texts: Sequence[Text],
    quick: bool,
    seed: int,
    theirs: NDArray[np.float64],
    model: Model,
    ours: NDArray[np.float64],
) -> SuiteReport:
    figures = compared_figures(suite.figures, suite.units, suite.weights, theirs, ours, reference_recipe, seed)
    return SuiteReport(
        suite=name,
        bundle=model.bundle.directory_name,
        bundle_id=model.bundle.id,
        recipe=model.bundle.manifest.recipe,
        bundle_bytes=model.bundle.size,
        provider=model.provider_name,
        device=model.device,
        threshold=model.threshold,
        reference=reference_name,
        reference_recipe=reference_recipe,
        is_quick=quick,
        seed=seed,
        resamples=RESAMPLES,
        confidence=CONFIDENCE,
        texts=tuple(text.name for text in texts),
        bytes=suite.bytes,
        figures=figures,
        verdict=overall_verdict(figures, reference_recipe),
    )
