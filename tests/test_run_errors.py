"""A full memory and damaged weights while a model runs: one sentence, and the session where it was."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

import tiny_models
from conftest import Exported
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import BOS
from edgeblt.model import Model, load
from edgeblt.prepare import prepare
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.runtime.session import Session

LIMITED = """
import json, resource, sys
import numpy as np
import edgeblt

def limit(more):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, -1))

model = edgeblt.load(sys.argv[1], threads=1)
session, ids = model.session(), [1] + [4 + n * 7 % 256 for n in range(200)]
session.feed(ids)
long = np.array([4 + n * 5 % 256 for n in range(200_000)])
zeros, kept = bytes(long.size), [None] * 5000  # made beforehand: only edgeblt may run out of memory
def keep(made):
    for place, value in enumerate(made):
        kept[place] = value
said = []
def tried(call, more=24 << 20):  # so that large allocations fail, not the small ones of numpy and onnxruntime
    limit(more)
    try:
        call()
        said.append(None)
    except Exception as error:
        said.append([type(error).__name__, str(error)])
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    said[-1].append(session.position)

tried(lambda: session.feed(long))
tried(lambda: keep(session.run(long)) if session.position == 201 else None)
back = session.position
session.rollback(201)
tried(lambda: keep(session.fork() for _ in range(1000)))
tried(lambda: model.score(zeros))
tried(lambda: model.generate(zeros))
tried(lambda: edgeblt.load(sys.argv[1]), 4 << 20)
other = model.session()
other.feed(ids)
print(json.dumps([said, np.array_equal(session.feed([77]), other.feed([77])), back]))
"""


def test_a_full_memory_is_a_sentence(tiny_bundle: tuple[Path, Path]) -> None:
    """Wherever it comes up: in numpy, in onnxruntime's runs, or while a bundle is opened."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tiny_bundle[1])], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    said, same, _ = json.loads(done.stdout)  # nothing else is printed
    assert same
    assert [(kind, "there is not enough memory" in text) for kind, text, _ in said] == [("EdgebltError", True)] * 6
    assert all("end other processes" in text and "export" not in text and "\n" not in text for _, text, _ in said)
    assert said[0][2] == said[2][2] == said[5][2] == 201


def test_a_command_in_a_full_memory(tiny_bundle: tuple[Path, Path]) -> None:
    """Without room for the threads of two stages it does without them."""
    program = """
import resource, sys
from edgeblt import cli, model
opened = model.open_model
def limited(*arguments, **named):
    result = opened(*arguments, **named)
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (int(room) << 20), -1))
    return result
model.open_model = limited
room = sys.argv.pop()
sys.argv = ["edgeblt", "generate", *sys.argv[1:], "-", "--max-new-bytes", "4"]
cli.main()
"""
    command = [sys.executable, "-c", program, str(tiny_bundle[1])]
    full, enough = (
        subprocess.run([*command, room], input=bytes(100_000), capture_output=True, timeout=300)
        for room in ("12", "96")
    )
    lines = full.stderr.decode().splitlines()
    assert full.returncode == 2 and len(lines) == 1, lines
    assert lines[0].startswith("edgeblt: there is not enough memory")
    assert enough.returncode == 0, enough.stderr.decode()[-2000:]


@pytest.fixture(scope="module")
def damaged(exported: Callable[[int], Exported], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose pruned table names rows that there are not."""
    folder = tmp_path_factory.mktemp("damaged")
    text = folder / "text"
    text.write_bytes(b"The quick brown fox jumps over the lazy dog. " * 30)
    compressed = quantize_checkpoint(exported(10).checkpoint, folder / "compressed", "fp32", text, table_hits=0.9)
    bundle = export_bundle(compressed, folder / "bundle").path
    graph = onnx.load(bundle / "encoder.onnx", load_external_data=False)
    (index,) = (tensor for tensor in graph.graph.initializer if tensor.name == "encoder.hash_tables.index")
    place = {entry.key: entry.value for entry in index.external_data}
    with (bundle / place["location"]).open("r+b") as file:
        file.seek(int(place["offset"]))
        file.write(b"\x7f" * int(place["length"]))
    return bundle


def test_damaged_weights_are_a_sentence(damaged: Path) -> None:
    model = load(damaged)  # the weights' hashes are checked where it is asked for
    session = model.session()
    calls: list[Callable[[], object]] = [
        lambda: session.feed([BOS, 70]),
        lambda: model.generate("a"),
        lambda: model.score("some text"),
    ]
    for call in calls:
        with pytest.raises(EdgebltError) as refused:
            call()
        said = str(refused.value)
        assert said.startswith("onnxruntime cannot run the stage encoder (") and said.isprintable()
        assert said.endswith("; see with --verify whether the bundle is damaged, or export it again")
    assert session.position == 0
    with pytest.raises(EdgebltError, match="does not match its sha256"):
        load(damaged, verify=True)


def test_a_command_with_damaged_weights(damaged: Path) -> None:
    command = [sys.executable, "-m", "edgeblt.cli", "generate", str(damaged), "hello"]
    done = subprocess.run(command, capture_output=True, timeout=300)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(lines) == 1, lines
    assert lines[0].startswith("edgeblt: onnxruntime cannot run the stage encoder (")


class Failing:
    """Lets a stage's run fail once, after so many runs of all stages."""

    def __init__(self, patch: pytest.MonkeyPatch, error: Exception) -> None:
        self.left, self._error, self._run = -1, error, InferenceSession.run_with_iobinding
        patch.setattr(InferenceSession, "run_with_iobinding", self)

    def __get__(self, binding: Any, _: Any) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise self._error
            self._run(binding, *arguments)

        return run


ERRORS = [
    RuntimeError("bad_alloc"),
    MemoryError("Unable to allocate 3 GiB"),
    RuntimeError("[ONNXRuntimeError] : odd\n"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["bad_alloc", "memory", "other"])
def test_the_session_is_where_it_was(
    exported: Callable[[int], Exported], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whichever run fails, of whichever operation: the same position, and the same logits for what follows."""
    model: Model = exported(10).model
    ids = tiny_models.random_ids(10, 800)
    expected = model.session().feed(ids)
    bound = 1e-5 * float(np.abs(expected).max())
    operations: list[tuple[Callable[[Session], object], int]] = [
        (lambda session: session.feed(ids[100:700]), 100),  # three chunks, all or nothing
        (lambda session: session.rollback(40), 40),  # farther than it can rewind
        (lambda session: session.read_ahead(ids[100:105]), 100),
    ]
    for operation, position in operations:
        for left in (1, 2, 3, 5, 9, 14):
            session = model.session()
            session.feed(ids[:100])
            failing = Failing(monkeypatch, error)
            failing.left = left
            try:
                operation(session)
            except EdgebltError as refused:
                assert str(refused).isprintable() and ("memory" in str(refused)) == (error is not ERRORS[2])
                assert session.position == position
            else:
                assert failing.left > 0
            monkeypatch.undo()
            here = session.position
            found = session.feed(ids[here : here + 20])
            np.testing.assert_allclose(found, expected[here : here + 20], rtol=0, atol=bound)


def test_a_stream_goes_on_after_none(exported: Callable[[int], Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes before the failure are given, then the sentence."""
    model = exported(10).model
    whole = model.generate(b"The quick brown fox", 10, draft="none")
    assert len(whole) == 10
    failing, given = Failing(monkeypatch, RuntimeError("bad_alloc")), []
    with pytest.raises(EdgebltError, match="not enough memory to run the stage"):
        for byte in model.stream(b"The quick brown fox", 10, draft="none"):
            given.append(byte)
            failing.left = 1 if len(given) == 4 else -1
    assert b"".join(given) == whole[:4]


def test_a_bundle_that_memory_cannot_hold(tiny_bundle: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")

    monkeypatch.setattr("edgeblt.runtime.opening.open_graph", full)
    with pytest.raises(EdgebltError, match=r"^there is not enough memory to open .*\.onnx; end other processes"):
        load(tiny_bundle[1])


def test_a_bundle_that_memory_cannot_prepare(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle[1], tmp_path / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeblt.runtime.providers.has_room", lambda size: False)
        with pytest.raises(EdgebltError, match=r"^there is not enough memory to prepare .*\.onnx; end other processes"):
            prepare(bundle)
