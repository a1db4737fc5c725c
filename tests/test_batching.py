"""Texts in a batch get what they get alone, whoever comes and goes beside them."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from batch_mixes import run_mix, run_text_mix
from conftest import Exported
from edgeblt.batching.engine import EngineCounts
from edgeblt.batching.scheduler import Scheduler
from edgeblt.batching.settings import completed_settings
from edgeblt.batching.text import BatchEnd, BatchPiece, BatchText, Recorded
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.decoding.constraints import Constraint
from edgeblt.decoding.details import ByteDetails
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import encode
from edgeblt.model import Model, load
from edgeblt.runtime import native
from edgeblt.runtime.batch.stepper import BatchSequence, StepPart, Stepper, StepResult, room
from overencoded_models import overencoded_document, write_overencoded
from sampled import mostly_slow
from tiny_bundles import RECIPES, whole_layers

MEMORY = 1 << 28
CASES = (
    "int8-layers", "int4-layers", "fp32-10", "int8-2", "int4-7", "fp32-monotonic", "compact-layers", "half-7",
    "int8-overencoded", "fp32-overencoded", "compact-overencoded",
)  # fmt: skip
of_each_architecture = pytest.mark.parametrize("case", ["int8-layers", "int8-overencoded"])
OVERENCODED = overencoded_document(1) | {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_future_heads": 2,
}  # fmt: skip
PROMPTS = [b"Once upon a time", b"", b"x" * 300, "Grüße an alle".encode(), b"\x00\xff", b"the end of the " * 12]


@pytest.fixture(scope="session")
def batch_models(
    tmp_path_factory: pytest.TempPathFactory, exported: Callable[[int], Exported]
) -> Callable[[str], Model]:
    root, made = tmp_path_factory.mktemp("batches"), dict[str, Model]()

    def model(case: str) -> Model:
        if case not in made:
            made[case] = _made(case, root / case, exported)
        return made[case]

    return model


def _made(case: str, root: Path, exported: Callable[[int], Exported]) -> Model:
    recipe, _, which = case.partition("-")
    if which == "monotonic":
        return exported(10).with_rule(PatchingRule(Rule.MONOTONIC, 0.1, max_patch_length=4), root)
    root.mkdir()
    checkpoint = root / "checkpoint"
    if which == "overencoded":
        write_overencoded(checkpoint, OVERENCODED, 1)
    else:
        config = whole_layers() if which == "layers" else tiny_models.random_config(int(which))
        oracle = tiny_models.random_model(config, 3 if which == "layers" else int(which))
        tiny_models.separate_threshold(oracle, tiny_models.random_ids(5, 400))
        tiny_models.save_model(oracle, checkpoint)
    weights = {"compact": "int8", "half": "int4"}.get(recipe, recipe)
    kv_cache = {"compact": 'kv_cache = "int8"\n', "half": 'kv_cache = "fp16"\n'}.get(recipe, "")
    (root / "recipe.toml").write_text(kv_cache + RECIPES[weights])
    return load(export_bundle(checkpoint, root / "bundle", root / "recipe.toml").path)


def is_exact(model: Model) -> bool:
    return model.bundle.manifest.recipe != "fp32" and native.library_path() is not None


def stepper_of(model: Model, most: int = 6, memory: int = MEMORY) -> Stepper:
    return model._stepper(most, memory)


@pytest.mark.parametrize(
    ("case", "seed"),
    mostly_slow(itertools.product(CASES, range(2)), [(case, number % 2) for number, case in enumerate(CASES)]),
)
def test_mixes(batch_models: Callable[[str], Model], case: str, seed: int) -> None:
    model = batch_models(case)
    run_mix(model, stepper_of(model), seed, 25, "fp32" not in case and is_exact(model))


@pytest.mark.parametrize("case", CASES)
def test_texts_with_drafts_get_what_each_gets_alone(batch_models: Callable[[str], Model], case: str) -> None:
    model = batch_models(case)
    tally = run_text_mix(model, stepper_of(model), 7, 25, "fp32" not in case and is_exact(model))
    assert 0 < tally.accepted < tally.drafted, "some drafts were right, and others were taken back"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_many_mixes(batch_models: Callable[[str], Model], seed: int) -> None:
    case = CASES[seed % len(CASES)]
    model = batch_models(case)
    has_bits = "fp32" not in case and is_exact(model)
    run_mix(model, stepper_of(model, most=2 + seed % 9), 1000 + seed, 60, has_bits)
    run_text_mix(model, stepper_of(model, most=2 + seed % 9), 1000 + seed, 25, has_bits)


@pytest.mark.parametrize("case", ["int8-layers", "fp32-10", "int8-overencoded"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3, "top_k": 40}])
def test_a_batch_generates_what_each_prompt_gives_alone(
    batch_models: Callable[[str], Model], case: str, sampling: dict[str, Any]
) -> None:
    model = batch_models(case)
    alone = [model.generate(prompt, 60, draft="none", **sampling) for prompt in PROMPTS]
    assert model.generate_batch(PROMPTS, max_new_bytes=60, **sampling) == alone
    assert model.generate_batch(PROMPTS, max_new_bytes=60, most_sequences=2, **sampling) == alone
    pieces: list[bytes] = [b""] * len(PROMPTS)
    for index, piece in model.stream_batch(PROMPTS, max_new_bytes=60, **sampling):
        pieces[index] += piece
    assert pieces == alone


@of_each_architecture
def test_a_batch_scores_as_each_text_alone(batch_models: Callable[[str], Model], case: str) -> None:
    model = batch_models(case)
    texts = [b"", b"a", b"some text " * 40, bytes(range(256)) * 2, *(b"short %d" % number for number in range(30))]
    for batched, text in zip(model.score_batch(texts), texts, strict=True):
        alone = model.score(text)
        np.testing.assert_array_equal(batched.patch_starts, alone.patch_starts)
        np.testing.assert_allclose(batched.logprobs, alone.logprobs, atol=0 if is_exact(model) else 1e-4)
        np.testing.assert_allclose(batched.entropies, alone.entropies, atol=0 if is_exact(model) else 1e-4)


def test_an_engine_answers_many_threads(batch_models: Callable[[str], Model]) -> None:
    model, found = batch_models("int8-layers"), dict[int, bytes]()
    alone = [model.generate(prompt, 40, draft="none") for prompt in PROMPTS]

    def ask(number: int) -> None:
        found[number] = engine.submit(PROMPTS[number % len(PROMPTS)], max_new_bytes=40)[0].read()

    with model.engine(most_sequences=4) as engine:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(3 * len(PROMPTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[number] for number in sorted(found)] == alone * 3


@of_each_architecture
def test_answers_to_one_prompt_share_its_state(batch_models: Callable[[str], Model], case: str) -> None:
    model = batch_models(case)
    settings: dict[str, Any] = {"temperature": 1.0, "max_new_bytes": 30}
    with model.engine() as engine:
        answers = [answer.read() for answer in engine.submit(PROMPTS[2], seed=5, answers=4, **settings)]
        few = engine.steps
    alone = [model.generate(PROMPTS[2], seed=seed, draft="none", **settings) for seed in range(5, 9)]
    assert answers == alone
    assert few <= 4 + 30  # the prompt was read once


def test_asyncio(batch_models: Callable[[str], Model]) -> None:
    model = batch_models("int8-layers")

    async def text(prompt: bytes) -> bytes:
        return b"".join([piece async for piece in engine.stream(prompt, max_new_bytes=40)])

    async def all_texts() -> list[bytes]:
        return list(await asyncio.gather(*map(text, PROMPTS)))

    with model.engine() as engine:
        assert asyncio.run(all_texts()) == [model.generate(prompt, 40, draft="none") for prompt in PROMPTS]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3, "stop": "e"}])
def test_details_are_those_of_a_text_alone(batch_models: Callable[[str], Model], sampling: dict[str, Any]) -> None:
    model = batch_models("int8-layers")
    tolerance = 0 if is_exact(model) else 1e-4

    async def read(prompt: bytes) -> list[ByteDetails]:
        answer = engine.stream(prompt, max_new_bytes=30, details=3, draft="none", **sampling)
        found: list[ByteDetails] = []
        async for piece in answer:
            assert b"".join(each.byte for each in answer.details) == piece
            found += answer.details
        return found

    async def read_all() -> list[list[ByteDetails]]:
        return await asyncio.gather(*map(read, PROMPTS))

    with model.engine() as engine:
        for prompt, found in zip(PROMPTS, asyncio.run(read_all()), strict=True):
            stream, alone = model.stream(prompt, 30, draft="none", details=3, **sampling), list[ByteDetails]()
            for _ in stream:
                alone += stream.details
            _assert_alike(found, alone, tolerance)


def test_details_of_forced_bytes(batch_models: Callable[[str], Model]) -> None:
    model = batch_models("int8-layers")
    settings: dict[str, Any] = {"utf8": True, "constraint": Constraint.regex("(forced|x) text [0-9]{3}")}
    stream, alone = model.stream(b"abc", draft="none", details=2, **settings), list[ByteDetails]()
    for _ in stream:
        alone += stream.details
    with model.engine() as engine:
        (answer,) = engine.submit(b"abc", details=2, draft="none", **settings)
        found = [each for _ in answer for each in answer.details]
    assert any(each.origin == "forced" for each in found)
    _assert_alike(found, alone, 0 if is_exact(model) else 1e-4)


@of_each_architecture
def test_details_of_a_prompt(batch_models: Callable[[str], Model], case: str) -> None:
    model = batch_models(case)
    for prompt in PROMPTS:
        scores, count = model.score(prompt), len(prompt)
        with model.engine() as engine:
            answers = engine.submit(prompt, details=1, echo=True, answers=2, max_new_bytes=3)
            next(iter(answers[0])), next(iter(answers[1]))
            found = answers[0].prompt_details
            assert found == answers[1].prompt_details
        assert b"".join(each.byte for each in found) == prompt and {each.origin for each in found} <= {"prompt"}
        assert [each.starts_patch for each in found] == scores.patch_starts.tolist()
        np.testing.assert_allclose([each.logprob for each in found], scores.logprobs, atol=1e-4)
        np.testing.assert_allclose([each.entropy for each in found], scores.entropies, atol=1e-4)
        assert all(len(each.alternatives) == 1 for each in found) and len(found) == count


@of_each_architecture
def test_details_of_a_prompt_that_is_read_again(
    batch_models: Callable[[str], Model], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = batch_models(case), itertools.count(1)
    stepper = stepper_of(model)
    monkeypatch.setattr(stepper, "fits", lambda parts: len(parts) == 1 or next(calls) % 3 != 0)
    scheduler, found = Scheduler(stepper), list[BatchPiece | BatchEnd]()
    settings = completed_settings(model.config, None, max_new_bytes=20)
    texts = [BatchText(prompt, settings, model.config.generation.ends, found.append, Recorded(0, True))
             for prompt in PROMPTS]  # fmt: skip
    for text in texts:
        scheduler.add(text)
    while not scheduler.is_idle:
        scheduler.step()
    assert scheduler.tally.prompt_bytes > sum(map(len, PROMPTS))
    for text, prompt in zip(texts, PROMPTS, strict=True):
        assert b"".join(each.byte for each in text.prompt_details) == prompt


def _assert_alike(found: list[ByteDetails], alone: list[ByteDetails], tolerance: float) -> None:
    assert [(each.byte, each.origin, each.starts_patch) for each in found] == [
        (each.byte, each.origin, each.starts_patch) for each in alone
    ]
    for one, other in zip(found, alone, strict=True):
        assert [byte for byte, _ in one.alternatives] == [byte for byte, _ in other.alternatives]
        np.testing.assert_allclose(_numbers(one), _numbers(other), rtol=0, atol=tolerance)


def _numbers(details: ByteDetails) -> list[float]:
    return [details.logprob, details.entropy, *(nats for _, nats in details.alternatives)]


@pytest.mark.parametrize("case", ["int8-layers", "fp32-10", "half-7", "compact-layers", "compact-overencoded"])
def test_texts_start_from_kept_states(batch_models: Callable[[str], Model], case: str) -> None:
    model = load(batch_models(case).bundle.path)
    beginning = bytes(id - 4 for id in tiny_models.random_ids(9, 1400) if 4 <= id < 260)[:700]
    prompts = [beginning + bytes([65 + number]) * 30 for number in range(4)]
    alone = [load(model.bundle.path, prefix_cache_bytes=0).generate(prompt, 40, draft="none") for prompt in prompts]
    with model.engine() as engine:
        found = [engine.submit(prompt, max_new_bytes=40)[0].read() for prompt in (*prompts, *prompts)]
        counts = engine.counts
    assert found == alone * 2
    assert counts.prefix_hits >= 6 and counts.prefix_hits + counts.prefix_misses == 8
    assert counts.prompt_bytes < 4 * len(prompts[0])
    assert model.prefix_cache.statistics.hits == counts.prefix_hits
    assert model.generate(prompts[1], 40, draft="none") == alone[1], "sessions start from the same states"
    assert model.prefix_cache.statistics.hits == counts.prefix_hits + 1


@pytest.mark.parametrize("case", CASES)
def test_a_copy_of_a_state_starts_sequences_and_sessions(batch_models: Callable[[str], Model], case: str) -> None:
    model, ids = batch_models(case), np.array([1, *tiny_models.random_ids(5, 599)], np.int64)
    stepper, expected = stepper_of(model), model.session().feed(ids)[-1]
    atol = 0.0 if is_exact(model) and "fp32" not in case else 1e-4 * float(np.abs(expected).max())
    first, earlier = stepper.open(1), None
    assert first
    for end in (1, 2, 100, 128, 129, 300, 512, 590):
        read_to(stepper, first, ids[:end])
        snapshot = earlier = first.snapshot(earlier)
        other, session = stepper.open(len(ids), snapshot), model.session()
        session.start_from(snapshot)
        assert other and other.position == session.position == end
        np.testing.assert_allclose(read_to(stepper, other, ids), expected, rtol=0, atol=atol)
        np.testing.assert_allclose(session.feed(ids[end:])[-1], expected, rtol=0, atol=atol)
        other.close()
    again = stepper.open(len(ids), session.snapshot())
    assert again and again.position == len(ids)
    again.rollback(len(ids) - 20)
    np.testing.assert_allclose(read_to(stepper, again, ids), expected, rtol=0, atol=atol)


def read_to(stepper: Stepper, sequence: BatchSequence, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the rest of `ids`; the last logits."""
    logits = np.empty(0, np.float32)
    while (position := sequence.position) < len(ids):
        (result,) = stepper.run([StepPart(sequence, ids[position : min(position + room(position), len(ids))])])
        assert not isinstance(result, EdgebltError)
        logits = result.logits[-1].copy()
    return logits


def test_counts_of_an_engine(batch_models: Callable[[str], Model]) -> None:
    with batch_models("int8-layers").engine(most_sequences=2) as engine:
        assert engine.counts == EngineCounts(*[0] * 11)
        answers = engine.submit(b"abc", max_new_bytes=10, ignore_eos=True, answers=3)
        for answer in answers:
            answer.read()
        counts = engine.counts
        assert (counts.waiting, counts.finished, counts.generated_bytes) == (0, 3, 30)
        assert counts.steps == engine.steps and counts.prompt_bytes in (3, 6)  # the third may have read it again
        assert counts.rows >= 30


def test_leaving_an_async_loop_cancels(batch_models: Callable[[str], Model]) -> None:
    model = batch_models("int8-layers")

    async def first_byte() -> bytes:
        stream = engine.stream(b"abc", max_new_bytes=1 << 30)
        piece = await anext(stream)
        await stream.aclose()
        return piece

    with model.engine(most_sequences=1) as engine:
        assert len(asyncio.run(first_byte())) == 1
        assert len(engine.submit(b"x", max_new_bytes=5)[0].read()) <= 5  # there is room again


class Listener:
    """Collects what a scheduler delivers for one text."""

    def __init__(self, model: Model, prompt: bytes, most: int, **sampling: Any) -> None:
        settings = completed_settings(model.config, None, max_new_bytes=most, **sampling)
        self.bytes = b""
        self.end: BatchEnd | None = None
        self.text = BatchText(prompt, settings, model.config.generation.ends, self.take)

    def take(self, piece: BatchPiece | BatchEnd) -> None:
        assert self.end is None, "something comes after the end"
        if isinstance(piece, BatchPiece):
            self.bytes += piece.data
        else:
            self.end = piece


def test_a_text_that_generates_takes_part_in_every_step_and_prompts_come_in_turn(
    batch_models: Callable[[str], Model],
) -> None:
    model = batch_models("int8-layers")
    scheduler = Scheduler(stepper_of(model, most=8))
    first = Listener(model, b"", 1 << 20)
    scheduler.add(first.text)
    scheduler.step()
    long, short = [Listener(model, b"y" * 1500, 3) for _ in range(3)], Listener(model, b"z" * 20, 1 << 20)
    for listener in (*long, short):
        scheduler.add(listener.text)
    for step in range(200):
        before = len(first.bytes)
        scheduler.step()
        assert first.end or len(first.bytes) == before + 1
        if step >= 2 * 4 and not short.end:
            assert short.bytes, "four texts read, so each has its turn within four steps"
    assert [listener.end for listener in long] == [BatchEnd("length")] * 3


@of_each_architecture
def test_cancelling_takes_effect_within_a_step(batch_models: Callable[[str], Model], case: str) -> None:
    model = batch_models(case)
    stepper = stepper_of(model)
    scheduler = Scheduler(stepper)
    listeners = [Listener(model, prompt, 1 << 20) for prompt in PROMPTS[:3]]
    for listener in listeners:
        scheduler.add(listener.text)
    for _ in range(8):
        scheduler.step()
    before = [listener.bytes for listener in listeners]
    listeners[1].text.is_cancelled = True
    scheduler.step()
    assert listeners[1].end == BatchEnd("cancelled") and listeners[1].bytes == before[1]
    for listener in listeners:
        listener.text.is_cancelled = True
    scheduler.step()
    assert scheduler.is_idle and stepper.state_bytes == 0


@pytest.mark.parametrize("case", ["fp32-10", "fp32-overencoded"])
def test_where_memory_ends_the_newest_waits_and_nothing_changes(
    batch_models: Callable[[str], Model], case: str
) -> None:
    model = batch_models(case)
    alone = [model.generate(b"prompt %d" % number, 120, draft="none") for number in range(5)]
    (needed,) = _states(model, 1)
    prompts = [b"prompt %d" % number for number in range(5)]
    for share in (1.05, 1.5, 2.5):
        assert model.generate_batch(prompts, max_new_bytes=120, memory=int(share * needed)) == alone


def _states(model: Model, count: int) -> list[int]:
    sizes = []
    for _ in range(count):
        stepper = stepper_of(model)
        scheduler, listener = Scheduler(stepper), Listener(model, b"prompt 0", 130)
        scheduler.add(listener.text)
        most = 0
        while not scheduler.is_idle:
            scheduler.step()
            most = max(most, stepper.state_bytes)
        sizes.append(most)
    return sizes


def test_a_text_too_long_for_the_memory_alone_is_an_error(batch_models: Callable[[str], Model]) -> None:
    model = batch_models("fp32-10")
    with pytest.raises(EdgebltError, match="prompt 0: the state of one text takes more than the memory allowed"):
        model.generate_batch([b"abc"], max_new_bytes=10, memory=1000)


def test_a_text_whose_logits_are_no_numbers_ends_alone(
    batch_models: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sick = batch_models("int8-layers"), PROMPTS[3]
    alone = [model.generate(prompt, 40, draft="none") for prompt in PROMPTS]
    stepper = stepper_of(model)
    run = stepper.run

    def with_nan(parts: Sequence[StepPart]) -> list[StepResult]:
        results = run(parts)
        for part, result in zip(parts, results, strict=True):
            assert not isinstance(result, EdgebltError)
            if part.sequence.position > 20 and part.sequence.ids[1:15].tolist() == encode(sick)[:14].tolist():
                result.logits[:] = np.nan
        return results

    monkeypatch.setattr(stepper, "run", with_nan)
    scheduler = Scheduler(stepper)
    listeners = [Listener(model, prompt, 40) for prompt in PROMPTS]
    for listener in listeners:
        scheduler.add(listener.text)
    while not scheduler.is_idle:
        scheduler.step()
    for prompt, listener, expected in zip(PROMPTS, listeners, alone, strict=True):
        assert listener.end
        if prompt == sick:
            assert listener.end.reason == "error" and "not numbers" in str(listener.end.error)
        else:
            assert listener.bytes == expected


@of_each_architecture
def test_joining_and_leaving_leaves_nothing(batch_models: Callable[[str], Model], case: str) -> None:
    model = batch_models(case)
    stepper = stepper_of(model, most=4)
    scheduler = Scheduler(stepper)
    for round in range(60):
        listeners = [Listener(model, b"ab" * (round % 7), 1 + round % 5) for _ in range(4)]
        for listener in listeners:
            scheduler.add(listener.text)
        while not scheduler.is_idle:
            scheduler.step()
        assert all(listener.end for listener in listeners)
        assert stepper.state_bytes == 0 and scheduler.active_count == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answers": 0}, "answers is 0; it must be at least 1"),
        ({"max_new_bytes": -1}, "max_new_bytes is -1; it must not be negative"),
        ({"temperature": -1}, "temperature is -1"),
        ({"prompt": 3}, "prompt is 3; it must be bytes or str"),
    ],
)
def test_wrong_arguments(batch_models: Callable[[str], Model], arguments: dict[str, Any], message: str) -> None:
    with batch_models("int8-layers").engine() as engine, pytest.raises(EdgebltError, match=message):
        engine.submit(**({"prompt": b"x"} | arguments))


def test_a_closed_engine_or_model_is_said(batch_models: Callable[[str], Model]) -> None:
    model = load(batch_models("int8-layers").bundle.path)
    engine = model.engine()
    (answer,) = engine.submit(b"abc", max_new_bytes=1 << 30)
    next(iter(answer))
    engine.close()
    assert answer.read() is not None and answer.end == BatchEnd("cancelled")
    with pytest.raises(EdgebltError, match="this engine was closed"):
        engine.submit(b"abc")
    with model.engine() as other:
        (answer,) = other.submit(b"abc", max_new_bytes=1 << 30)
        next(iter(answer))
        model.close()
        with pytest.raises(EdgebltError, match="this model was closed"):
            answer.read()
    with pytest.raises(EdgebltError, match="this model was closed"):
        model.generate_batch([b"abc"])


@pytest.mark.parametrize("case", CASES)
def test_steps_are_at_once_with_the_library(batch_models: Callable[[str], Model], case: str) -> None:
    assert stepper_of(batch_models(case)).is_batched == (native.library_path() is not None)


def test_a_batch_has_a_size(batch_models: Callable[[str], Model]) -> None:
    for count in (0, 1025, 2**63):
        with pytest.raises(EdgebltError, match=f"most_sequences is {count}; it must be at"):
            batch_models("int8-layers").engine(most_sequences=count)
