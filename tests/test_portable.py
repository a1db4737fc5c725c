"""Without the native library: a position has the same bits in any company, so that drafts change no text."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from conftest import Exported
from edgeblt.decoding.speculation import AUTO, NONE
from edgeblt.export.export_bundle import export_bundle
from edgeblt.model import Model, load
from edgeblt.names import Name
from edgeblt.runtime.session import ROLLBACK_BYTES, Session
from edgeblt.runtime.stage import StageRunner
from sampled import mostly_slow
from tiny_models import BLT_DRAFTS

LENGTH = 300  # ids: windowed caches move their content twice
ONE_OPERATOR = 24  # a seed whose layers are one operator each where they are int8 or int4
FORMATS = {
    "fp32": 'format = "fp32"',
    "int8": 'format = "int8"',
    "int4": 'format = "int4"',
    "int4, large blocks": 'format = "int4"\nblock_size = 128\nsymmetric = true',
    "nf4": 'format = "nf4"',
    "2:4": 'format = "int8"\nsymmetric = true\nsparsity = "2:4"\npruning = "magnitude"\nmethod = "nearest"',
    "50%": 'format = "int4"\nsymmetric = true\nsparsity = "50%"\npruning = "magnitude"\nmethod = "nearest"',
}


@pytest.fixture(autouse=True)
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeblt.runtime.native.register", lambda options: "the portable bodies are wanted")


def quantized(exported: Exported, format: str, root: Path) -> Model:
    recipe = "".join(f"[{stage}]\n{FORMATS[format]}\n" for stage in ("patcher", "encoder", "global", "decoder"))
    (root / "recipe.toml").write_text(recipe)
    return load(export_bundle(exported.checkpoint, root / "bundle", root / "recipe.toml").path)


Results = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]


def results(session: Session, ids: list[int], sizes: Iterator[int]) -> Results:
    """Logits, entropies and patch starts of ids that come in chunks of `sizes`, some of them twice."""
    vocab = session.config.vocab_size
    found = np.empty((len(ids), vocab), np.float32), np.empty(len(ids), np.float32), np.empty(len(ids), np.bool_)
    for size in sizes:
        if session.position == len(ids):
            break
        for chunk in session.run(ids[session.position : session.position + size]):
            rows = slice(chunk.position, chunk.position + len(chunk.logits))
            for array, part in zip(found, chunk[1:], strict=True):
                array[rows] = part
        if size % 3 == 2:
            session.rollback(session.position - min(size // 2, ROLLBACK_BYTES))
    return found


def endless(size: int) -> Iterator[int]:
    while True:
        yield size


def random_sizes(seed: int, largest: int) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        yield rng.randint(1, largest)


@pytest.mark.parametrize(
    ("seed", "format"),
    mostly_slow(
        [
            *((10, format) for format in FORMATS),
            *((ONE_OPERATOR, format) for format in ("fp32", "int8", "int4, large blocks")),
        ],
        keep=[
            *((10, format) for format in ("int4", "2:4")),
            *((ONE_OPERATOR, format) for format in ("fp32", "int8", "int4, large blocks")),
        ],
    ),
)
def test_chunks_change_no_bit(seed: int, format: str, exported: Callable[[int], Exported], tmp_path: Path) -> None:
    model, ids = quantized(exported(seed), format, tmp_path), tiny_models.random_ids(seed, LENGTH)
    expected = results(model.session(), ids, endless(LENGTH))
    for sizes in (endless(1), random_sizes(seed, 17), random_sizes(seed, 170)):
        for found, whole in zip(results(model.session(), ids, sizes), expected, strict=True):
            assert found.tobytes() == whole.tobytes()
    assert model.is_exact


@pytest.mark.parametrize("format", ["fp32", "int8", "int4"])
def test_drafts_change_no_text(format: str, exported: Callable[[int], Exported], tmp_path: Path) -> None:
    model = quantized(exported(10), format, tmp_path)
    for seed in range(4):
        prompt = bytes(id - 4 for id in tiny_models.random_ids(seed, 100)[1:])
        temperature = 0.0 if seed % 2 else 1.0
        expected = model.generate(prompt, 60, temperature, seed=seed, draft=NONE)
        assert {model.generate(prompt, 60, temperature, seed=seed, draft=Name(draft)) for draft in BLT_DRAFTS} == {
            expected
        }


@pytest.mark.parametrize("stage", ["patcher", "decoder"])
def test_auto_does_not_draft_where_rows_depend_on_their_company(
    stage: str, exported: Callable[[int], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that computes a single position in another order of additions."""
    run, result = StageRunner.run, {"patcher": "entropies", "decoder": "logits"}[stage]

    def run_otherwise(self: StageRunner, inputs: Any, outputs: Any, positions: int, patches: int) -> None:
        run(self, inputs, outputs, positions, patches)
        if self.name == stage and positions == 1:
            outputs[result] *= np.float32(1 + 2**-22)

    model = load(exported(10).bundle)
    assert model.is_exact and model.draft_statistics(AUTO).names
    monkeypatch.setattr(StageRunner, "run", run_otherwise)
    model = load(exported(10).bundle)
    assert not model.is_exact
    assert model.draft_statistics(AUTO).names == ()
    assert model.draft_statistics("ngram").names == ("ngram",)
