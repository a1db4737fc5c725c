"""Tiny random models exported once a test run, and texts whose reference results every session must reproduce."""

import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray

import cuda_stand_in
import tiny_models
from edgeblt.bundle.config import PatchingRule
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.model import Model, load
from edgeblt.runtime import native
from edgeblt.runtime.session import Session
from float64_oracle import Doubles, Float64Oracle, bound

LONGEST = 400  # ids in every text: over 16 windows, and more than any windowed cache holds
TOLERANCE = 1e-5  # share of the largest reference logit, between two float32 computations; 1e-4 is promised
ENTROPY_TOLERANCE = 1e-5  # nats, between two float32 computations of a small model
PROMISED = 1e-4  # share of the largest logit

if native.library_path() is None:
    os.environ.setdefault(native.VARIABLE, "0")  # or every command would say so


# The duration of an example means nothing on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@dataclass(frozen=True)
class Text:
    """Ids, what transformers makes of all of them at once in float64, and how far float32 may be from it."""

    ids: NDArray[np.int64]  # [T], BOS first
    logits: Doubles  # [T, vocab]
    entropies: Doubles  # [T] nats; 0 where the model has no patcher
    patch_starts: NDArray[np.bool_]  # [T]: whether the id after each id starts a patch
    logit_bound: float
    entropy_bound: float

    @classmethod
    def of(
        cls, exact: Float64Oracle, ids: Sequence[int], logits: NDArray[np.float32], starts: NDArray[np.bool_] | None
    ) -> "Text":
        """`logits` are transformers' in float32; `starts` are given where its own rule shall not decide."""
        expected, decided = exact.logits(ids, starts)
        if exact.model.model.patcher is None:
            return cls(np.array(ids), expected, np.zeros(len(ids)), decided, bound(expected, logits), 0.0)
        entropies = exact.entropies(ids)
        entropy_bound = bound(entropies, tiny_models.reference_entropies(exact.original, ids).numpy())
        return cls(np.array(ids), expected, entropies, decided, bound(expected, logits), entropy_bound)

    def without_entropies(self) -> "Text":
        return dataclasses.replace(self, entropies=np.zeros(len(self.ids)), entropy_bound=0.0)

    def feed(self, session: Session, end: int) -> None:
        """Feed the ids up to position `end`: every result must be the reference's."""
        for chunk in session.run(self.ids[session.position : end]):
            rows = slice(chunk.position, chunk.position + len(chunk.logits))
            self.check(rows, chunk.logits)
            np.testing.assert_array_equal(chunk.patch_starts, self.patch_starts[rows], err_msg=f"rows {rows}")
            np.testing.assert_allclose(chunk.entropies, self.entropies[rows], rtol=0, atol=self.entropy_bound)
        assert session.position == end
        assert session.patch_count == np.count_nonzero(self.patch_starts[:end])

    def check(self, rows: slice, logits: NDArray[np.float32]) -> None:
        assert self.logit_bound < PROMISED * float(np.abs(self.logits).max())
        np.testing.assert_allclose(logits, self.logits[rows], rtol=0, atol=self.logit_bound, err_msg=f"rows {rows}")


@dataclass(frozen=True)
class Exported:
    """A tiny model as a checkpoint in transformers' form and as a bundle."""

    checkpoint: Path
    bundle: Path

    @functools.cached_property
    def model(self) -> Model:
        return load(self.bundle)

    @functools.cached_property
    def reference(self) -> TransformersReference:
        return TransformersReference(self.checkpoint)

    @functools.cached_property
    def exact(self) -> Float64Oracle:
        return Float64Oracle(self.reference.model)

    def with_rule(self, patching: PatchingRule, bundle: Path) -> Model:
        """The same weights under another patching rule."""
        checkpoint = open_checkpoint(self.checkpoint)
        patcher = checkpoint.config.patcher if patching.rule.needs_entropies else None
        checkpoint.config = dataclasses.replace(checkpoint.config, patching=patching, patcher=patcher)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgeblt.export.export_bundle.open_checkpoint", lambda *_: checkpoint)
            return load(export_bundle(self.checkpoint, bundle).path)

    def decided(self, text: Text) -> bool:
        """Whether no entropy is so near the threshold that rounding may decide about a patch, here or there."""
        if self.model.config.patcher is None:
            return True
        distance = np.abs(text.entropies[1:] - self.model.config.patching.threshold).min()  # the first decides nothing
        return bool(distance > 2 * text.entropy_bound)

    def maybe_text(self, ids: Sequence[int]) -> Text | None:
        """None where rounding may decide about a patch."""
        text = Text.of(self.exact, ids, self.reference.row(np.array(ids)).logits, None)
        if self.model.config.patcher is None:  # the reference may have one that it does not ask
            text = text.without_entropies()
        return text if self.decided(text) else None

    def text(self, ids: Sequence[int]) -> Text:
        text = self.maybe_text(ids)
        assert text, "an entropy is too near the threshold: choose other ids"
        return text

    def texts(self, seed: int, common: int) -> tuple[Text, Text]:
        """Two texts of `LONGEST` ids whose first `common` ids are the same."""
        first = tiny_models.random_ids(seed, LONGEST)
        others = (first[:common] + tiny_models.random_ids(other, LONGEST)[common:] for other in range(1000, 1100))
        return self.text(first), next(filter(None, map(self.maybe_text, others)))


def tiny_oracle(seed: int) -> Any:  # a BltForCausalLM, whose own types are of no help
    """The model of configuration `seed`, its threshold away from the entropies of `random_ids(seed, LONGEST)`."""
    oracle = tiny_models.random_model(tiny_models.random_config(seed), seed)
    tiny_models.separate_threshold(oracle, tiny_models.random_ids(seed, LONGEST))
    return oracle


def export_oracle(oracle: Any, root: Path) -> Exported:
    checkpoint = tiny_models.save_model(oracle, root / "checkpoint")
    return Exported(checkpoint, export_bundle(checkpoint, root / "bundle").path)


@pytest.fixture
def products_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles exported and opened meanwhile round no inputs of their int8 and int4 products."""
    monkeypatch.setattr("edgeblt.export.operators.matmuls.INT8_ACTIVATIONS", 1)  # accuracy_level 1: float32
    monkeypatch.setattr("edgeblt.runtime.native.register", lambda options: "the portable bodies are wanted")
    monkeypatch.setattr(
        "edgeblt.bundle.manifest.check_graph", lambda *arguments, **options: None
    )  # it knows the real bodies


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # models this small only get slower with more


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Exported]:
    """By seed: that configuration of `tiny_models`, exported when it is first asked for."""
    return functools.cache(lambda seed: export_oracle(tiny_oracle(seed), tmp_path_factory.mktemp(f"model{seed}-")))


@pytest.fixture(scope="session")
def tiny_bundle(exported: Callable[[int], Exported]) -> tuple[Path, Path]:
    """A small fp32 model: (checkpoint, bundle). Read them only; copy what a test changes."""
    return exported(10).checkpoint, exported(10).bundle


def default_signals() -> None:
    """For `preexec_fn`: tests run in the background, or without a terminal, hand on that these are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> cuda_stand_in.StandIn:
    """CUDA's libraries without a GPU; see there what that can prove."""
    if reason := cuda_stand_in.unusable():
        pytest.skip(reason)
    return cuda_stand_in.build(tmp_path_factory.mktemp("cuda_stand_in"))
