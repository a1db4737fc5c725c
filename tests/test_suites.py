"""Suites on open bundles: verdicts, the command, equality with direct computation, and the same on any threads."""

import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Exported
from edgeblt.bundle.dataclass_json import parse_dataclass
from edgeblt.evaluation.long_context import DEPTHS, LongSuite, joined, make_haystack
from edgeblt.evaluation.suite import run_suite
from edgeblt.evaluation.suite_report import (
    ACCURACY,
    BITS,
    MARGIN,
    ComparedFigure,
    SuiteFigure,
    SuiteReport,
    compared_figures,
    overall_verdict,
    verdict,
)
from edgeblt.evaluation.text_scorer import Advance, ModelScorer, Question, ReferenceScorer
from edgeblt.measure.reference import Text
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text, held_out_texts
from edgeblt.model import load
from test_commands import run_command, sentence

WORDS = b"It was the best of times, it was the worst of times, it was the age of wisdom; "
PROSE = Text("prose", WORDS * 14)


def nothing(count: int) -> None:
    pass


# Verdicts.


@pytest.mark.parametrize(
    ("unit", "difference", "low", "high", "said"),
    [
        (BITS, 0.1, -0.1, 0.3, "indistinguishable from fp32"),
        (BITS, 0.0, 0.0, 0.0, "indistinguishable from fp32"),
        (BITS, 0.1, 0.0, 0.3, "indistinguishable from fp32"),
        (BITS, 0.1234, 0.05, 0.3, "costs 0.1234 bits per byte"),
        (BITS, 0.00001, 0.000005, 0.00002, "costs 1.0e-05 bits per byte"),
        (BITS, -0.1, -0.3, -0.05, "gains 0.1000 bits per byte"),
        (ACCURACY, -0.031, -0.05, -0.01, "costs 3.1 points"),
        (ACCURACY, 0.031, 0.01, 0.05, "gains 3.1 points"),
        (MARGIN, -1.5, -2.0, -1.0, "costs 1.5000 nats"),
        (BITS, math.nan, math.nan, math.nan, "not finite"),
    ],
)
def test_verdicts(unit: str, difference: float, low: float, high: float, said: str) -> None:
    assert verdict(unit, difference, low, high, "fp32") == said


def figure(name: str, said: str, differs: bool, is_main: bool = True) -> ComparedFigure:
    return ComparedFigure("noise", name, "prose", BITS, is_main, 9, 9, 1.0, 2.0, 1.0, 0.5, 1.5, differs, said)


def test_the_verdict_on_a_bundle() -> None:
    """Losses come before gains, and what is no main figure does not count."""
    lost, gained = figure("swap", "costs 1 bit", True), figure("drop", "gains 1 bit", True)
    same, other = figure("same", "costs 2 bits", False), figure("other", "costs 3 bits", True, is_main=False)
    assert overall_verdict([same, other], "fp32") == "indistinguishable from fp32"
    said = "prose, swap: costs 1 bit; prose, drop: gains 1 bit"
    assert overall_verdict([gained, same, other, lost], "fp32") == said
    assert overall_verdict([lost] * 5, "fp32") == "; ".join(["prose, swap: costs 1 bit"] * 3) + "; and 2 more"


def test_figures_by_hand() -> None:
    """Items of one unit are added before units are resampled; three units are too few for an interval."""
    units = np.array([0, 0, 1, 2, 3])
    weights, theirs = np.array([1.0, 3.0, 4.0, 4.0, 4.0]), np.array([2.0, 2.0, 8.0, 4.0, 4.0])
    ours = theirs + np.array([0.5, -0.5, 0.0, 0.0, 0.0])  # within one unit it cancels out
    whole = SuiteFigure("noise", "all", "", BITS, np.arange(5), True)
    few = SuiteFigure("noise", "few", "", BITS, np.arange(4))
    none = SuiteFigure("noise", "none", "", BITS, np.zeros(0, np.int64))
    (found,) = compared_figures([whole, few, none], units, weights, theirs, ours, "fp32", 0)
    assert (found.items, found.units, found.reference, found.value) == (5, 4, 20 / 16, 20 / 16)
    assert (found.difference, found.low, found.high, found.differs) == (0, 0, 0, False)
    (lost,) = compared_figures([whole], units, weights, theirs, theirs + weights, "fp32", 0)
    assert (lost.difference, lost.low, lost.high, lost.differs) == (1, 1, 1, True)
    assert lost.verdict == "costs 1.0000 bits per byte"


@pytest.mark.parametrize("count", [24, 48, 288])
def test_few_answers_that_differ_as_the_exact_test_judges(count: int) -> None:
    """Lost answers count as a loss from where a sign test says so: 6 of 6 by chance are 1 case of 32, 5 of 5 of 16."""
    units, weights, right = np.arange(count), np.ones(count), np.ones(count)
    every = SuiteFigure("spelling", "every probe", "", ACCURACY, units)
    said = []
    for lost in (0, 1, 3, 4, 7, 9):
        ours = right - (np.arange(count) < lost)
        (found,) = compared_figures([every], units, weights, right, ours, "fp32", 0)
        assert found.difference == -lost / count and found.low <= found.difference <= found.high
        said.append(found.verdict.split()[0])
    assert said == ["indistinguishable"] * 4 + ["costs"] * 2


@pytest.mark.slow
def test_noise_is_not_read_as_loss() -> None:
    """Of 200 bundles that differ from the reference by chance alone, some 5% have a figure that says otherwise, and no
    more than that a verdict against them, although each has ten main figures."""
    generator, wrong, condemned = np.random.default_rng(3), 0, 0
    units, weights = np.arange(240), np.full(240, 256.0)
    figures = [SuiteFigure("noise", str(n), str(n), BITS, np.arange(24) + 24 * n, True) for n in range(10)]
    for seed in range(200):
        theirs = generator.normal(500, 50, 240)
        found = compared_figures(figures, units, weights, theirs, theirs + generator.normal(0, 3, 240), "fp32", seed)
        wrong += sum(not each.verdict.startswith("indistinguishable") for each in found)
        condemned += overall_verdict(found, "fp32") != "indistinguishable from fp32"
    assert 0.03 < wrong / 2000 < 0.08 and condemned / 200 < 0.11


# Long texts.


class Finder:
    """Finds what a question asks for in the text, unless it stands further back than it can look."""

    def __init__(self, window: int) -> None:
        self._window = window

    def score(self, texts: Sequence[bytes], advance: Advance) -> list[NDArray[np.float64]]:
        """A byte costs 1 bit, and 3 from byte 1,024 on."""
        return [-math.log(2) * np.where(np.arange(len(text)) < 1024, 1.0, 3.0) for text in texts]

    def answers(self, text: bytes, questions: Sequence[Question], advance: Advance) -> list[list[float]]:
        seen = text[-self._window :]
        return [[float(question.words.strip() + b" " + a + b"." in seen) for a in question.answers]
                for question in questions]  # fmt: skip


def test_positions_and_needles() -> None:
    suite = LongSuite([Text("a", WORDS * 20), Text("b", WORDS[::-1] * 20)], False, 0)
    values = suite.values(Finder(500), nothing)
    found = {(each.name, each.text): values[each.items].sum() / suite.weights[each.items].sum()
             for each in suite.figures if len(each.items)}  # fmt: skip
    assert found["bytes 0 to 256", ""] == found["bytes 256 to 1,024", ""] == pytest.approx(1.0)
    assert found["bytes 1,024 to 2,048", ""] == pytest.approx(3.0)
    assert 1 < found["every position", "a"] < 3 and 1 < found["every position", "b"] < 3
    assert ("1,024 bytes", "") in found and ("4,096 bytes", "") not in found  # the texts are shorter
    by_depth = [found[f"1,024 bytes, at {depth:.0%}", ""] for depth in DEPTHS]
    assert by_depth == [0.5, 0.5, 1.0, 1.0]  # unseen, all four are as likely
    everywhere = suite.values(Finder(10**6), nothing)
    (every,) = [each for each in suite.figures if each.name == "every needle"]
    assert everywhere[every.items].sum() == len(every.items)


def test_haystacks() -> None:
    texts = [Text("russian", held_out_text("russian")[:1500]), Text("plain", WORDS * 20)]
    for number in range(6):
        haystack = make_haystack(texts, 1024, number, 7)
        assert haystack == make_haystack(texts, 1024, number, 7) != make_haystack(texts, 1024, number, 8)
        needles = re.findall(rb"\nThe number of (\w+) is (\d{4})\.\n", haystack.text)
        assert len(dict(needles)) == len(DEPTHS)
        assert all(len({value[place] for _, value in needles}) == len(DEPTHS) for place in range(4))
        for (name, value), question in zip(needles, haystack.questions, strict=True):
            assert question.words == b"\nThe number of " + name + b" is " and question.answers[0] == value
            assert sorted(question.answers) == sorted(value for _, value in needles)
        hay = re.sub(rb"\nThe number of \w+ is \d{4}\.\n", b"", haystack.text)
        assert len(hay) == 1024 and hay in joined(texts, 0, 10**6) * 2
        starts = [found.start() for found in re.finditer(rb"\nThe number", haystack.text)]
        size = len(haystack.text) - len(hay)
        for place, depth in enumerate(DEPTHS):
            assert abs(starts[place] - place * size / len(DEPTHS) - depth * 1024) < 8
            assert haystack.text[starts[place] + 1 :][0] & 0xC0 != 0x80  # no character is cut


# On bundles.


def test_scores_and_answers_are_those_of_the_model(exported: Callable[[int], Exported]) -> None:
    """The batch engine's scores, and answers after forks, equal those of whole texts, one by one."""
    tiny = exported(10)
    scorer, slow = ModelScorer(tiny.model), ReferenceScorer(tiny.reference)
    texts = [WORDS[:30], WORDS, b"x", WORDS * 30]
    for got, text in zip(scorer.score(texts, nothing), texts, strict=True):
        assert np.array_equal(got, tiny.model.score(text).logprobs.astype(np.float64))
    for got, wanted in zip(scorer.score(texts[:3], nothing), slow.score(texts[:3], nothing), strict=True):
        assert np.abs(got - wanted).max() < 1e-4
    questions = (Question(b"It was ", (b"the", b"a", b"wisdom")), Question(b"of", (b" times", b" age")))
    answers = scorer.answers(WORDS, questions, nothing)
    for question, ours, theirs in zip(questions, answers, slow.answers(WORDS, questions, nothing), strict=True):
        whole = [tiny.model.score(WORDS + question.words + answer).logprobs for answer in question.answers]
        ends = [float(part[-len(a) :].sum(dtype=np.float64)) for part, a in zip(whole, question.answers, strict=True)]
        assert ours == pytest.approx(ends, abs=1e-5) and ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("suite", ["robust", "long"])
def test_a_bundle_beside_itself(suite: str, exported: Callable[[int], Exported]) -> None:
    tiny = exported(10)
    (same,) = run_suite(suite, [tiny.model], ModelScorer(tiny.model), "tiny", "fp32", [PROSE], quick=True)
    assert same.verdict == "indistinguishable from fp32"
    assert {each.difference for each in same.figures} == {0.0}
    assert {(each.low, each.high) for each in same.figures if each.unit != ACCURACY} == {(0.0, 0.0)}
    assert all(each.low < 0 < each.high for each in same.figures if each.unit == ACCURACY)
    assert parse_dataclass(SuiteReport, json.loads(json.dumps(dataclasses.asdict(same))), "it") == same


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["robust", "long"])
def test_a_bundle_beside_its_checkpoint(suite: str, exported: Callable[[int], Exported]) -> None:
    tiny = exported(10)
    (exact,) = run_suite(suite, [tiny.model], ReferenceScorer(tiny.reference), "tiny", "fp32", [PROSE], quick=True)
    assert all(abs(each.difference) < 1e-4 for each in exact.figures if each.unit == BITS)
    assert all(abs(each.difference) < 1e-3 for each in exact.figures if each.unit == MARGIN)


@pytest.mark.slow
def test_length_beside_transformers() -> None:
    """Windows, RoPE and caches at length: the bundled model's scores of 4,096 bytes are transformers' own."""
    from edgeblt.export.export_bundle import export_bundle
    from edgeblt.export.reference import TransformersReference

    with tempfile.TemporaryDirectory() as folder:
        model = load(export_bundle(DEMO_CHECKPOINT, Path(folder) / "bundle").path)
        document = joined(held_out_texts(), 0, 4096)
        (ours,) = ModelScorer(model).score([document], nothing)
        (theirs,) = ReferenceScorer(TransformersReference(DEMO_CHECKPOINT)).score([document], nothing)
        assert np.abs(ours - theirs).max() < 1e-3 and abs(float(ours.mean() - theirs.mean())) < 1e-5


def test_any_number_of_threads_gives_the_same(exported: Callable[[int], Exported]) -> None:
    tiny = exported(10)
    results = []
    for threads in (1, 2):
        with load(tiny.bundle, threads=threads) as model:
            found = run_suite("robust", [model], Halves(), "halves", "fp32", [PROSE], quick=True, seed=5)
            results += [found, run_suite("long", [model], Halves(), "halves", "fp32", [PROSE], quick=True, seed=5)]
    assert results[:2] == results[2:]


class Halves(Finder):
    """Gives every byte and every answer one bit."""

    def __init__(self) -> None:
        super().__init__(0)

    def score(self, texts: Sequence[bytes], advance: Advance) -> list[NDArray[np.float64]]:
        return [np.full(len(text), -math.log(2)) for text in texts]


# The command.


def test_the_command(tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint, bundle = tiny_bundle
    (tmp_path / "text.txt").write_bytes(PROSE.data)
    options = ["--text", tmp_path / "text.txt", "--quick", "--json", tmp_path / "suite.json"]
    for suite, groups, bundles, reference in (
        ("robust", {"noise", "spelling"}, [bundle], checkpoint),
        ("long", {"position", "needle"}, [bundle, bundle], bundle),
    ):
        result = run_command(capfd, "validate", *bundles, "--suite", suite, "--reference", reference, *options)
        assert result.code == 0 and "indistinguishable from fp32" in result.stdout
        document = json.loads((tmp_path / "suite.json").read_text())
        reports = document if len(bundles) > 1 else [document]
        assert len(reports) == len(bundles) and reports[0] == reports[-1]
        assert {each["group"] for each in reports[0]["figures"]} == groups
        assert (reports[0]["suite"], reports[0]["reference_recipe"], reports[0]["is_quick"]) == (suite, "fp32", True)
        assert reports[0]["reference"] == reference.name
        shown = run_command(capfd, "report", tmp_path / "suite.json", "-o", tmp_path / "page.html")
        assert shown.code == 0
        page = (tmp_path / "page.html").read_text()
        assert "Noise, spelling and length" in page and all(f'id="suite-{group}-0"' in page for group in groups)


def test_what_a_suite_does_not_take(tiny_bundle: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint, bundle = tiny_bundle
    suite = ["validate", bundle, "--suite", "robust"]
    given = [*suite, "--reference", bundle]
    for arguments, said in (
        (suite, "there is nothing to compare with; give --reference BUNDLE, or --reference CHECKPOINT"),
        ([*given, "--noise"], "a suite has noise of its own; leave out --noise"),
        ([*given, "--max-kl", 1], "a suite has verdicts instead of limits; leave out the options that begin with"),
        ([*given, "--save-reference-logits", "x"], "x holds logits of texts, which are not those of a suite"),
        (["validate", bundle, "--suite", "no", "--reference", bundle], "there is no suite 'no'; use one of robust, lo"),
        (["validate", bundle, "--quick", "--reference", checkpoint], "--quick is for suites; give --suite robust or"),
        (["validate", bundle, checkpoint, "--reference", checkpoint], f"{bundle} and {checkpoint} are two bundles;"),
    ):
        assert sentence(run_command(capfd, *arguments)).startswith(said)
