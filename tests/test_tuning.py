"""`edgeblt tune`: its figures are those of bundles exported with each threshold, its choice keeps to the budget."""

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import patching_oracle
import tiny_models
from conftest import Exported
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure import tuning
from edgeblt.measure.reference import Text
from edgeblt.measure.tuning import Point, Tuning, candidates, choose, compared_values, tune
from edgeblt.measure.weight_traffic import weight_bytes_read
from edgeblt.model import Model, load
from edgeblt.scores import Scores
from test_commands import run_command, sentence
from test_exactness import thresholds

SEED = 12  # the rule threshold, no maximum length
WITHOUT_ENTROPIES = 14
TEXTS = (Text("first", bytes(id - 4 for id in tiny_models.random_ids(3, 521)[1:])),
         Text("second", bytes(id - 4 for id in tiny_models.random_ids(4, 501)[1:])))  # fmt: skip
BUDGET = 0.05
FIELDS = ["bundle", "bundle_id", "recipe", "provider", "device", "text", "bytes", "threshold", "chosen_threshold",
          "max_bpb_increase", "points"]  # fmt: skip
POINT_FIELDS = ["threshold", "bytes_per_patch", "bits_per_byte", "increase", "decode_bytes_per_s",
                "weight_bytes_per_byte"]  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bytes are timed: nothing here is about speed."""
    monkeypatch.setattr(tuning, "ROUNDS", 1)
    monkeypatch.setattr(tuning, "DECODED_BYTES", 5)


@dataclasses.dataclass(frozen=True)
class Tuned:
    bundle: Path
    result: Tuning
    patching: PatchingRule


@pytest.fixture(scope="module")
def tuned(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Rule], Tuned]:
    """By rule: a model that has it, and its curve."""
    made: dict[Rule, Tuned] = {}

    def of(rule: Rule) -> Tuned:
        if rule not in made:
            entropies = exported(SEED).model.score(TEXTS[0].data).entropies
            patching = PatchingRule(rule, *thresholds(rule, entropies), max_patch_length=40)
            bundle = tmp_path_factory.mktemp("tuned") / "bundle"
            exported(SEED).with_rule(patching, bundle)
            made[rule] = Tuned(bundle, tune(bundle, BUDGET, TEXTS), patching)
        return made[rule]

    return of


def bits_per_byte(model: Model, texts: tuple[Text, ...]) -> float:
    logprobs = np.concatenate([model.score(text.data).logprobs for text in texts]).astype(np.float64)
    return float(-logprobs.mean() / math.log(2))


@pytest.mark.parametrize("rule", [Rule.THRESHOLD, Rule.MONOTONIC, Rule.THRESHOLD_AND_RISE])
def test_the_curve_is_that_of_bundles_exported_with_each_threshold(
    tuned: Callable[[Rule], Tuned], exported: Callable[[int], Exported], tmp_path: Path, rule: Rule
) -> None:
    found = tuned(rule)
    points = found.result.points
    assert len(points) >= 5
    own = load(found.bundle)
    for number, point in enumerate([points[-2], found_point(found.result)]):
        patching = dataclasses.replace(found.patching, threshold=point.threshold)
        model = exported(SEED).with_rule(patching, tmp_path / str(number))
        assert point.bits_per_byte == pytest.approx(bits_per_byte(model, TEXTS), abs=1e-9)
        assert point.increase == pytest.approx(point.bits_per_byte - bits_per_byte(own, TEXTS), abs=1e-9)
        starts = [decisions(model, text, patching) for text in TEXTS]
        bytes_per_patch = sum(map(len, starts)) / sum(map(np.count_nonzero, starts))
        assert point.bytes_per_patch == pytest.approx(bytes_per_patch, rel=1e-12)


def found_point(result: Tuning) -> Point:
    return next(point for point in result.points if point.threshold == result.chosen_threshold)


def decisions(model: Model, text: Text, patching: PatchingRule) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Whether each byte of the text starts a patch, by the rule's definition."""
    ids = np.concatenate([[BOS], encode(text.data)])[:-1]
    return patching_oracle.patch_starts(patching, model.score(text.data).entropies, ids)


@pytest.mark.parametrize("rule", [Rule.THRESHOLD, Rule.MONOTONIC, Rule.THRESHOLD_AND_RISE])
def test_a_tuning_is_whole(tuned: Callable[[Rule], Tuned], rule: Rule) -> None:
    result = tuned(rule).result
    by_threshold = {point.threshold: point for point in result.points}
    assert list(by_threshold) == sorted(by_threshold) and len(by_threshold) == len(result.points)
    own, chosen = by_threshold[result.threshold], by_threshold[result.chosen_threshold]
    assert result.threshold == tuned(rule).patching.threshold and own.increase == 0
    assert (result.text, result.bytes) == ("first, second", 1020)
    assert chosen.increase <= BUDGET and chosen.weight_bytes_per_byte <= own.weight_bytes_per_byte
    for point in result.points:
        assert point.increase > BUDGET or point.weight_bytes_per_byte >= chosen.weight_bytes_per_byte
        assert point.decode_bytes_per_s > 0
    # A threshold that is typed as it is shown is the same one.
    assert all(float(f"{point.threshold:g}") == point.threshold for point in result.points if point is not own)
    lengths = [point.bytes_per_patch for point in result.points]
    assert lengths[0] < own.bytes_per_patch < 3 * own.bytes_per_patch < lengths[-1]


def test_weight_bytes_are_what_decoding_reads(tuned: Callable[[Rule], Tuned]) -> None:
    """Byte by byte, as a session counts it."""
    found = tuned(Rule.THRESHOLD)
    (one,) = {found.result.points[-1]}
    model, read = load(found.bundle, threshold=one.threshold), 0
    for text in TEXTS:
        session = model.session()
        for id in [BOS, *encode(text.data)[:-1]]:
            session.feed([id])
        read += weight_bytes_read(bundle_plan(model.bundle, 1.0).stages, session.work)
    assert one.weight_bytes_per_byte == pytest.approx(read / found.result.bytes, rel=1e-12)


def test_two_tunings_choose_the_same(tuned: Callable[[Rule], Tuned]) -> None:
    found = tuned(Rule.THRESHOLD)
    again = tune(found.bundle, BUDGET, TEXTS)
    for first, second in zip(found.result.points, again.points, strict=True):
        assert dataclasses.replace(first, decode_bytes_per_s=0) == dataclasses.replace(second, decode_bytes_per_s=0)
    assert again.chosen_threshold == found.result.chosen_threshold


def test_more_budget_never_reads_more(tuned: Callable[[Rule], Tuned]) -> None:
    found = tuned(Rule.THRESHOLD)
    results = [tune(found.bundle, budget, TEXTS[:1]) for budget in (0.0, 1e9)]
    reads = [found_point(result).weight_bytes_per_byte for result in results]
    assert reads == sorted(reads, reverse=True)
    assert found_point(results[0]).increase <= 0
    assert results[1].chosen_threshold == max(results[1].points, key=lambda point: point.bytes_per_patch).threshold


@pytest.mark.parametrize("budget", [0.5, 2.0, 5.0])
def test_the_budget_is_used_up(tuned: Callable[[Rule], Tuned], monkeypatch: pytest.MonkeyPatch, budget: float) -> None:
    """Where a byte costs as many bits as a patch has bytes, the patches are nearly as long as the budget allows."""

    def costly(model: Model, data: bytes) -> Scores:
        values = np.sort(compared_values(found.patching, own.entropies))
        assert model.threshold is not None
        starts = np.arange(len(data)) < np.count_nonzero(values > np.float32(model.threshold)) + 1
        logprobs = np.full(len(data), -math.log(2) * len(data) / starts.sum(), np.float32)
        return dataclasses.replace(own, logprobs=logprobs, patch_starts=starts)

    found = tuned(Rule.THRESHOLD)
    own = load(found.bundle).score(TEXTS[0].data)
    monkeypatch.setattr(Model, "score", costly)
    result = tune(found.bundle, budget, TEXTS[:1])
    present = next(point for point in result.points if point.threshold == result.threshold).bytes_per_patch
    lengths = [len(TEXTS[0].data) / patches for patches in range(1, len(TEXTS[0].data) + 1)]
    longest = max(length for length in lengths if length <= present + budget)
    assert 0.93 * longest < found_point(result).bytes_per_patch <= present + budget


# The choice.

POINTS = st.lists(
    st.builds(
        Point,
        threshold=st.integers(-5, 5).map(float),
        bytes_per_patch=st.just(1.0),
        bits_per_byte=st.integers(0, 3).map(float),
        increase=st.sampled_from([-0.5, 0.0, 0.01, 0.02, 0.5, 2.0]),
        decode_bytes_per_s=st.floats(1, 1e6),
        weight_bytes_per_byte=st.integers(1, 4).map(float),
    ),
    max_size=8,
)
OWN = Point(0.5, 1.0, 2.0, 0.0, 1.0, 3.0)


@given(POINTS, st.sampled_from([0.0, 0.01, 0.015, 1.0]), st.randoms(use_true_random=False))
def test_the_choice(others: list[Point], budget: float, rng: random.Random) -> None:
    points = [OWN, *others]
    chosen = choose(points, budget, OWN.threshold)
    assert chosen in points and chosen.increase <= budget
    for point in points:
        if point.increase <= budget:
            assert point.weight_bytes_per_byte >= chosen.weight_bytes_per_byte
            if point.weight_bytes_per_byte == chosen.weight_bytes_per_byte:
                assert point.bits_per_byte >= chosen.bits_per_byte
    rng.shuffle(points)
    slow = [dataclasses.replace(point, decode_bytes_per_s=rng.random()) for point in points]
    again = choose(slow, budget, OWN.threshold)  # neither order nor clock matter
    assert (again.threshold, again.weight_bytes_per_byte) == (chosen.threshold, chosen.weight_bytes_per_byte)


def test_the_own_threshold_wins_a_tie_and_where_nothing_fits() -> None:
    same = dataclasses.replace(OWN, threshold=-2.0)
    beyond = dataclasses.replace(OWN, threshold=3.0, increase=0.3, weight_bytes_per_byte=1.0)
    assert choose([same, OWN, beyond], 0.1, OWN.threshold) is OWN
    assert choose([same, OWN, beyond], 0.3, OWN.threshold) is beyond


# The thresholds to try.


@given(st.lists(st.floats(-4, 6, width=32), max_size=300), st.floats(-5, 7))
def test_candidates(values: list[float], own: float) -> None:
    array = np.array(values, np.float32)
    found = candidates(array, own)
    assert found == sorted(set(found)) and own not in found
    above = [sum(value > np.float32(threshold) for value in array) for threshold in [*found, own]]
    assert len(set(above)) == len(above)


@given(st.integers(0, 1000))
def test_candidates_grow_geometrically(seed: int) -> None:
    values = np.random.default_rng(seed).random(4000).astype(np.float32)
    above = [int((values > np.float32(threshold)).sum()) for threshold in candidates(values, 0.8)]
    present = int((values > np.float32(0.8)).sum())
    expected = [present * 2**0.5, *(present / 2 ** (step / 2) for step in range(1, 9))]
    assert above == pytest.approx(expected, rel=0.02, abs=2)


@given(
    st.sampled_from([Rule.THRESHOLD, Rule.MONOTONIC, Rule.THRESHOLD_AND_RISE]),
    st.lists(st.integers(0, 20).map(lambda step: step * 0.25), max_size=40),
    st.sampled_from([-1.125, 0.125, 2.625]),
    st.sampled_from([-0.125, 0.375]),
)
def test_values_that_the_rule_compares(rule: Rule, entropies: list[float], threshold: float, added: float) -> None:
    """As many as are above a threshold start patches, beside those that always do."""
    patching = PatchingRule(rule, threshold, added)
    values = compared_values(patching, np.array(entropies, np.float32))
    starts = patching_oracle.patch_starts(patching, entropies, [5] * len(entropies))
    always = min(len(entropies), 1 if rule is Rule.THRESHOLD else 2)
    assert int((values > np.float32(threshold)).sum()) == int(starts.sum()) - always


# The command.


def test_tune(tuned: Callable[[Rule], Tuned], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle, files = tuned(Rule.THRESHOLD).bundle, []
    for text in TEXTS:
        files.append(tmp_path / text.name)
        files[-1].write_bytes(text.data)
    before = sorted(bundle.parent.rglob("*"))
    arguments = ["tune", bundle, "--max-bpb-increase", BUDGET, "--text", files[0], "--text", files[1], "--threads", 1]
    result = run_command(capfd, *arguments, "--json", "-")
    assert result.code == 0
    document = json.loads(result.stdout)
    assert list(document) == FIELDS and all(list(point) == POINT_FIELDS for point in document["points"])
    expected = tuned(Rule.THRESHOLD).result
    for name in set(FIELDS) - {"points"}:
        assert document[name] == getattr(expected, name)

    result = run_command(capfd, *arguments, "--json", tmp_path / "curve.json")
    assert result.code == 0
    chosen = json.loads((tmp_path / "curve.json").read_text())["chosen_threshold"]
    assert chosen == expected.chosen_threshold
    last = result.stdout.rstrip("\n").splitlines()[-1]
    assert last == f"  edgeblt generate {bundle} PROMPT --threshold {chosen:g}"
    rows = [line for line in result.stdout.splitlines() if line.startswith("│")]
    assert len(rows) == len(expected.points)
    (own,) = (row for row in rows if " own " in row)
    (marked,) = (row for row in rows if " chosen " in row)
    assert f"{expected.threshold:g}" in own and f"{chosen:g}" in marked
    assert sorted(bundle.parent.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.json", "first", "second"]


def test_tune_where_nothing_fits(
    tuned: Callable[[Rule], Tuned], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = tuned(Rule.THRESHOLD).bundle
    monkeypatch.setattr(tuning, "candidates", lambda values, own: [])
    monkeypatch.setattr(tuning, "held_out_text", lambda name: TEXTS[0].data)
    result = run_command(capfd, "tune", bundle, "--max-bpb-increase", 0)
    assert result.code == 0 and " own, chosen " in result.stdout
    assert result.stdout.endswith(f"the bundle is best as it is.\n  edgeblt generate {bundle} PROMPT\n")


def test_what_is_refused(
    tuned: Callable[[Rule], Tuned],
    exported: Callable[[int], Exported],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bundle, other = tuned(Rule.THRESHOLD).bundle, exported(WITHOUT_ENTROPIES).bundle
    short = tmp_path / "short"
    short.write_bytes(b"x" * 499)
    for budget in ("nan", "inf", "-0.01"):
        said = sentence(run_command(capfd, "tune", bundle, "--max-bpb-increase", budget))
        assert said == f"max_bpb_increase is {budget}; give 0 or more bits, such as 0.02"
    refused = {
        (bundle, "--text", short): "short has 499 bytes; give a text of 500 or more, better some thousand",
        (bundle, "--text", tmp_path / "none"): f"{tmp_path / 'none'} cannot be read",
        (bundle, "--provider", "tpu"): "provider 'tpu' is unknown; this version has cpu, cuda",
        (other,): f"{other} starts patches without entropies; there is no threshold to tune",
        (tmp_path,): str(tmp_path),
    }
    for arguments, expected in refused.items():
        assert sentence(run_command(capfd, "tune", *arguments, "--max-bpb-increase", 0.1)).startswith(expected)
    assert "Missing option '--max-bpb-increase'" in run_command(capfd, "tune", bundle).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


def test_a_model_that_knows_nothing_is_refused(tuned: Callable[[Rule], Tuned], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Model, data: bytes) -> object:
        scores = score(model, data)
        return dataclasses.replace(scores, logprobs=scores.logprobs * np.float32("nan"))

    score = Model.score
    monkeypatch.setattr(Model, "score", broken)
    with pytest.raises(EdgebltError, match="needs nan bits per byte on the text; validate it"):
        tune(tuned(Rule.THRESHOLD).bundle, 0.1, TEXTS)
