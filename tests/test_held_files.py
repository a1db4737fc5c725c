"""Files that change while a bundle is opened, or after: what was checked is what is used, or one sentence says so."""

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from checkpoint_oracle import assert_one_sentence
from edgeblt.bundle.held_files import HeldFile
from edgeblt.bundle.whole_files import whole_directory
from edgeblt.errors import EdgebltError
from edgeblt.model import Model, load
from edgeblt.prepare import prepare
from edgeblt.runtime import opening
from edgeblt.runtime.providers import open_graph

TOO_MANY = "cannot be opened, as too many files are open; allow more with `ulimit -n`, or close others"
IDS = [1, 50, 60, 70, 80]


@pytest.fixture
def bundle(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle[1], tmp_path / "bundle"))


@pytest.fixture
def expected(tiny_bundle: tuple[Path, Path]) -> NDArray[np.float32]:
    return logits(load(tiny_bundle[1], threads=1))


def logits(model: Model) -> NDArray[np.float32]:
    return model.session().feed(IDS)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(EdgebltError) as caught:
        call()
    assert_one_sentence(str(caught.value))
    return str(caught.value)


def doubled(file: Path) -> Path:
    """A copy beside it in which every bit differs."""
    copy = file.with_name(f"{file.name}.other")
    copy.write_bytes(bytes(byte ^ 0xFF for byte in file.read_bytes()))
    return copy


@contextmanager
def around_opening(before: Callable[[], object], after: Callable[[], object] = lambda: None) -> Iterator[None]:
    """What somebody does right before and after ONNX Runtime opens a graph."""

    def opened(*arguments: Any) -> onnxruntime.InferenceSession:
        before()
        try:
            return open_graph(*arguments)
        finally:
            after()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "open_graph", opened)
        yield


# While it is opened.


@pytest.mark.parametrize("stage", ["patcher", "encoder", "global", "decoder"])
def test_weights_replaced_before_they_are_mapped(stage: str, bundle: Path) -> None:
    file = bundle / f"{stage}.weights"
    other = doubled(file)
    with around_opening(lambda: other.exists() and other.rename(file)):
        assert refusal(lambda: load(bundle, threads=1)) == f"{file} changed while it was being opened; open it again"


def test_weights_swapped_and_put_back(bundle: Path) -> None:
    """What was mapped is gone again when it is over; the time of the last change of the file's name tells."""
    file = bundle / "global.weights"
    other, away = doubled(file), bundle / "away"

    def swap() -> None:
        file.rename(away)
        other.rename(file)

    def put_back() -> None:
        file.rename(other)
        away.rename(file)

    with around_opening(swap, put_back):
        assert refusal(lambda: load(bundle, threads=1)) == f"{file} changed while it was being opened; open it again"
    assert load(bundle, verify=True, threads=1)


@pytest.mark.parametrize("put_back", [False, True])
def test_a_directory_that_is_swapped(put_back: bool, bundle: Path, tmp_path: Path) -> None:
    other, away = Path(shutil.copytree(bundle, tmp_path / "other")), tmp_path / "away"
    doubled(other / "global.weights").rename(other / "global.weights")

    def swap() -> Path:
        bundle.rename(away)
        return other.rename(bundle)

    def undo() -> None:
        bundle.rename(other)
        away.rename(bundle)

    with around_opening(swap, undo) if put_back else around_opening(lambda: other.exists() and swap()):
        said = refusal(lambda: load(bundle, threads=1))
    file = bundle if put_back else bundle / "patcher.weights"
    assert said == f"{file} changed while it was being opened; open it again"


def test_weights_that_vanish_or_are_cut(bundle: Path) -> None:
    file = bundle / "encoder.weights"
    with around_opening(lambda: os.truncate(file, 100)):
        assert refusal(lambda: load(bundle, threads=1)) == f"{file} changed while it was being opened; open it again"
    shutil.copy(bundle / "global.weights", file)
    assert "encoder.weights has" in refusal(lambda: load(bundle))


def test_graphs_are_the_bytes_that_were_checked(bundle: Path, expected: NDArray[np.float32]) -> None:
    def replace() -> None:
        for graph in bundle.glob("*.onnx"):
            graph.write_bytes(b"no graph")

    replaced = around_opening(replace)
    with replaced:
        found = load(bundle, threads=1)
    np.testing.assert_array_equal(logits(found), expected)
    assert "onnx has 8 bytes instead of" in refusal(lambda: load(bundle, threads=1))


def test_prepared_weights_that_are_replaced(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "edgeblt.runtime.native.register", lambda options: "without kernels of our own there is more to pack"
    )
    prepare(bundle)
    files = sorted(bundle.with_name("bundle.prepared").glob("*.weights"))
    assert files
    other = doubled(files[0])
    with around_opening(lambda: other.exists() and other.rename(files[0])):
        said = refusal(lambda: load(bundle, threads=1))
    assert said == f"{files[0]} changed while it was being opened; open it again"


def test_the_file_that_was_opened_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    held = HeldFile(file, "remedy")
    doubled(file).rename(file)
    assert held.content() == b"abc"
    assert held.sha256() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    held.refuse_changes()
    assert refusal(held.refuse_replacement) == f"{file} changed while it was being opened; open it again"
    file.unlink()
    assert refusal(held.refuse_replacement) == f"{file} changed while it was being opened; open it again"


def test_files_are_closed_with_the_model(bundle: Path) -> None:
    gc.collect()  # models of earlier tests
    before = sorted(os.listdir("/proc/self/fd"))
    opened = load(bundle, threads=1)
    other = opened.with_threshold(1.0)
    assert len(os.listdir("/proc/self/fd")) > len(before)
    del opened
    other.session()
    del other
    assert len(os.listdir("/proc/self/fd")) == len(before)


# After it was opened.


def test_weights_replaced_by_renaming(bundle: Path, expected: NDArray[np.float32]) -> None:
    """As `edgeblt export --force` does: what is open stays as it was."""
    opened = load(bundle, threads=1)
    for file in bundle.glob("*.weights"):
        doubled(file).rename(file)
    np.testing.assert_array_equal(logits(opened), expected)
    shutil.rmtree(bundle)
    np.testing.assert_array_equal(logits(opened), expected)


def write_one_byte(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(b"x")


@pytest.mark.parametrize(
    "change", [lambda file: os.truncate(file, 5000), lambda file: file.write_bytes(b"x" * 5000), write_one_byte]
)
def test_weights_written_to(change: Callable[[Path], object], bundle: Path) -> None:
    opened, file = load(bundle, threads=1), bundle / "global.weights"
    content = file.read_bytes()
    change(file)
    said = (
        f"{file} has changed since it was opened; open the bundle again, and replace files instead of writing into them"
    )
    assert (
        refusal(opened.session)
        == refusal(lambda: opened.generate("x", 1))
        == refusal(lambda: opened.score(b"x"))
        == said
    )
    file.write_bytes(content)  # whoever reads it as it was
    assert load(bundle, threads=1).generate("x", 1) is not None


def test_weights_cut_during_a_command(bundle: Path) -> None:
    """Reading a page that a file no longer has ends the process: with a sentence, whichever thread reads."""
    code = (
        "import os, pathlib, sys\nfrom edgeblt.bundle.lost_files import explaining_lost_files\n"
        "from edgeblt.model import load\n"
        "with explaining_lost_files():\n"
        "    session = load(sys.argv[1], threads=2).session()\n"
        "    session.feed([1, 50])\n"
        "    [os.truncate(file, 0) for file in pathlib.Path(sys.argv[1]).glob('*.weights')]\n"
        "    session.feed([60] * 200)\n"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "EDGEBLT_NATIVE": "0"}
    ended = subprocess.run([sys.executable, "-c", code, bundle], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "edgeblt: a file of weights was cut short while it was in use; copy the bundle or checkpoint again, and "
        "replace its files instead of writing into them\n"
    )


def test_the_signal_is_the_process_s_own_again() -> None:
    code = (
        "import os, signal\nfrom edgeblt.bundle.lost_files import explaining_lost_files\n"
        "with explaining_lost_files(): pass\nos.kill(os.getpid(), signal.SIGBUS)"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -signal.SIGBUS


# Too few descriptors.


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """No more than so many can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken, fillers = max(map(int, os.listdir("/proc/self/fd"))), list[int]()
    while not fillers or fillers[-1] < taken:  # those between the open ones are free
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)


@pytest.mark.parametrize("count", range(9))
def test_a_bundle_takes_more_files_than_may_be_open(count: int, bundle: Path) -> None:
    with descriptors(count):
        try:
            load(bundle, threads=1)
        except EdgebltError as error:
            said = str(error)
        else:
            said = ""
            assert count > 5
    assert not said or said.endswith(TOO_MANY), said
    assert load(bundle, threads=1)


@pytest.mark.parametrize("count", range(9))
def test_nothing_is_left_where_too_many_files_are_open(count: int, tmp_path: Path) -> None:
    opened: list[int] = []

    def write() -> None:
        with whole_directory(tmp_path / "whole") as partial:
            while True:
                opened.append(os.open(partial / str(len(opened)), os.O_WRONLY | os.O_CREAT))

    with descriptors(count):
        said = refusal(write)
    for descriptor in opened:
        os.close(descriptor)
    assert said == f"{tmp_path / 'whole'} {TOO_MANY}"
    assert list(tmp_path.iterdir()) == []
