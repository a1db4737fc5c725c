"""Weights packed for this machine: the same results, less memory of each process's own, and never the wrong ones."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import tiny_models
from checkpoint_oracle import assert_one_sentence
from conftest import Exported
from edgeblt.bundle.contract import STAGES, stage_contracts
from edgeblt.bundle.examination.external_data import ALIGNMENT, align_external_data
from edgeblt.bundle.examination.graph_check import check_graph
from edgeblt.bundle.manifest import (
    MANIFEST,
    Bundle,
    FileRecord,
    checksum,
    file_record,
    open_bundle,
    read_manifest,
    write_manifest,
)
from edgeblt.errors import EdgebltError
from edgeblt.export.export_bundle import export_bundle
from edgeblt.inspection import inspect_bundle
from edgeblt.model import Model, load
from edgeblt.prepare import Preparation, prepare
from edgeblt.runtime import native
from edgeblt.runtime.machine.memory import Memory, resident_memory
from edgeblt.runtime.packed_weights import find_prepared, machine_key, prepared_path
from sampled import mostly_slow
from test_bundle import rotations, zeros
from test_commands import HIDE_WORKBENCH, run_command, run_process
from test_compress import recipe_text

RECIPES = {
    "fp32": "",
    "fp16": recipe_text('format = "fp16"'),
    "int8-rows": recipe_text('format = "int8", symmetric = true'),
    "int8": recipe_text('format = "int8", block_size = 16, method = "nearest"'),
    "int4": recipe_text('format = "int4", method = "nearest"'),
    "int4-symmetric": recipe_text('format = "int4", block_size = 16, symmetric = true, method = "nearest"'),
    "int4-input-blocks": recipe_text('format = "int4", block_size = 128, input_block_size = 16, method = "nearest"'),
    "nf4": recipe_text('format = "nf4"', 'format = "fp16"'),
}
# Grouped queries, odd widths, k from 1 to 4, no patcher (15), projections; `seeded_configs` numbers them.
CASES = list(zip(RECIPES, (2, 5, 7, 10, 12, 15, 16, 20), strict=True))


@dataclasses.dataclass(frozen=True)
class Shelf:
    """Bundles of tiny models, made when they are first asked for."""

    root: Path
    exported: Callable[[int], Exported]

    @functools.cache  # noqa: B019  (lives as long as the tests of this file)
    def bundle(self, recipe: str, seed: int) -> Path:
        checkpoint = self.exported(seed).checkpoint
        (self.root / f"{recipe}.toml").write_text(RECIPES[recipe])
        return export_bundle(checkpoint, self.root / f"{recipe}-{seed}", self.root / f"{recipe}.toml").path

    @functools.cache  # noqa: B019
    def prepared(self) -> Path:
        """A bundle beside which its prepared weights lie. Read them only."""
        path = Path(shutil.copytree(self.bundle("int4", 12), self.root / "ready" / "bundle"))
        prepare(path)
        return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, exported: Callable[[int], Exported]) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"), exported)


@pytest.fixture(scope="module", autouse=True)
def portable_bodies() -> Iterator[None]:
    """The native kernels read weights where they lie: these tests are about what ONNX Runtime packs without them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, "0")  # of processes too
        native.status.cache_clear()
        yield
    native.status.cache_clear()


@pytest.fixture
def ready(shelf: Shelf, tmp_path: Path) -> Path:
    """A copy of a bundle and its prepared weights."""
    shutil.copytree(shelf.prepared().parent, tmp_path / "ready")
    return tmp_path / "ready" / "bundle"


def beside(bundle: Path) -> Path:
    return bundle.with_name(bundle.name + ".prepared")


def results(model: Model) -> Iterator[NDArray[Any]]:
    """All figures of a text read in uneven pieces, single ids among them, with a rollback."""
    ids = tiny_models.random_ids(7, 150)
    session = model.session()
    for start, stop in [(0, 1), (1, 90), (90, 91), (91, 92), (92, 97), (80, 81), (81, 150)]:
        session.rollback(start)
        for chunk in session.run(ids[start:stop]):
            yield from (chunk.logits.copy(), chunk.entropies.copy(), chunk.patch_starts.copy())


def assert_same_results(first: Model, second: Model) -> None:
    for expected, found in zip(results(first), results(second), strict=True):
        np.testing.assert_array_equal(expected, found)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(EdgebltError) as caught:
        act()
    assert_one_sentence(str(caught.value))
    return str(caught.value)


def edit_record(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change prepared.json, its checksum made right again."""
    document = json.loads((directory / "prepared.json").read_text())
    document.pop("checksum")
    change(document)
    document["checksum"] = checksum(document)
    (directory / "prepared.json").write_text(json.dumps(document))


# The same results.


@pytest.mark.parametrize(
    ("recipe", "seed"),
    mostly_slow(CASES, [case for case in CASES if case[0] in ("fp32", "int8", "int4")]),
)
def test_results_are_the_same_bit_by_bit(recipe: str, seed: int, shelf: Shelf, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(shelf.bundle(recipe, seed), tmp_path / "bundle"))
    plain = {threads: load(bundle, threads=threads) for threads in ((1, 2) if recipe == "int4" else (1,))}
    written = prepare(bundle)
    if recipe == "nf4" and written.path is None:
        assert not beside(bundle).exists()
        return
    for threads, model in plain.items():
        ready = load(bundle, threads=threads)
        assert model.prepared.unused_because and ready.prepared.unused_because is None
        assert_same_results(model, ready)
    kept = {stage.stage for stage in written.stages if stage.left_because is None}
    assert set(ready.prepared.stages) == kept
    assert "encoder" not in kept and (kept or recipe == "nf4")
    files = {file.name for file in beside(bundle).iterdir()}
    assert files == {"prepared.json", *(f"{stage}.{kind}" for stage in kept for kind in ("onnx", "weights"))}
    assert written.bytes == sum(
        file.stat().st_size for file in beside(bundle).iterdir() if file.name != "prepared.json"
    )
    assert written.bytes == sum(stage.bytes for stage in written.stages)


def test_nothing_is_written_where_nothing_is_packed(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(shelf.bundle("int4", 12), tmp_path / "bundle"))
    monkeypatch.setattr("edgeblt.prepare.align_external_data", lambda *_: 0)  # as of a graph without packed weights
    result = run_command(capfd, "prepare", bundle)
    assert result.code == 0 and "Nothing was written" in result.stdout and "Written to" not in result.stdout
    assert list(tmp_path.iterdir()) == [bundle]
    document = json.loads(run_command(capfd, "prepare", bundle, "--json", "-").stdout)
    assert (document["path"], document["bytes"]) == (None, 0) and all(
        stage["left_because"] for stage in document["stages"]
    )


def test_results_that_differ_are_refused(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime's are where it reads packed weights from addresses that are not aligned."""

    def spoil(graph: Path, weights: Path) -> int:
        count = align_external_data(graph, weights)
        content = bytearray(weights.read_bytes())
        for offset, length in packed_buffers(graph):
            content[offset : offset + length] = bytes(byte ^ 0x11 for byte in content[offset : offset + length])
        weights.write_bytes(content)
        return count

    bundle = Path(shutil.copytree(shelf.bundle("int4", 12), tmp_path / "bundle"))
    monkeypatch.setattr("edgeblt.prepare.align_external_data", spoil)
    assert "gives other results with packed weights under onnxruntime" in refusal(lambda: prepare(bundle))
    assert list(tmp_path.iterdir()) == [bundle]


def packed_buffers(graph: Path) -> list[tuple[int, int]]:
    found = []
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        for entry in tensor.external_data:
            if entry.key.startswith("prepacked_"):
                offset, length, _ = map(int, entry.value.partition("|")[2].split(";"))
                found.append((offset, length))
    return found


def test_every_buffer_is_aligned(shelf: Shelf) -> None:
    graphs = list(beside(shelf.prepared()).glob("*.onnx"))
    places = [offset for graph in graphs for offset, _ in packed_buffers(graph)]
    assert len(places) > 10 and not any(offset % ALIGNMENT for offset in places)


@pytest.mark.parametrize("divisor", ["two", "zero", "minus_one", "total_length", "rounded"])
def test_integers_are_divided_by_positive_numbers_alone(divisor: str, shelf: Shelf) -> None:
    """Division by 0, and of the least integer by -1, would end the process; numbers of other types have infinities."""
    bundle = open_bundle(shelf.prepared())
    contract = stage_contracts(bundle.manifest.config)["global"]
    model = onnx.load(beside(bundle.path) / "global.onnx", load_external_data=False)
    for name, numbers in {"two": [2], "zero": [0], "minus_one": [-1]}.items():
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], numbers))
    model.graph.initializer.append(helper.make_tensor("root", TensorProto.FLOAT, [1], [2.0]))
    nodes = [
        helper.make_node("Sqrt", ["root"], ["float"]),
        helper.make_node("Div", ["root", "float"], ["quotient"]),
        helper.make_node("Div", ["float", "quotient"], ["other"]),
        helper.make_node("Cast", ["other"], ["rounded"], to=TensorProto.INT64, saturate=1),
        helper.make_node("Cast", ["total_length"], ["length"], to=TensorProto.INT64, saturate=1),
        helper.make_node("Div", ["length", divisor], ["divided"]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    sizes = {"global.weights": (beside(bundle.path) / "global.weights").stat().st_size}

    def check() -> None:
        check_graph(model.SerializeToString(), Path("global.onnx"), sizes, "prepare again", True, contract)

    if divisor == "two":
        check()
    else:
        assert "Div divides by other than positive numbers of the graph" in refusal(check)


def test_settings_stay_adjustable(shelf: Shelf) -> None:
    """The prepared patcher's thresholds can be turned: starts are then those of its entropies."""
    bundle = open_bundle(shelf.prepared())
    contract = stage_contracts(bundle.manifest.config)["patcher"]
    session = onnxruntime.InferenceSession(beside(bundle.path) / "patcher.onnx", providers=["CPUExecutionProvider"])
    values = {value.name: value for value in session.get_overridable_initializers()}
    assert values.keys() == {spec.name for spec in contract.settings}
    assert contract.cache
    count = 40
    sizes = {"T": count, "C": count + 1, "B": 1, "K": 1, "R": 0, "Q": 0, "M": 0}  # a spare slot
    feeds = zeros(contract.inputs + contract.cache.specs("past"), sizes)
    feeds["cosines"], feeds["sines"] = rotations(contract.cache, count + 1)
    feeds |= {"ids": np.array(tiny_models.random_ids(3, count)), "total_length": np.array([count], np.int32)}

    def run(threshold: float, longest: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        settings = {"threshold": np.array([threshold], np.float32), "max_patch_length": np.array([longest])}
        entropies, starts = session.run(["entropies", "patch_starts"], feeds | settings)
        return entropies, starts

    entropies, _ = run(0.0, 0)
    for threshold in (float(np.median(entropies)), -1.0, 1e9):
        found, starts = run(threshold, 0)
        np.testing.assert_array_equal(found, entropies)
        np.testing.assert_array_equal(starts[1:], entropies[1:] > threshold)
    _, starts = run(1e9, 3)
    assert 10 <= np.count_nonzero(starts) <= 14  # every third


# Used where it fits, and only there.


def test_found_whatever_path_leads_to_the_bundle(ready: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ready)
    monkeypatch.chdir(ready)
    for path in (ready, tmp_path / "link", ".", "../bundle"):
        bundle = open_bundle(path)
        assert prepared_path(bundle) == beside(ready) and find_prepared(bundle, "cpu").unused_because is None


def change_bundle(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, dataclasses.replace(manifest, recipe="another"))


def in_record(**fields: object) -> Callable[[Path], object]:
    return lambda bundle: edit_record(beside(bundle), lambda document: document.update(fields))


STALE: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda bundle: shutil.rmtree(beside(bundle)), "there is no "),
    "bundle": (change_bundle, "was made for another bundle of this name; make it again with `edgeblt prepare "),
    "onnxruntime": (
        in_record(onnxruntime="1.30.0\x1b"),
        rf"was made by onnxruntime '1.30.0\x1b', this is {onnxruntime.__version__}; make it again with",
    ),
    "machine": (in_record(machine="0" * 64), "was made on another machine, or before this one's processor changed; m"),
    "provider": (in_record(provider="cuda"), "was made for the provider 'cuda', this is cpu; make it again with"),
    "native": (in_record(native="9.9"), "was made with native library '9.9', this is "),
    "version": (in_record(format_version=2), "has the format version 2, not 1; make it again with `edgeblt prepare "),
    "no-version": (in_record(format_version=None), "has the format version None, not 1; make it again"),
}


@pytest.mark.parametrize("name", STALE)
def test_what_does_not_fit_is_ignored_and_says_why(name: str, ready: Path) -> None:
    change, said = STALE[name]
    change(ready)
    model = load(ready, threads=1)
    reason = model.prepared.unused_because
    assert reason and said in reason and reason.isprintable()
    assert model.prepared.describe() == f"no: {reason}"
    assert all(model.prepared.graph(stage) is None for stage in STAGES)
    assert inspect_bundle(open_bundle(ready)).description["prepared"] == f"no: {reason}"
    shutil.rmtree(beside(ready), ignore_errors=True)
    assert model.generate("x", 8) == load(ready, threads=1).generate("x", 8)


def test_inspect_says_what_is_prepared(ready: Path) -> None:
    description = inspect_bundle(open_bundle(ready)).description
    assert description["prepared"] == f"yes: patcher, global, decoder, in {beside(ready)}"
    (beside(ready) / "global.onnx").unlink()
    assert inspect_bundle(open_bundle(ready)).description["prepared"].startswith("no: ")


def test_the_machine_is_told_by_its_processor_and_its_id(tmp_path: Path) -> None:
    assert machine_key() == machine_key() and len(machine_key()) == 64
    files = [tmp_path / name for name in ("proc/cpuinfo", "etc/machine-id")]

    def key(cpuinfo: list[str], machine: str = "1") -> str:
        for file, text in zip(files, ("\n".join(cpuinfo), machine), strict=True):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        return machine_key(tmp_path)

    own = ["model name\t: A", "cpu MHz\t: 2250.000", "flags\t: fpu avx2"]
    first = key(own)
    assert key(["flags\t: avx2 fpu", "model name\t: A", "cpu MHz\t: 1500.000", "model name\t: A"]) == first
    others = [key(["model name\t: A", "flags\t: fpu avx2 avx512f"]), key(["model name\t: B", "flags\t: fpu avx2"]),
              key(["Features\t: fpu avx2"]), key(own, machine="2")]  # fmt: skip
    assert len({first, *others}) == 5


# Damage.


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def replace(file: Path, content: bytes | None = None) -> None:
    """By these bytes, or by a pipe."""
    file.unlink()
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)


def turn_into_link(file: Path) -> None:
    file.rename(file.parent.parent / "moved")
    file.symlink_to(file.parent.parent / "moved")


def turn_into_file(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.touch()


def change_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda directory: edit_record(directory, change)


def read_elsewhere(directory: Path) -> None:
    """The graph's weights become another file, all hashes right."""
    graph = directory / "global.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"global.weights", b"../secret.file"))
    record = dataclasses.asdict(file_record(graph))
    edit_record(directory, lambda document: document["stages"]["global"].update(graph=record))


AGAIN = "; make it again with `edgeblt prepare "
RECORD = "prepared.json"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "graph-changed": (lambda path: flip(path / "decoder.onnx", 500), "was changed or damaged" + AGAIN),
    "graph-missing": (lambda path: (path / "decoder.onnx").unlink(), "(No such file or directory)" + AGAIN),
    "graph-link": (lambda path: turn_into_link(path / "patcher.onnx"), "nor may it be a link" + AGAIN),
    "weights-link": (lambda path: turn_into_link(path / "global.weights"), "nor may it be a link" + AGAIN),
    "weights-missing": (lambda path: (path / "global.weights").unlink(), "(No such file or directory)" + AGAIN),
    "weights-short": (lambda path: os.truncate(path / "global.weights", 100), "has 100 bytes instead of "),
    "weights-elsewhere": (read_elsewhere, "'../secret.file', which is not among its weights" + AGAIN),
    "record-missing": (lambda path: (path / RECORD).unlink(), "(No such file or directory)" + AGAIN),
    "record-changed": (lambda path: flip(path / RECORD, 100), AGAIN),
    "record-pipe": (lambda path: replace(path / RECORD), "is not a regular file of at most 1048576 bytes"),
    "record-empty": (lambda path: replace(path / RECORD, b""), "line 1 column 1 (char 0))" + AGAIN),
    "record-list": (lambda path: replace(path / RECORD, b"[]"), "is not a JSON object" + AGAIN),
    "record-deep": (lambda path: replace(path / RECORD, b'{"format_version":' + b"[" * 970), AGAIN),
    "record-deeper": (lambda path: replace(path / RECORD, b"[" * 10_000 + b"]" * 10_000), AGAIN),
    "record-checksum": (lambda path: replace(path / RECORD, b'{"format_version":1}'), "does not match its checksum"),
    "stage-unknown": (
        change_record(lambda document: document["stages"].update({"../x\n": document["stages"]["global"]})),
        r"names the unknown stage '../x\n'" + AGAIN,
    ),
    "size-negative": (
        change_record(lambda document: document["stages"]["global"]["graph"].update(size=-1)),
        "bytes instead of -1" + AGAIN,
    ),
    "stages-list": (change_record(lambda document: document.update(stages=[])), "stages is []"),
    "field-missing": (change_record(lambda document: document.pop("native")), "lacks the field 'native'"),
    "no-directory": (turn_into_file, "is not a directory of prepared weights; remove it"),
    "directory-link": (turn_into_link, "is not a directory of prepared weights; remove it"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_sentence(name: str, ready: Path) -> None:
    damage, said = DAMAGE[name]
    damage(beside(ready))
    message = refusal(lambda: load(ready, threads=1))
    assert said in message and str(beside(ready)) in message
    assert inspect_bundle(open_bundle(ready)).description["prepared"] == f"no: {message}"


def test_changed_weights_are_found_by_verify(ready: Path) -> None:
    flip(beside(ready) / "global.weights", 5000)
    assert load(ready, threads=1).prepared.unused_because is None
    message = refusal(lambda: load(ready, verify=True))
    assert message.startswith(f"{beside(ready)}/global.weights does not match its sha256") and AGAIN in message


def test_a_graph_that_is_none(ready: Path) -> None:
    graph = beside(ready) / "global.onnx"
    graph.write_bytes(b"\xff" * 10)
    record = dataclasses.asdict(file_record(graph))
    edit_record(beside(ready), lambda document: document["stages"]["global"].update(graph=record))
    assert refusal(lambda: load(ready, threads=1)).startswith(f"{graph} is no graph that edgeblt writes: ")


def test_a_bundle_must_not_bring_packed_weights(ready: Path) -> None:
    """ONNX Runtime does not check their sizes: it would read past the end of a file."""
    for name in ("global.onnx", "global.weights"):
        shutil.copy(beside(ready) / name, ready / name)
    manifest = open_bundle_unchecked(ready)
    write_manifest(ready, manifest)
    said = refusal(lambda: load(ready, threads=1))
    assert said.startswith(f"{ready / 'global.onnx'} is no graph that edgeblt writes: it imports ")


def open_bundle_unchecked(bundle: Path) -> Any:
    """The manifest with every file's size and hash as they now are."""
    manifest = read_manifest(bundle / MANIFEST)
    files: dict[str, FileRecord] = {name: file_record(bundle / name) for name in manifest.files}
    return dataclasses.replace(manifest, files=files)


# Writing.


@pytest.mark.parametrize(
    ("moment", "kind"),
    [("file_record", KeyboardInterrupt), ("write_document", SystemExit), ("compare_results", MemoryError)],
)
def test_nothing_is_left_when_it_stops_midway(
    moment: str, kind: type[BaseException], ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in beside(ready).iterdir()}

    def stop(*arguments: object) -> None:
        raise kind("enough")

    monkeypatch.setattr(f"edgeblt.prepare.{moment}", stop)
    with pytest.raises(kind, match="enough"):
        prepare(ready)
    assert sorted(path.name for path in ready.parent.iterdir()) == ["bundle", "bundle.prepared"]
    assert {file.name: file.read_bytes() for file in beside(ready).iterdir()} == before
    shutil.rmtree(beside(ready))
    with pytest.raises(kind, match="enough"):
        prepare(ready)
    assert list(ready.parent.iterdir()) == [ready]


def test_a_file_that_cannot_be_written_whole(ready: Path) -> None:
    """A process that may write no more than 20 KB to a file, as on a full disk."""
    shutil.rmtree(beside(ready))
    code = (
        "import resource, sys\nfrom edgeblt.prepare import prepare\nfrom edgeblt.errors import EdgebltError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n    prepare(sys.argv[1])\nexcept EdgebltError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, ready], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_one_sentence(done.stdout.rstrip("\n"))
    assert list(ready.parent.iterdir()) == [ready]


def test_what_is_something_else_is_not_replaced(ready: Path) -> None:
    (beside(ready) / "prepared.json").unlink()
    message = refusal(lambda: prepare(ready))
    assert message == f"{beside(ready)} holds something other than prepared weights; remove it, or rename the bundle"
    assert (beside(ready) / "global.onnx").exists()
    shutil.rmtree(beside(ready))
    beside(ready).touch()
    assert "exists already; remove it" in refusal(lambda: prepare(ready))


def test_the_command(ready: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(beside(ready))
    result = run_command(capfd, "prepare", ready, "--json", "-")
    assert result.code == 0
    document = json.loads(result.stdout)
    assert list(document) == [field.name for field in dataclasses.fields(Preparation)]
    assert document["path"] == str(beside(ready))
    assert [stage["stage"] for stage in document["stages"] if stage["bytes"]] == ["patcher", "global", "decoder"]
    result = run_command(capfd, "prepare", ready, "--json", ready.parent / "result.json")  # replaces it
    assert json.loads((ready.parent / "result.json").read_text()) == document
    assert str(beside(ready)) in result.stdout and "would be copied" in result.stdout
    bench = [ready, "--prompt-bytes", 4, "--new-bytes", 2, "--repeats", 1, "--no-bandwidth"]
    assert "not used" not in run_command(capfd, "bench", *bench).stdout
    assert json.loads(run_command(capfd, "bench", *bench, "--json", "-").stdout)["prepared"] is True
    shutil.rmtree(beside(ready))
    assert run_process("prepare", ready, before=HIDE_WORKBENCH).returncode == 0
    assert load(ready, threads=1).prepared.unused_because is None


# External data.


def external(tensor: Any, **entries: str) -> Any:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_alignment_moves_what_lies_askew_and_nothing_else(tmp_path: Path) -> None:
    values = {name: np.random.default_rng(seed).random((3, 5), np.float32) for seed, name in enumerate("abc")}
    a, b, c = (numpy_helper.from_array(value, name) for name, value in values.items())
    content = bytearray(64) + a.raw_data + b"packed1" + b"second" + b.raw_data + c.raw_data
    external(a, location="w", offset="64", length="60", prepacked_0="MatMul+1|124;7;0|131;6;0")
    external(b, location="w", offset="137", length="60")
    external(c, location="w", offset="197", length="60", prepacked_0="MatMul+2|64;9;3")
    branch = helper.make_graph([helper.make_node("Identity", ["b"], ["y"])], "then", [], [], [b])
    node = helper.make_node("If", ["a"], ["y"], then_branch=branch, else_branch=branch, text="location", number=1.5)
    small = numpy_helper.from_array(np.arange(3), "small")
    value = helper.make_tensor_value_info("x" * 200, TensorProto.FLOAT, ["T", 2**40])
    model = helper.make_model(helper.make_graph([node], "g", [value], [], [a, small, c]), doc_string="ü" * 300)
    graph, weights = tmp_path / "g", tmp_path / "w"
    graph.write_bytes(model.SerializeToString())
    weights.write_bytes(content)
    assert align_external_data(graph, weights) == 3

    new, data = onnx.load(graph, load_external_data=False), weights.read_bytes()
    branches = [attribute.g for attribute in new.graph.node[0].attribute if attribute.name.endswith("branch")]
    tensors = [new.graph.initializer[0], new.graph.initializer[2], *(branch.initializer[0] for branch in branches)]
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(entries["offset"]), int(entries["length"])
        assert offset % ALIGNMENT == 0 and entries["location"] == "w"
        assert data[offset : offset + length] == values[tensor.name].tobytes()
    assert {entry.key: entry.value for entry in tensors[1].external_data}["prepacked_0"] == "MatMul+2|64;9;3"
    name, *buffers = next(entry.value for entry in tensors[0].external_data if entry.key == "prepacked_0").split("|")
    places = [tuple(map(int, buffer.split(";"))) for buffer in buffers]
    assert name == "MatMul+1" and [data[offset : offset + length] for offset, length, _ in places] == [
        b"packed1", b"second"
    ]  # fmt: skip
    assert not any(offset % ALIGNMENT or checksum for offset, _, checksum in places)
    assert data.startswith(bytes(content))
    for tensor, old in zip(tensors, [a, c, b, b], strict=True):
        tensor.ClearField("external_data")
        tensor.external_data.extend(old.external_data)
    assert new == model


# Memory.


def test_resident_memory() -> None:
    before = resident_memory()
    if before is None:
        pytest.skip("this system does not tell")
    block = np.ones(40 << 20, np.uint8)
    after = resident_memory()
    assert after and after.anonymous - before.anonymous > 35 << 20
    assert len(block) and after.mapped - before.mapped < 10 << 20


def test_bench_tells_growth(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeblt.measure.benchmark import bench_model

    model = load(ready, threads=1)
    assert model.load_seconds > 0
    model.memory_before = Memory(1000, 50)
    monkeypatch.setattr("edgeblt.measure.benchmark.resident_memory", lambda: Memory(7000, 80))
    result = bench_model(model, prompt_bytes=4, new_bytes=2, repeats=1)
    assert (result.anonymous_bytes, result.mapped_bytes) == (6000, 30)
    assert (result.load_time_s, result.prepared, result.unprepared_because) == (model.load_seconds, True, None)
    monkeypatch.setattr("edgeblt.measure.benchmark.resident_memory", lambda: None)
    result = bench_model(model, prompt_bytes=4, new_bytes=2, repeats=1)
    assert result.anonymous_bytes is None and result.mapped_bytes is None


@pytest.fixture(scope="module")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model whose global transformer has 25 MB of weights, which ONNX Runtime packs."""
    root = tmp_path_factory.mktemp("wide")
    config = tiny_models.random_config(10)
    stack = config.global_config
    stack.hidden_size, stack.num_attention_heads, stack.num_key_value_heads, stack.head_dim = 512, 8, 8, 64
    stack.intermediate_size, stack.num_hidden_layers = 1536, 2
    stack.encoder_cross_output_size = config.cross_attn_k * config.encoder_config.hidden_size
    for other in (config.encoder_config, config.decoder_config):
        other.hidden_size_global = 512
    checkpoint = tiny_models.save_model(tiny_models.random_model(config, 10), root / "checkpoint")
    return export_bundle(checkpoint, root / "bundle")


READER = """
import sys
from edgeblt import load
from edgeblt.runtime.machine.memory import resident_memory
model = load(sys.argv[1], threads=1)
model.generate("to share", 8)
after = resident_memory()
print(after.anonymous - model.memory_before.anonymous, flush=True)
sys.stdin.read()
"""


def test_processes_share_what_is_prepared(wide_bundle: Bundle) -> None:
    """Two processes at once, without and with prepared weights; what each holds is as the kernel counts it."""
    if resident_memory() is None:
        pytest.skip("this system does not tell")
    packed = wide_bundle.manifest.files["global.weights"].size
    assert packed > 24e6
    anonymous_plain, _ = two_readers(wide_bundle.path)
    prepare(wide_bundle.path)
    anonymous, mappings = two_readers(wide_bundle.path)
    assert all(count > packed for count in anonymous_plain)
    assert all(count < packed / 3 for count in anonymous)
    for resident, proportional in mappings:
        assert resident > 0.9 * packed and proportional < 0.55 * resident


def two_readers(bundle: Path) -> tuple[list[int], list[tuple[int, int]]]:
    """Of each process the growth of its anonymous memory, and of its prepared weights Rss and Pss, all in bytes."""
    command = [sys.executable, "-c", READER, str(bundle)]
    readers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        anonymous = [int(reader.stdout.readline()) for reader in readers if reader.stdout]
        return anonymous, [mapped_bytes(reader.pid, str(beside(bundle))) for reader in readers]
    finally:
        for reader in readers:
            reader.communicate(timeout=60)


def mapped_bytes(process: int, directory: str) -> tuple[int, int]:
    resident = proportional = 0
    inside = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            inside = bool(values) and values[-1].startswith(directory)
        elif inside and name in ("Rss:", "Pss:"):
            count = int(values[0]) << 10
            resident, proportional = resident + count * (name == "Rss:"), proportional + count * (name == "Pss:")
    return resident, proportional
