"""MambaBytes in common steps: each sequence has the bits that it has alone, whatever is rolled back or cut short."""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgeblt
from batch_mixes import run_mix, run_text_mix
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.mambabyte import form
from edgeblt.ids import BOS, encode
from edgeblt.model import Model
from edgeblt.runtime.batch.stepper import BatchSequence, StepPart, Stepper, room
from edgeblt.runtime.recurrent.stepper import RecurrentStepper
from mambabyte_models import random_mambabyte
from sampled import mostly_slow
from test_native import needs_library

MEMORY = 1 << 28
CASES = ("int8-4", "fp32-6")  # recipe, seed of the model
PROMPTS = [b"Once upon a time", b"a", b"x" * 300, b"\x00\xff", b"the end of the " * 12]
IDS = np.array([BOS, *encode(np.random.default_rng(3).integers(0, 256, 700).astype(np.uint8).tobytes())])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    root, made = tmp_path_factory.mktemp("recurrent"), dict[str, Model]()

    def model(case: str) -> Model:
        if case not in made:
            recipe, _, seed = case.partition("-")
            checkpoint = random_mambabyte(root / case / "checkpoint", int(seed))
            made[case] = edgeblt.load(export_bundle(checkpoint, root / case / "bundle", edgeblt.Name(recipe)).path)
        return made[case]

    return model


@pytest.fixture
def model(models: Callable[[str], Model]) -> Model:
    return models(CASES[0])


def stepper_of(model: Model, most: int = 6, memory: int = MEMORY) -> RecurrentStepper:
    stepper = model._stepper(most, memory)
    assert isinstance(stepper, RecurrentStepper)
    return stepper


def opened(stepper: Stepper) -> BatchSequence:
    sequence = stepper.open(1)
    assert sequence
    return sequence


def read_to(stepper: Stepper, sequence: BatchSequence, end: int) -> NDArray[np.float32]:
    """Read `IDS` up to there; the last logits."""
    logits = np.empty(0, np.float32)
    while (position := sequence.position) < end:
        (result,) = stepper.run([StepPart(sequence, IDS[position : min(position + room(position), end)])])
        assert not isinstance(result, EdgebltError)
        logits = result.logits[-1].copy()
    return logits


@needs_library
@pytest.mark.parametrize(
    ("case", "seed"), mostly_slow(itertools.product(CASES, range(40)), [(case, 0) for case in CASES])
)
def test_mixes(models: Callable[[str], Model], case: str, seed: int) -> None:
    run_mix(models(case), stepper_of(models(case)), seed, 30, is_exact=True)
    tally = run_text_mix(models(case), stepper_of(models(case)), seed, 25, is_exact=True)
    assert 0 < tally.accepted < tally.drafted, "some drafts were right, and others were taken back"


@needs_library
def test_a_batch_generates_and_scores_what_each_text_gives_alone(model: Model) -> None:
    alone = [model.generate(prompt, 60, draft="none") for prompt in PROMPTS]
    for most in (2, 16):
        assert model.generate_batch(PROMPTS, max_new_bytes=60, most_sequences=most) == alone
    for found, prompt in zip(model.score_batch([b"", *PROMPTS])[1:], PROMPTS, strict=True):
        assert found.logprobs.tobytes() == model.score(prompt).logprobs.tobytes()
    needed = stepper_of(model)._sequence_bytes
    assert model.generate_batch(PROMPTS, max_new_bytes=60, memory=int(2.5 * needed)) == alone
    with pytest.raises(EdgebltError, match="prompt 0: the state of one text takes more than the memory allowed"):
        model.generate_batch(PROMPTS, max_new_bytes=10, memory=1000)


@needs_library
def test_copies_of_states_start_sequences_and_sessions(model: Model) -> None:
    stepper, expected = stepper_of(model), model.session().feed(IDS)[-1]
    for end, back in ((1, 0), (2, 1), (100, 3), (128, 60), (300, 0), (690, 32)):
        first = opened(stepper)
        read_to(stepper, first, end)
        first.rollback(end - back)
        snapshot, fork = first.snapshot(), first.fork()
        other, session = stepper.open(len(IDS), snapshot), model.session()
        session.start_from(snapshot)
        assert fork and other and other.position == fork.position == session.position == end - back
        for sequence in (first, fork, other):
            assert read_to(stepper, sequence, len(IDS)).tobytes() == expected.tobytes()
            sequence.close()
        assert session.feed(IDS[end - back :])[-1].tobytes() == expected.tobytes()
    assert stepper.state_bytes == 0


@needs_library
def test_wrong_drafts_make_no_step_longer(model: Model) -> None:
    stepper, expected = stepper_of(model), model.session().feed(IDS)
    sequence, position = opened(stepper), 1
    read_to(stepper, sequence, position)
    while position < 400:
        before = stepper.work["mamba"].positions
        (result,) = stepper.run([StepPart(sequence, IDS[position : position + min(9, room(position))])])
        assert not isinstance(result, EdgebltError)
        assert result.logits.tobytes() == expected[position : position + len(result.logits)].tobytes()
        assert stepper.work["mamba"].positions - before <= 9 + 3
        position = min(position + 4, sequence.position)
        sequence.rollback(position)


@needs_library
@pytest.mark.parametrize("error", [KeyboardInterrupt, EdgebltError])
def test_a_step_that_is_cut_short_changes_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Cut short when its states are written already."""
    stepper, expected = stepper_of(model), model.session().feed(IDS)
    sequences = [opened(stepper) for _ in range(3)]
    for sequence, end in zip(sequences, (0, 40, 200), strict=True):
        read_to(stepper, sequence, end)
    sequences[1].rollback(30)
    run, calls = stepper._runner._runner.run, itertools.count()

    def failing(*arguments: Any) -> None:
        run(*arguments)
        if next(calls) % 5 < 4:
            raise error("cut short")

    monkeypatch.setattr(stepper._runner._runner, "run", failing)
    for _ in range(6):
        before = [sequence.position for sequence in sequences]
        parts = [StepPart(each, IDS[each.position :][: 1 + 3 * number]) for number, each in enumerate(sequences)]
        try:
            results = stepper.run(parts)
        except KeyboardInterrupt:
            assert [sequence.position for sequence in sequences] == before
            continue
        for sequence, result, position in zip(sequences, results, before, strict=True):
            if isinstance(result, EdgebltError):
                assert sequence.position == position
            else:
                assert sequence.position == position + len(result.logits)
    for sequence in sequences:
        sequence.rollback(max(sequence.position - 2, 0))
        with contextlib.suppress(KeyboardInterrupt, EdgebltError):
            sequence.snapshot()
    monkeypatch.undo()
    for sequence in sequences:
        assert read_to(stepper, sequence, 400).tobytes() == expected[399].tobytes()


@needs_library
def test_an_id_that_is_no_byte_is_its_own_texts_error(model: Model) -> None:
    stepper = stepper_of(model)
    parts = [StepPart(opened(stepper), np.array(ids)) for ids in ([BOS, 100], [BOS, 100, BOS], [BOS])]
    found, refused, begun = stepper.run(parts)
    assert "id 1 is no byte" in str(refused) and [part.sequence.position for part in parts] == [2, 0, 1]
    assert not isinstance(found, EdgebltError) and not isinstance(begun, EdgebltError)
    assert found.logits.tobytes() == model.session().feed([BOS, 100]).tobytes()
    assert begun.logits.tobytes() == model.session().feed([BOS]).tobytes()


def test_bundles_of_before_run_one_text_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, parse = random_mambabyte(tmp_path / "checkpoint", 4), form.parse_mambabyte
    monkeypatch.setattr(
        form, "parse_mambabyte", lambda *given: (replace(parse(*given)[0], has_slots=False), *parse(*given)[1:])
    )
    earlier = export_bundle(checkpoint, tmp_path / "earlier").path
    monkeypatch.undo()
    assert "has_slots" not in (earlier / "bundle.json").read_text()
    with edgeblt.load(earlier) as old, edgeblt.load(export_bundle(checkpoint, tmp_path / "now").path) as new:
        assert old.session().feed(IDS).tobytes() == new.session().feed(IDS).tobytes()
        assert old.generate_batch(PROMPTS[:2], max_new_bytes=9) == new.generate_batch(PROMPTS[:2], max_new_bytes=9)
        with old.engine() as engine:
            assert not engine.is_batched
