"""Another threshold than the bundle's own: the decisions of a bundle exported with it, in every kind of session."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import patching_oracle
import tiny_models
from conftest import Exported
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.errors import EdgebltError
from edgeblt.model import Model, load
from edgeblt.runtime import native
from sampled import mostly_slow
from test_commands import run_command, sentence
from test_exactness import thresholds

PLAIN, LIMITED = 12, 10  # seeds of the rule threshold: without and with a maximum length
WITHOUT_ENTROPIES = 14
IDS = tiny_models.random_ids(7, 150)


RULES = [(Rule.THRESHOLD, None), (Rule.THRESHOLD, 5), (Rule.MONOTONIC, None), (Rule.THRESHOLD_AND_RISE, 5)]


@pytest.fixture(params=["native", "portable"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """With the native library, and without."""
    if request.param == "native" and native.library_path() is None:
        pytest.skip("the native library is not built")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "native":
            patch.delenv(native.VARIABLE, raising=False)
        else:
            patch.setenv(native.VARIABLE, "0")
        native.status.cache_clear()
        yield
    native.status.cache_clear()


@pytest.fixture(scope="module")
def with_rule(
    exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[PatchingRule], Path]:
    """By patching rule: a bundle of the same weights."""
    root = tmp_path_factory.mktemp("rules")

    @functools.cache
    def bundle(patching: PatchingRule) -> Path:
        path = root / str(len(list(root.iterdir())))
        exported(PLAIN).with_rule(patching, path)
        return path

    return bundle


def results(model: Model) -> list[NDArray[Any]]:
    """All figures of the ids read in uneven pieces, single ids among them, with rollbacks and a fork."""
    session, found = model.session(), []
    for start, stop in [(0, 1), (1, 90), (90, 91), (91, 92), (92, 97), (80, 81), (30, 60)]:
        session.rollback(start)
        for chunk in session.run(IDS[start:stop]):
            found += [chunk.logits.copy(), chunk.entropies.copy(), chunk.patch_starts.copy()]
    for chunk in session.fork().run(IDS[60:]):
        found += [chunk.logits.copy(), chunk.entropies.copy(), chunk.patch_starts.copy()]
    return found


def read(model: Model) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Entropies and patch starts after each of the ids."""
    chunks = [(chunk.entropies.copy(), chunk.patch_starts.copy()) for chunk in model.session().run(IDS)]
    entropies, starts = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return entropies, starts


def assert_same(first: Model, second: Model) -> None:
    for expected, found in zip(results(first), results(second), strict=True):
        np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize("seed", [PLAIN, LIMITED])
def test_the_own_threshold_changes_nothing(exported: Callable[[int], Exported], seed: int) -> None:
    own = load(exported(seed).bundle)
    assert_same(own, load(exported(seed).bundle, threshold=own.config.patching.threshold))


@pytest.mark.parametrize("maximum", [None, 4])
def test_a_very_high_threshold_leaves_the_other_rules(
    with_rule: Callable[[PatchingRule], Path], maximum: int | None
) -> None:
    """Positions 0 and 1, and the maximum length counted from there, start a patch."""
    bundle = with_rule(PatchingRule(Rule.THRESHOLD, 1.0, max_patch_length=maximum))
    _, starts = read(load(bundle, threshold=1e30))
    expected = [1] + ([1 + maximum * k for k in range(1, len(IDS) // maximum + 1)] if maximum else [])
    assert (np.flatnonzero(starts) + 1).tolist() == [position for position in expected if position <= len(IDS)]


@pytest.mark.parametrize("rule", [Rule.THRESHOLD, Rule.MONOTONIC])
def test_a_very_low_threshold_gives_a_patch_a_byte(with_rule: Callable[[PatchingRule], Path], rule: Rule) -> None:
    model = load(with_rule(PatchingRule(rule, 1.0)), threshold=-1e30)
    assert read(model)[1].all()
    session = model.session()
    session.feed(IDS)
    assert session.patch_count == len(IDS)


@pytest.mark.parametrize(
    ("kernels", "rule", "maximum"),
    mostly_slow(
        [(kernels, *case) for kernels in ("native", "portable") for case in RULES],
        [("native", *RULES[0]), ("native", *RULES[3]), ("portable", *RULES[1]), ("portable", *RULES[2])],
    ),
    indirect=["kernels"],
)
def test_it_is_that_of_a_bundle_exported_with_it(
    exported: Callable[[int], Exported], with_rule: Callable[[PatchingRule], Path], rule: Rule, maximum: int | None
) -> None:
    """Of which the patches are also those of the rules' definition."""
    entropies, _ = read(load(exported(PLAIN).bundle))
    wanted, added = thresholds(rule, entropies)
    patching = PatchingRule(rule, wanted, added, maximum)
    expected = load(with_rule(patching))
    model = load(with_rule(PatchingRule(rule, 1.0, added, maximum)), threshold=wanted)
    assert_same(expected, model)
    entropies, starts = read(model)
    np.testing.assert_array_equal(starts, patching_oracle.patch_starts(patching, entropies, IDS))
    assert not np.array_equal(starts, read(model.with_threshold(None))[1])
    np.testing.assert_array_equal(starts, read(model.with_threshold(None).with_threshold(wanted))[1])
    np.testing.assert_array_equal(starts, read(model)[1])  # which is another model


def test_a_rollback_that_reads_again_keeps_it(exported: Callable[[int], Exported]) -> None:
    model = load(exported(PLAIN).bundle, threshold=1e30)
    session = model.session()
    session.feed(IDS)
    session.rollback(60)  # so far back that ids are fed again
    assert session.patch_count == 1
    other = session.fork()
    other.feed(IDS[60:])
    assert other.patch_count == 1


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -float("inf"), 1e39, -1e300])
def test_what_is_no_threshold_is_refused(exported: Callable[[int], Exported], threshold: float) -> None:
    with pytest.raises(EdgebltError, match=r"^threshold is .*; give a number of nats, such as 1\.5$"):
        load(exported(PLAIN).bundle, threshold=threshold)
    with pytest.raises(EdgebltError, match=r"^threshold is .*; give a number of nats, such as 1\.5$"):
        exported(PLAIN).model.with_threshold(threshold)


# The commands.


def test_generate_and_validate_take_it(
    exported: Callable[[int], Exported], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, text = exported(PLAIN).bundle, tmp_path / "text"
    generated = run_command(
        capfd, "generate", bundle, "It was", "--threshold", "-9", "--max-new-bytes", 20, "--seed", 3
    )
    expected = load(bundle, threshold=-9).generate("It was", 20, seed=3).decode(errors="replace") + "\n"
    assert (generated.code, generated.stdout) == (0, expected)
    assert expected != load(bundle).generate("It was", 20, seed=3).decode(errors="replace") + "\n"

    text.write_bytes(bytes(id - 4 for id in IDS[1:]))
    scores, saved = load(bundle, threshold=-9).score(text.read_bytes()), tmp_path / "saved"
    arguments = ["validate", bundle, "--threshold", "-9", "--json", "-"]
    reference = ["--reference", exported(PLAIN).checkpoint, "--text", text, "--save-reference-logits", saved]
    for result in (run_command(capfd, *arguments, *reference),
                   run_command(capfd, *arguments, "--reference-logits", saved)):  # fmt: skip
        figures = json.loads(result.stdout)
        assert figures["bits_per_byte"] == pytest.approx(scores.bits_per_byte)
        assert figures["boundary_agreement"] < 0.9


def test_commands_refuse_what_load_does(exported: Callable[[int], Exported], capfd: pytest.CaptureFixture[str]) -> None:
    plain, other = exported(PLAIN).bundle, exported(WITHOUT_ENTROPIES).bundle
    for threshold in ("nan", "inf"):
        said = sentence(run_command(capfd, "generate", plain, "hello", "--threshold", threshold))
        assert said == f"threshold is {threshold}; give a number of nats, such as 1.5"
    said = sentence(run_command(capfd, "generate", other, "hello", "--threshold", 1))
    assert said == f"{other} starts patches without entropies; leave the threshold out"
    assert (
        "Invalid value for '--threshold'"
        in run_command(capfd, "generate", plain, "hello", "--threshold", "high").stderr
    )
