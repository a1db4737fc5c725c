"""Samples of several texts at once are those that each text's own sampler gives."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeblt.decoding.cuts import Cuts
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.sampling_rows import foreseen_ids
from edgeblt.errors import EdgebltError

KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1e-9},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 2.0, "min_p": 0.05},
    {"temperature": 1.3, "top_k": 5, "top_p": 0.5, "min_p": 0.2},
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 1.0, "logit_bias": {"a": -np.inf}},
    {"temperature": 1.0, "logit_bias": {"b": 3.0}},
]


def samplers(count: int) -> list[Sampler]:
    """Of each kind several, with slightly different values."""
    found = []
    for number, kind in zip(range(count), itertools.cycle(KINDS), strict=False):
        changed = {"temperature": kind["temperature"] * (1 + number / 1000)} if kind else {}
        found.append(Sampler(Sampling(**(kind | changed), seed=number)))
    return found


def rows(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    scales = rng.choice([0.01, 1, 5, 80], (count, 1))
    logits: NDArray[np.float32] = (rng.standard_normal((count, 300)) * scales).astype(np.float32)
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    logits[:, 7] = np.where(np.isinf(logits).all(axis=1), 0, logits[:, 7])
    return logits


def test_samples_at_once_are_those_of_each_alone() -> None:
    rng, together, alone = np.random.default_rng(5), samplers(45), samplers(45)
    shared = 0
    for _ in range(60):
        logits = rows(rng, len(together))
        logits[3, 20] = np.inf
        taking_part = np.flatnonzero(rng.random(len(together)) < 0.8)
        foreseen = foreseen_ids([together[place] for place in taking_part], [logits[place] for place in taking_part])
        shared += sum(id is not None for id in foreseen)
        for place, id in zip(taking_part, foreseen, strict=True):
            chosen = alone[place].choose(logits[place])
            if id is None:
                assert together[place].choose(logits[place]) == chosen
            else:
                assert id == chosen
                together[place].take(id)
    assert shared > 60 * 20


def test_unusable_logits_are_left_to_the_sampler_of_their_text() -> None:
    several = [Sampler(Sampling(temperature=1.0, seed=seed)) for seed in range(4)]
    logits = np.zeros((4, 260), np.float32)
    logits[1], logits[2, 100] = -np.inf, np.nan
    found = foreseen_ids(several, list(logits))
    assert found[1] is found[2] is None
    for place in (0, 3):
        assert found[place] == Sampler(Sampling(temperature=1.0, seed=place)).choose(logits[place])
    for place in (1, 2):
        with pytest.raises(EdgebltError):
            several[place].choose(logits[place])


@pytest.mark.parametrize("cuts", [(3, None, None), (None, 0.6, None), (None, None, 0.5), (4, 0.7, 0.4), (None,) * 3])
def test_cuts_against_a_plain_search(cuts: tuple[int | None, float | None, float | None]) -> None:
    weights = np.random.default_rng(1).permuted(np.array([[0.4, 0.3, 0.2, 0.05, 0.03, 0.02]] * 5), axis=1)
    expected = [plain_cut(row.tolist(), *cuts) for row in weights]
    Cuts.joined([Cuts.of(*cuts)] * 5).normalize(weights)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def plain_cut(row: list[float], top_k: int | None, top_p: float | None, min_p: float | None) -> list[float]:
    kept = sorted(range(len(row)), key=lambda id: -row[id])[:top_k]
    total = sum(row[id] for id in kept)
    if top_p is not None:
        reached = list(itertools.accumulate(row[id] / total for id in kept))
        kept = kept[: next(place for place, share in enumerate(reached, 1) if share >= top_p)]
    if min_p is not None:
        kept = [id for id in kept if row[id] >= min_p * row[kept[0]]]
    total = sum(row[id] for id in kept)
    return [row[id] / total if id in kept else 0.0 for id in range(len(row))]
