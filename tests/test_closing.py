"""Closing a model: what it frees, and that nothing of it can be used afterwards."""

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

import edgeblt
from conftest import Exported
from edgeblt import EdgebltError
from edgeblt.bundle.contract import STAGES

CLOSED = "this model was closed; open its bundle again with edgeblt.load"


@pytest.fixture(scope="module")
def bundle(exported: Callable[[int], Exported]) -> Path:
    return exported(0).bundle


def uses(model: edgeblt.Model, session: edgeblt.Session) -> dict[str, Callable[[], object]]:
    return {
        "generate": lambda: model.generate(b"ab", 2),
        "stream": lambda: list(model.stream(b"ab", 2)),
        "score": lambda: model.score(b"ab"),
        "session": model.session,
        "graph": lambda: model.graph("encoder"),
        "enter": model.__enter__,
        "feed": lambda: session.feed([70]),
        "feed nothing": lambda: session.feed([]),
        "run": lambda: list(session.run([70])),
        "rollback": lambda: session.rollback(1),
        "fork": session.fork,
        "read_ahead": lambda: session.read_ahead([70]),
        "within_patch": lambda: session.within_patch().__enter__(),
    }


@pytest.mark.parametrize("shares", [False, True], ids=["its own graphs", "those of a copy"])
def test_no_use_after_closing(bundle: Path, shares: bool) -> None:
    model = edgeblt.load(bundle)
    session = model.session()
    session.feed([1, 70, 71])
    (copy.copy(model) if shares else model).close()
    model.close()
    for name, use in uses(model, session).items():
        with pytest.raises(EdgebltError) as raised:
            use()
        assert str(raised.value) == CLOSED, name
    assert session.position == 3 and session.ids.tolist() == [1, 70, 71]
    assert model.bundle.manifest.config == edgeblt.load(bundle).config


def test_a_context_manager_closes(bundle: Path) -> None:
    with edgeblt.load(bundle) as model:
        expected = model.score(b"some text").bits_per_byte
    with pytest.raises(EdgebltError, match="was closed"):
        model.score(b"some text")
    with pytest.raises(KeyError), edgeblt.load(bundle) as model:
        raise KeyError
    with pytest.raises(EdgebltError, match="was closed"):
        model.score(b"some text")
    again = pickle.loads(pickle.dumps(model))  # as its path
    assert again.score(b"some text").bits_per_byte == expected


def test_closing_frees_graphs_that_sessions_ran(bundle: Path) -> None:
    """Though the model and its sessions are still referred to."""
    model = edgeblt.load(bundle)
    session = model.session()
    session.feed(range(4, 104))  # in runs on many positions
    session.feed([70])
    graphs = [weakref.ref(model.graph(stage)) for stage in STAGES]
    assert all(graph() for graph in graphs)
    model.close()
    gc.collect()
    assert [graph() for graph in graphs] == [None] * len(STAGES)


def test_closing_while_another_thread_generates(bundle: Path) -> None:
    """The other thread's run ends; its next one raises."""
    model = edgeblt.load(bundle)
    begun, said = threading.Event(), list[str]()

    def generate() -> None:
        try:
            session = model.session()
            while True:
                session.feed([70])
                begun.set()
                if session.position == 100:
                    session.rollback(1)
        except EdgebltError as error:
            said.append(str(error))

    threads = [threading.Thread(target=generate) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    model.close()
    for thread in threads:
        thread.join(60)
    assert said == [CLOSED] * 3


def test_a_stream_ends_where_its_model_is_closed(bundle: Path) -> None:
    model = edgeblt.load(bundle)
    stream = model.stream(b"some text", 50, temperature=1, seed=3)
    next(stream)
    model.close()
    with pytest.raises(EdgebltError, match="was closed"):
        list(stream)
