"""The forward pass that calibration runs: what transformers computes, and the patches of the oracle."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import patching_oracle
import test_exactness
import tiny_models
from conftest import ENTROPY_TOLERANCE, TOLERANCE, tiny_oracle
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.reference import TransformersReference
from edgeblt.quant.calibration.activations import Values
from edgeblt.quant.calibration.forward import Forward
from edgeblt.quant.calibration.layerwise import PatchStarts
from sampled import mostly_slow

SEEDS = range(0, tiny_models.CONFIG_COUNT, 2)
IN_THE_SUITE = [seed for seed in tiny_models.VARIED_SEEDS if seed in SEEDS]
LENGTH = 160  # many windows

Starts = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Saved:
    """A tiny model as a checkpoint."""

    path: Path
    seed: int

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.path)

    @functools.cached_property
    def reference(self) -> TransformersReference:
        return TransformersReference(self.path)

    def forward(self) -> Forward:
        """With the checkpoint's own weights."""
        read, config = functools.cache(self.read), self.checkpoint.config

        def multiply(inputs: Values, names: list[str], then: Callable[..., Tensor], *others: Values) -> Values:
            texts = zip(inputs, *others, strict=True)
            made = [then(*(value @ read(name).T for name in names), *rest) for value, *rest in texts]
            return Values(len(made), made.__getitem__)

        def lookup(name: str, rows: list[Tensor]) -> Values:
            return Values(len(rows), lambda index: read(name)[rows[index]].sum(dim=1)[None])

        return Forward(config, multiply, read, lookup)

    def read(self, name: str) -> Tensor:
        return torch.from_numpy(self.checkpoint.tensor(name))

    def decided(self, ids: Sequence[int]) -> bool:
        """Whether no entropy is so near the threshold that rounding could decide about a patch."""
        config = self.checkpoint.config
        if config.patcher is None:
            return True
        entropies = tiny_models.reference_entropies(self.reference.model, ids)[1:]
        return bool((entropies - config.patching.threshold).abs().min() > 3 * ENTROPY_TOLERANCE)

    def rows(self) -> list[list[int]]:
        """Two texts with a common beginning."""
        others = (tiny_models.random_ids(other, LENGTH) for other in range(1000, 1100))
        first, common = tiny_models.random_ids(self.seed, LENGTH), LENGTH // 3
        assert self.decided(first), "an entropy is too near the threshold: choose another length"
        return [first, next(row for row in (first[:common] + other[common:] for other in others) if self.decided(row))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Saved]:
    def save(seed: int) -> Saved:
        return Saved(tiny_models.save_model(tiny_oracle(seed), tmp_path_factory.mktemp("model") / "checkpoint"), seed)

    return functools.cache(save)


def oracle_starts(rule: PatchingRule) -> Starts:
    def starts(logits: Tensor, ids: Tensor) -> Tensor:
        entropies = patching_oracle.entropies(logits[0].numpy())
        return torch.from_numpy(patching_oracle.patch_starts(rule, entropies, ids.numpy()))

    return starts


def operator_starts(rule: PatchingRule) -> Starts:
    return PatchStarts(rule).of_exact


def run(forward: Forward, texts: Sequence[Sequence[int]], starts: Starts) -> list[NDArray[np.float32]]:
    with torch.inference_mode():
        return [logits[0].numpy() for logits in forward.run([torch.tensor(text) for text in texts], starts)]


def check(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, IN_THE_SUITE))
def test_forward_is_that_of_transformers(saved: Callable[[int], Saved], seed: int) -> None:
    """Rows whose patches lie differently are each computed as if they were alone."""
    model = saved(seed)
    rows = model.rows()
    expected = [model.reference.row(np.array(row)).logits for row in rows]
    logits = run(model.forward(), rows, oracle_starts(model.checkpoint.config.patching))
    for row in range(len(rows)):
        check(logits[row], expected[row])


def test_seeds_have_every_feature() -> None:
    seen = [tiny_models.features(tiny_models.random_config(seed)) for seed in IN_THE_SUITE]
    assert [name for name in seen[0] if not any(features[name] for features in seen)] == []


@pytest.mark.parametrize("seed", [2, 10, 46])
def test_the_operators_patches_give_the_same(saved: Callable[[int], Saved], seed: int) -> None:
    model, patching = saved(seed), saved(seed).checkpoint.config.patching
    logits = [
        run(model.forward(), model.rows(), starts) for starts in (oracle_starts(patching), operator_starts(patching))
    ]
    np.testing.assert_array_equal(logits[0], logits[1])


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_short_rows(saved: Callable[[int], Saved], length: int) -> None:
    model = saved(2)
    ids = model.rows()[0][:length]
    logits = run(model.forward(), [ids], oracle_starts(model.checkpoint.config.patching))
    check(logits[0], model.reference.row(np.array(ids)).logits)


@pytest.mark.parametrize("rule", test_exactness.RULES.values(), ids=test_exactness.RULES)
def test_rules_that_transformers_lacks(saved: Callable[[int], Saved], rule: Rule) -> None:
    """Its forward takes patch lengths, so the rest of the model can be compared under any rule."""
    model = saved(32)
    oracle, ids = model.reference.model, model.rows()[0]
    entropies = tiny_models.reference_entropies(oracle, ids).numpy()
    patching = PatchingRule(rule, *test_exactness.thresholds(rule, entropies), max_patch_length=5)
    starts = patching_oracle.patch_starts(patching, entropies, ids)
    assert len(ids) / 10 < np.count_nonzero(starts) < 0.7 * len(ids)
    check(run(model.forward(), [ids], operator_starts(patching))[0], test_exactness.forward(oracle, ids, starts))


@pytest.mark.parametrize("maximum", [None, 3, 7])
@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name)
def test_patch_starts_are_the_oracles(rule: Rule, maximum: int | None) -> None:
    rng = np.random.default_rng(int(rule))
    logits = rng.standard_normal((3, 200, 260), np.float32) * rng.uniform(0, 4, (3, 200, 1)).astype(np.float32)
    ids = np.array([tiny_models.random_ids(seed, 200) for seed in range(3)])
    entropies = np.stack([patching_oracle.entropies(row) for row in logits])
    patching = PatchingRule(rule, *thresholds(rule, entropies), max_patch_length=maximum, patch_size=4)
    expected = np.stack([patching_oracle.patch_starts(patching, *row) for row in zip(entropies, ids, strict=True)])
    operator = PatchStarts(patching)
    for row in range(3):
        starts = operator(torch.from_numpy(logits[row]), torch.from_numpy(ids[row]))
        assert starts.dtype == torch.bool
        np.testing.assert_array_equal(starts.numpy(), expected[row])
    assert rule is Rule.BYTE or not expected.all()


def thresholds(rule: Rule, entropies: NDArray[Any]) -> tuple[float, float]:
    """Away from every entropy and every rise, none of which spans two rows."""
    if rule is Rule.MONOTONIC:
        return gap(np.diff(entropies)), 0.0
    return gap(entropies), gap(np.diff(entropies))


def gap(values: NDArray[Any]) -> float:
    """The middle of the widest gap among the values of middling size."""
    ordered = np.sort(values, axis=None)
    middle = ordered[len(ordered) // 3 : 2 * len(ordered) // 3]
    widest = int(np.diff(middle).argmax())
    assert middle[widest + 1] - middle[widest] > 4 * ENTROPY_TOLERANCE
    return float(middle[widest] + middle[widest + 1]) / 2
