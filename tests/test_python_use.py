"""What a program may do with models and sessions, and what it is told where it may not."""

import copy
import itertools
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import edgeblt
import tiny_models
from conftest import Exported
from edgeblt import EdgebltError, Model, Session
from edgeblt.decoding.speculation import DRAFTS
from edgeblt.ids import BOS, encode
from edgeblt.names import DraftName, ProviderName, RecipeName
from edgeblt.quant.recipes.recipe import packaged_recipes
from edgeblt.runtime.providers import PROVIDERS
from edgeblt.runtime.stage import StageRunner

TEXT = "Müller, 東京"


@pytest.fixture(scope="module")
def model(exported: Callable[[int], Exported]) -> Model:
    return exported(10).model


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(EdgebltError) as refused:
        call()
    said = str(refused.value)
    assert said.isprintable() and "; " in said and len(said) < 400
    return said


GENERATE: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 5}, "prompt is 5; it must be bytes or str"),
    ({"prompt": None}, "prompt is None; it must be bytes or str"),
    ({"prompt": [72, 105]}, "prompt is [72, 105]; it must be bytes or str"),
    ({"prompt": np.zeros(3)}, "prompt is array([0., 0., 0.]); it must be bytes or str"),
    ({"prompt": "\ud800"}, r"prompt is '\ud800', which has no UTF-8 form; give bytes"),
    ({"prompt": Odd()}, "prompt is a value of type Odd; it must be bytes or str"),
    ({"max_new_bytes": 2.5}, "max_new_bytes is 2.5; it must be a whole number"),
    ({"max_new_bytes": "9"}, "max_new_bytes is '9'; it must be a whole number"),
    ({"max_new_bytes": True}, "max_new_bytes is True; it must be a whole number"),
    ({"temperature": "x"}, "temperature is 'x'; it must be 0 (greedy) or a positive number"),
    ({"top_k": "9"}, "top_k is '9'; it must be a whole number"),
    ({"top_p": [1]}, "top_p is [1]; it must be above 0 and at most 1"),
    ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
    ({"draft": 3}, "draft is 3; use one of none, patcher, decoder, heads, ngram, auto"),
    ({"draft": ["auto"]}, "draft is ['auto']; use one of none, patcher, decoder, heads, ngram, auto"),
    ({"draft": "atuo"}, "draft is 'atuo'; use one of none, patcher, decoder, heads, ngram, auto"),
]


@pytest.mark.parametrize(("arguments", "sentence"), GENERATE)
def test_generate_of_other_types(model: Model, arguments: dict[str, Any], sentence: str) -> None:
    for function in (model.generate, model.stream):  # stream refuses when it is called, too
        assert refusal(lambda function=function: function(**({"prompt": b"a"} | arguments))) == sentence  # type: ignore[misc]


LOAD: list[tuple[dict[str, Any], str]] = [
    ({"path": 5}, "path is 5; it must be a str or a Path"),
    ({"path": None}, "path is None; it must be a str or a Path"),
    ({"path": b"bundle"}, "path is b'bundle'; it must be a str or a Path"),
    ({"threads": "2"}, "threads is '2'; it must be a whole number"),
    ({"threads": 1.0}, "threads is 1.0; it must be a whole number"),
    ({"threads": 0}, "threads is 0; it must be at least 1"),
    ({"threshold": "x"}, "threshold is 'x'; give a number of nats, such as 1.5"),
    ({"threshold": float("nan")}, "threshold is nan; give a number of nats, such as 1.5"),
    ({"threshold": 1e39}, "threshold is 1e+39; give a number of nats, such as 1.5"),
    ({"provider": 5}, "provider is 5; it must be a name such as cpu, cuda"),
    ({"provider": ["cpu"]}, "provider is ['cpu']; it must be a name such as cpu, cuda"),
]


@pytest.mark.parametrize(("arguments", "sentence"), LOAD)
def test_load_of_other_types(model: Model, arguments: dict[str, Any], sentence: str) -> None:
    assert refusal(lambda: edgeblt.load(**({"path": model.bundle.path} | arguments))) == sentence


def test_other_functions_of_other_types(model: Model) -> None:
    assert refusal(lambda: model.score(3)) == "data is 3; it must be bytes or str"  # type: ignore[arg-type]
    assert refusal(lambda: model.with_threshold("x")).startswith("threshold is 'x'; give")  # type: ignore[arg-type]
    assert refusal(lambda: model.session().rollback(0.5)).startswith("position is 0.5; it must")  # type: ignore[arg-type]


def test_bytes_and_text_of_any_kind(model: Model) -> None:
    data = TEXT.encode()
    kinds: list[Any] = [TEXT, bytearray(data), memoryview(data)]
    scored = model.score(data)
    for kind in kinds:
        assert model.generate(kind, 4) == model.generate(data, np.int64(4))  # type: ignore[arg-type]
        np.testing.assert_array_equal(model.score(kind).logprobs, scored.logprobs)


def test_they_say_what_they_are(model: Model) -> None:
    session = model.session()
    assert repr(session) == "<edgeblt.Session at position 0>"
    session.feed([BOS, 70])
    assert repr(session) == "<edgeblt.Session at position 2>"
    assert repr(model) == f"<edgeblt.Model {str(model.bundle.path)!r}: fp32, on cpu>"
    scores = model.score(b"hello")
    assert repr(scores) == (
        f"<edgeblt.Scores of 5 bytes in {scores.patch_starts.sum()} patches: {scores.bits_per_byte:.4f} bits per byte>"
    )
    assert repr(model.score(b"")) == "<edgeblt.Scores of 0 bytes in 0 patches: nan bits per byte>"


# Pickling.


def opened_elsewhere(model: Model) -> tuple[bytes, Any]:
    return model.generate(b"once", 8, 0.9, seed=1), (model.threads, model.threshold, model.provider_name)


def test_a_model_goes_to_another_process(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `spawn`, as programs that use threads must; opened by a path relative to another folder."""
    monkeypatch.chdir(model.bundle.path.parent)
    limited = edgeblt.load(model.bundle.path.name, threads=1, threshold=4.0)
    monkeypatch.chdir("/")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(Model.generate, (limited, b"once", 8, 0.9, None, None, 1))  # which imports no tests
    assert there == opened_elsewhere(limited)[0]
    again = copy.deepcopy(limited)
    assert again.graph("encoder") is not limited.graph("encoder") and opened_elsewhere(again) == opened_elsewhere(
        limited
    )
    assert (
        copy.copy(limited).graph("encoder") is limited.graph("encoder") is limited.with_threshold(1.0).graph("encoder")
    )


def test_another_bundle_in_its_place(tiny_bundle: tuple[Path, Path], exported: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle[1], tmp_path / "bundle")
    pickled = pickle.dumps(edgeblt.load(tmp_path / "bundle"))
    shutil.rmtree(tmp_path / "bundle")
    assert "is not a bundle directory" in refusal(lambda: pickle.loads(pickled))
    shutil.copytree(exported(7).bundle, tmp_path / "bundle")
    assert refusal(lambda: pickle.loads(pickled)).endswith(
        "bundle holds another bundle than when the model was pickled; load it and pickle it again"
    )


def test_sessions_stay_where_they_are(model: Model) -> None:
    session = model.session()
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        assert "a Session cannot be pickled or copied; use fork()" in refusal(lambda call=call: call(session))  # type: ignore[misc]


# One use of a session at a time.


IDS = tiny_models.random_ids(10, 300)
USES: dict[str, Callable[[Session], object]] = {
    "feed": lambda session: session.feed([70]),
    "run": lambda session: next(session.run([70])),
    "rollback": lambda session: session.rollback(1),
    "fork": lambda session: session.fork(),
    "read_ahead": lambda session: session.read_ahead([70]),
    "within_patch": lambda session: session.within_patch().__enter__(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("busy", ["feed", "within_patch"])
def test_two_threads_at_once(model: Model, monkeypatch: pytest.MonkeyPatch, use: str, busy: str) -> None:
    """The second is refused, the first goes on as if it were alone."""
    session, alone = model.session(), model.session()
    for each in (session, alone):
        each.feed(IDS[:50])
    expected = alone.feed(IDS[50:60])
    inside, go_on, found = threading.Event(), threading.Event(), []
    run = StageRunner.run

    def waiting(*arguments: Any) -> None:
        inside.set()
        assert go_on.wait(60)
        run(*arguments)

    def first() -> None:
        if busy == "within_patch":
            with session.within_patch() as feed:
                feed(77)
        found.append(session.feed(IDS[50:60]))

    monkeypatch.setattr(StageRunner, "run", waiting)
    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    assert refusal(lambda: USES[use](session)) == (
        "this session is in use by another thread; give each thread its own with model.session() or fork()"
    )
    go_on.set()
    thread.join()
    np.testing.assert_array_equal(found[0], expected)
    monkeypatch.undo()
    session.feed(IDS[60:61])  # and then it is anyone's


def test_interleaved_runs(model: Model) -> None:
    """Two generators over one session would mix their texts; forks may be made, results of others' runs read.

    Texts are longer than what is computed at a time.
    """
    session = model.session()
    runs = [session.run(np.resize(encode(text), 5000)) for text in (b"one text ", b"another ")]
    said = refusal(lambda: [next(run) for run in itertools.islice(itertools.cycle(runs), 100)])
    assert said.startswith("this session was used while a run of it, or its within_patch, was not at its end; finish")
    for between in ("feed", "rollback", "read_ahead"):
        session = model.session()
        run = session.run(np.resize(IDS, 5000))
        next(run)
        USES[between](session)
        position = session.position
        refusal(lambda run=run: list(run))  # type: ignore[misc]
        assert session.position == position
    other = model.session()
    both = zip(model.session().run(IDS), other.run(IDS), strict=True)
    assert all(np.array_equal(one.logits, two.logits) for one, two in both)


def test_nothing_else_within_a_patch(model: Model) -> None:
    session, alone = model.session(), model.session()
    for each in (session, alone):
        each.feed(IDS[:50])
    with pytest.raises(EdgebltError, match="its within_patch, was not at its end"), session.within_patch() as feed:
        feed(70)
        session.feed(IDS[50:52])
        feed(71)
    alone.feed(IDS[50:52])
    np.testing.assert_allclose(session.feed(IDS[52:60]), alone.feed(IDS[52:60]), rtol=0, atol=1e-4)


def test_streams_of_one_model_may_be_interleaved(model: Model) -> None:
    prompts = ["a", "The quick brown fox", TEXT]
    streams = [model.stream(prompt, 12, 0.8, seed=7) for prompt in prompts]
    mixed = [b"".join(parts) for parts in zip(*itertools.zip_longest(*streams, fillvalue=b""), strict=True)]
    assert mixed == [model.generate(prompt, 12, 0.8, seed=7) for prompt in prompts]


# Names are types.

TYPED = """
from pathlib import Path
import edgeblt
from edgeblt.export.export_bundle import export_bundle
from edgeblt.quant.compress import quantize_checkpoint

def use(word: str) -> None:
    model = edgeblt.load("bundle", provider="cpu")
    edgeblt.load(Path("bundle"), provider=edgeblt.Name("patcher=cpu,global=cuda"))
    edgeblt.load("bundle", provider=edgeblt.Name(word), threads=2, threshold=1)
    model.generate("a", 5, temperature=1, draft="auto")
    model.stream(b"a", draft=edgeblt.Name(word))
    export_bundle("checkpoint", "bundle", "int8")
    export_bundle("checkpoint", "bundle", Path("my.toml"))
    quantize_checkpoint("checkpoint", "out", edgeblt.Name(word))
    scores: edgeblt.Scores = model.score("text")
"""
REFUSED = """
    model.generate("a", draft="atuo")  # draft
    model.stream("a", draft="ngrams")  # draft
    model.generate("a", draft=word)  # draft
    edgeblt.load("bundle", provider="gpu")  # load
    export_bundle("checkpoint", "bundle", "int5")  # export_bundle
    quantize_checkpoint("checkpoint", "out", "int4_small")  # quantize_checkpoint
"""


def test_a_type_checker_refuses_misspelt_names(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TYPED + REFUSED)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nfollow_imports = skip\n[mypy-edgeblt.*]\nfollow_imports = silent\n"
    )
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    lines = [number for number, line in enumerate((TYPED + REFUSED).splitlines(), 1) if "  # " in line]
    assert [int(error.split(":")[1]) for error in errors] == lines, done.stdout
    assert all("[arg-type]" in error for error in errors)


def test_every_name_is_in_its_type() -> None:
    assert (get_args(DraftName), get_args(ProviderName)) == (DRAFTS, PROVIDERS)
    assert sorted(get_args(RecipeName)) == packaged_recipes()
