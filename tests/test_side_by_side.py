"""Stages side by side: the same bits as one after the other, and nothing left running, however a text ends."""

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from conftest import Exported
from edgeblt.bundle.contract import STAGES, StageName
from edgeblt.errors import EdgebltError
from edgeblt.model import Model, load
from edgeblt.runtime import side_by_side
from edgeblt.runtime.buffers import Chunk
from edgeblt.runtime.opened_graphs import CHUNK_BYTES
from edgeblt.runtime.session import Session
from edgeblt.runtime.side_by_side import AT_ONCE, Line, SideBySide
from edgeblt.runtime.stage import StageRunner

WINDOWS, NO_WINDOWS = 2, 42  # seeds: windows everywhere and a maximum patch length; none of these
LENGTH = 900


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "edgeblt stages"]


def all_ended() -> bool:
    """A thread that Ctrl-C met as it was started ends by itself, without any step."""
    for _ in range(1000):
        if not helpers():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert all_ended()


@pytest.fixture(scope="module", params=[WINDOWS, NO_WINDOWS], ids=["windows", "no windows"])
def models(request: pytest.FixtureRequest, exported: Callable[[int], Exported]) -> tuple[Model, Model]:
    """One model opened for one thread, where stages run one after the other, and for two."""
    bundle: Path = exported(request.param).bundle
    return load(bundle, threads=1), load(bundle, threads=2)


@pytest.fixture(scope="module")
def ids() -> NDArray[np.int64]:
    return np.array(tiny_models.random_ids(7, LENGTH))


def results(session: Session, ids: NDArray[np.int64]) -> list[bytes]:
    """Logits, entropies and patch starts of each id."""
    return [
        row.tobytes() + entropy.tobytes() + bytes([int(start)])
        for chunk in session.run(ids)
        for row, entropy, start in zip(chunk.logits, chunk.entropies, chunk.patch_starts, strict=True)
    ]


def test_which_models_work_so(models: tuple[Model, Model], ids: NDArray[np.int64]) -> None:
    one, two = models
    assert [len(list(model.session()._graphs.spans(LENGTH))) for model in models] == [-(-LENGTH // CHUNK_BYTES), 1]
    assert len(list(two.session()._graphs.spans(CHUNK_BYTES))) == 1
    assert not one.session()._graphs.are_side_by_side


def test_the_same_bits(models: tuple[Model, Model], ids: NDArray[np.int64]) -> None:
    """Whatever comes before and after, and with ids that the patcher has read ahead, right and wrong ones."""
    one, two = models
    whole = results(one.session(), ids)
    assert results(two.session(), ids) == whole
    for seed in range(12):
        rng, session = random.Random(seed), two.session()
        while session.position < LENGTH:
            position = session.position
            if rng.random() < 0.4:
                session.rollback(max(position - rng.choice([3, 31, 150, 400]), 0))
                position = session.position
            if rng.random() < 0.4 and position < LENGTH - 40:
                guessed = ids[position : position + rng.choice([1, 9, 32])].copy()
                guessed[rng.randrange(len(guessed)) :] += rng.choice([0, 1])
                session.read_ahead(np.minimum(guessed, 259))
            end = min(position + rng.choice([1, 40, 257, 300, 700]), LENGTH)
            if rng.random() < 0.3:
                session = session.fork()
            assert results(session, ids[position:end]) == whole[position:end]
            assert session.patch_count == sum(row[-1] for row in whole[: session.position])


@pytest.mark.parametrize("ahead", [2, 3, 32])
def test_chunks_are_given_in_order_with_the_same_bits(
    models: tuple[Model, Model], ids: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    monkeypatch.setattr(side_by_side, "AHEAD", ahead)
    whole, found = results(models[0].session(), ids), list[bytes]()

    def take(chunk: Chunk) -> None:
        assert chunk.position == len(found)
        rows = zip(chunk.logits, chunk.entropies, chunk.patch_starts, strict=True)
        found.extend(row.tobytes() + entropy.tobytes() + bytes([int(start)]) for row, entropy, start in rows)

    for model in models:
        session = model.session()
        found.clear()
        session.read(ids[:700], take)
        session.read([], take)
        session.read(ids[700:], take)
        assert found == whole and session.position == LENGTH


def test_an_error_of_whoever_takes_the_chunks(models: tuple[Model, Model], ids: NDArray[np.int64]) -> None:
    for model in models:
        session = model.session()
        session.feed(ids[:10])

        def take(chunk: Chunk) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            session.read(ids[10:], take)
        assert session.position == 10
        assert results(session, ids[10:]) == results(models[0].session(), ids)[10:]


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_comes_at_its_own_position(
    models: tuple[Model, Model], ids: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch, stage: StageName
) -> None:
    """What precedes the chunk of the error is yielded; afterwards the text goes on."""
    run, whole = StageRunner.run, results(models[0].session(), ids)
    last = 2 * CHUNK_BYTES + 100  # id at which the stage fails
    most = sum(row[-1] for row in whole[:last]) if stage == "global" else last
    fails = True

    def failed(self: StageRunner, *arguments: Any) -> None:
        cache = session.state.caches.get(stage)
        if fails and self.name == stage and cache and cache.first + cache.length > most:
            raise EdgebltError("no more")
        run(self, *arguments)

    monkeypatch.setattr(StageRunner, "run", failed)
    for model in models:
        session, seen, fails = model.session(), 0, True
        with pytest.raises(EdgebltError, match="no more"):
            for chunk in session.run(ids):
                for row in chunk.logits:
                    assert row.tobytes() == whole[seen][: row.nbytes]
                    seen += 1
        fails = False
        assert session.position == seen == 2 * CHUNK_BYTES
        assert results(session, ids[seen:]) == whole[seen:]


def test_an_error_that_does_not_come_back(
    models: tuple[Model, Model], ids: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunks that are tried one by one then take the place of the span that failed."""
    _, two = models
    run, whole, fails = StageRunner.run, results(two.session(), ids), True

    def failed(self: StageRunner, *arguments: Any) -> None:
        nonlocal fails
        if fails:
            fails = False
            raise EdgebltError("no more")
        run(self, *arguments)

    monkeypatch.setattr(StageRunner, "run", failed)
    assert len(ids) % CHUNK_BYTES
    assert results(two.session(), ids) == whole and not fails


def test_feeding_is_all_or_nothing(
    models: tuple[Model, Model], ids: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, two = models
    session, run, count = two.session(), StageRunner.run, 0
    session.feed(ids[:30])

    def failed(self: StageRunner, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise MemoryError
        run(self, *arguments)

    monkeypatch.setattr(StageRunner, "run", failed)
    with pytest.raises(EdgebltError, match="not enough memory"):
        session.feed(ids[30:])
    assert session.position == 30
    assert session.feed(ids[30:]).tobytes() == two.session().feed(ids)[30:].tobytes()


@pytest.mark.parametrize("at", range(1, 24, 4))
def test_ctrl_c_while_stages_work(
    models: tuple[Model, Model], ids: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The signal comes as a stage begins its run: that run ends, and no other begins."""
    _, two = models
    session, run, count = two.session(), StageRunner.run, 0
    session.feed(ids[:10])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it

    def interrupting(self: StageRunner, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == at:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        run(self, *arguments)

    monkeypatch.setattr(StageRunner, "run", interrupting)
    try:
        with pytest.raises(KeyboardInterrupt):
            session.feed(ids[10:])
    finally:
        signal.signal(signal.SIGINT, before)
    runs = count
    assert all_ended() and count == runs and session.position == 10
    rest = session.feed(ids[10:])
    assert rest.tobytes() == two.session().feed(ids)[10:].tobytes()


def test_a_run_that_is_left(models: tuple[Model, Model], ids: NDArray[np.int64]) -> None:
    """Between two chunks nothing is at work, and the session may go back."""
    _, two = models
    session = two.session()
    for chunk in session.run(ids):
        assert not helpers()
        if chunk.position >= CHUNK_BYTES:
            break
    session.rollback(100)
    assert session.feed(ids[100:]).tobytes() == two.session().feed(ids)[100:].tobytes()


def test_a_model_is_closed_while_stages_work(
    exported: Callable[[int], Exported], ids: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run, count = load(exported(WINDOWS).bundle, threads=2), StageRunner.run, 0
    session = model.session()

    def closing(self: StageRunner, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 7:
            model.close()
        run(self, *arguments)

    monkeypatch.setattr(StageRunner, "run", closing)
    with pytest.raises(EdgebltError, match="this model was closed"):
        list(session.run(ids))
    assert not helpers()


def test_lines_keep_their_order_and_overlap() -> None:
    """Two steps wait for each other, so they must run at the same time; each line's own are in order."""
    together, seen = threading.Barrier(2, timeout=60), []

    def step(name: str) -> Callable[[int], None]:
        def run(number: int) -> None:
            together.wait()
            seen.append((name, number))

        return run

    lines = [Line(9, step(name), lambda _: True) for name in ("first", "second")]
    SideBySide([], lines).run()
    assert AT_ONCE == 2
    for name in ("first", "second"):
        assert [number for other, number in seen if other == name] == list(range(9))


def test_the_first_error_is_raised_and_ends_all() -> None:
    done = []

    def run(number: int) -> None:
        if number == 3:
            raise ValueError("three")
        done.append(number)

    with pytest.raises(ValueError, match="three"):
        SideBySide([], [Line(9, run, lambda _: True), Line(9, done.append, lambda step: step > 9)]).run()
    assert done == [0, 1, 2]
