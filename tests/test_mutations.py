"""Two hundred damaged or hostile bundles and checkpoints: each ends in one clear sentence and exit code 2.

A mutation is a name and a function that changes a copy of a directory; its random choices come from seeds. What cannot
be noticed (a changed bit of a number) is listed apart, and must then work or be refused, nothing else.
"""

import json
import os
import random
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from edgeblt.bundle.manifest import checksum, file_record
from sampled import mostly_slow
from test_commands import run_command, run_process, sentence

MANIFEST, CONFIG, SINGLE, INDEX = "bundle.json", "config.json", "model.safetensors", "model.safetensors.index.json"
STAGES = ("patcher", "encoder", "global", "decoder")
GRAPHS = tuple(f"{stage}.onnx" for stage in STAGES)
WEIGHTS = tuple(f"{stage}.weights" for stage in STAGES)
FILES = (MANIFEST, *GRAPHS, *WEIGHTS, "README.md")
SHARDS = tuple(f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
GATE = "model.local_encoder.layers.0.mlp.gate_proj.weight"
# Every refusal says what to do.
REMEDY = re.compile(
    r"(; (copy|export|download|give|make|use|install|set|remove|free|convert|only|is|a shard must|the two must|heads)\b"
    r"|: (copy|export|it was changed|set)\b| must | with edgeblt|this version knows|is not supported"
    r"| need at least )"
)


@dataclass(frozen=True)
class Mutation:
    name: str
    apply: Callable[[Path, random.Random], object]
    says: str = ""  # a part of the sentence

    @property
    def seed(self) -> int:
        return sum(self.name.encode()) * 1009 + len(self.name)


def assert_refused(result_sentence: str, directory: Path, mutation: Mutation) -> None:
    assert str(directory) in result_sentence, result_sentence  # the file at fault
    assert mutation.says in result_sentence, result_sentence
    assert REMEDY.search(result_sentence), result_sentence
    assert len(result_sentence) < 1000 + 3 * len(str(directory)), result_sentence


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError("still running after 30 s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


# Damage to any file.


def truncate(name: str) -> Callable[[Path, random.Random], object]:
    def apply(directory: Path, rng: random.Random) -> None:
        os.truncate(directory / name, rng.randrange(1, (directory / name).stat().st_size))

    return apply


def flip(name: str, start: int = 0) -> Callable[[Path, random.Random], object]:
    """Change a bit; in JSON one that changes what the document says (1e-05 and 1E-05 are the same number)."""

    def apply(directory: Path, rng: random.Random) -> None:
        original = (directory / name).read_bytes()
        content = original
        while content == original or (name.endswith(".json") and same_document(content, original)):
            changed = bytearray(original)
            changed[rng.randrange(start, len(changed))] ^= 1 << rng.randrange(8)
            content = bytes(changed)
        (directory / name).write_bytes(content)

    return apply


def same_document(content: bytes, original: bytes) -> bool:
    try:
        return bool(json.loads(content) == json.loads(original))
    except ValueError:
        return False


def remove(directory: Path, name: str) -> None:
    (directory / name).unlink()


def empty(directory: Path, name: str) -> None:
    os.truncate(directory / name, 0)


def to_directory(directory: Path, name: str) -> None:
    remove(directory, name)
    (directory / name).mkdir()


def to_link_outside(directory: Path, name: str) -> None:
    outside = directory.parent / "outside"
    outside.mkdir()
    shutil.move(directory / name, outside)
    (directory / name).symlink_to(outside / name)


def to_link_nowhere(directory: Path, name: str) -> None:
    remove(directory, name)
    (directory / name).symlink_to("nowhere")


def to_pipe(directory: Path, name: str) -> None:
    remove(directory, name)
    os.mkfifo(directory / name)


REPLACEMENTS = (remove, empty, to_directory, to_link_nowhere, to_pipe)


def replace(change: Callable[[Path, str], None], name: str) -> Callable[[Path, random.Random], object]:
    return lambda directory, rng: change(directory, name)


BUNDLE_DAMAGE = [
    *(Mutation(f"truncate-{name}-{n}", truncate(name)) for name in FILES for n in range(3)),
    *(Mutation(f"flip-{name}-{n}", flip(name)) for name in FILES for n in range(8 if name == MANIFEST else 3)),
    *(
        Mutation(f"{change.__name__}-{name}", replace(change, name))
        for change in (*REPLACEMENTS, to_link_outside)
        for name in FILES
    ),  # links may lead out of a checkpoint, not of a bundle
]


def fewer(mutations: list[Mutation], kept: int) -> list[Any]:
    """Of mutations that differ by their last number alone, the first `kept` in the suite."""
    last_numbers = [mutation.name.rpartition("-")[2] for mutation in mutations]
    return mostly_slow(
        mutations,
        [
            mutation
            for mutation, number in zip(mutations, last_numbers, strict=True)
            if not number.isdigit() or int(number) < kept
        ],
    )


# Manifests that say something else, their checksum made right again.


def seal(directory: Path) -> None:
    """Give the bundle's files their hashes and the manifest its checksum."""
    document = json.loads((directory / MANIFEST).read_text())
    for name, record in document["files"].items():
        path = directory / name
        new = file_record(path)
        record.update(size=new.size, sha256=new.sha256)
    write_sealed(directory, document)


def write_sealed(directory: Path, document: dict[str, Any]) -> None:
    document.pop("checksum", None)
    document["checksum"] = checksum(document)
    (directory / MANIFEST).write_text(json.dumps(document))


def edit(*path: str, value: object) -> Callable[[Path, random.Random], object]:
    """Set the manifest's entry at `path`."""

    def apply(directory: Path, rng: random.Random) -> None:
        document = json.loads((directory / MANIFEST).read_text())
        place = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        write_sealed(directory, document)

    return apply


def drop(*path: str) -> Callable[[Path, random.Random], object]:
    def apply(directory: Path, rng: random.Random) -> None:
        document = json.loads((directory / MANIFEST).read_text())
        place = document
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        write_sealed(directory, document)

    return apply


def rename_file(new: str) -> Callable[[Path, random.Random], object]:
    """The manifest calls the patcher's graph by another name, which exists where a name can."""

    def apply(directory: Path, rng: random.Random) -> None:
        document = json.loads((directory / MANIFEST).read_text())
        document["files"][new] = document["files"].pop("patcher.onnx")
        document["stages"]["patcher"]["graph"] = new
        shutil.copy(directory / "patcher.onnx", directory.parent / "x.onnx")
        write_sealed(directory, document)

    return apply


def rename_stage(new: str) -> Callable[[Path, random.Random], object]:
    def apply(directory: Path, rng: random.Random) -> None:
        document = json.loads((directory / MANIFEST).read_text())
        document["stages"][new] = document["stages"].pop("patcher")
        write_sealed(directory, document)

    return apply


def write_manifest_bytes(content: bytes) -> Callable[[Path, random.Random], object]:
    return lambda directory, rng: (directory / MANIFEST).write_bytes(content)


NAMES = ["../x.onnx", "/etc/passwd", "a/b", "..", ".", "", MANIFEST, "a\\b", "C:x", "a\nb", "\0", "\ud800", "x" * 5000,
         "-rf", ".hidden", "\x1b[31m"]  # fmt: skip
SIZES: list[object] = [-1, 2**63, 10**30, 0, 1.5, "1", None, True, [], {}]
# Every width, count and rule, with values that would cost memory, make no sense, or contradict the graphs.
CONFIG_VALUES: list[tuple[str, object]] = [
    ("vocab_size", 10**12),
    ("vocab_size", 261),
    ("vocab_size", -1),
    ("cross_attention_k", 10**9),
    ("cross_attention_k", 0),
    ("encoder.hidden_size", 10**12),
    ("encoder.hidden_size", 2**30),
    ("encoder.hidden_size", float("nan")),
    ("global.layer_count", 10**9),
    ("global.layer_count", 1024),
    ("decoder.kv_head_count", 7),
    ("decoder.head_count", 2**31),
    ("decoder.norm_epsilon", float("inf")),
    ("decoder.norm_epsilon", -1.0),
    ("patcher.rope_theta", float("nan")),
    ("patcher.window", 10**12),
    ("patcher.window", -5),
    ("patcher.window", "512"),
    ("patcher.activation", "eval"),
    ("hashes.function_count", 10**12),
    ("hashes.group_sizes", []),
    ("hashes.group_sizes", [65]),
    ("hashes.group_sizes", [10**12]),
    ("hashes.group_sizes", {"3": 3}),
    ("hashes.vocab_size", 0),
    ("patching.rule", "guess"),
    ("patching.rule", 0),
    ("patching.threshold", float("nan")),
    ("patching.max_patch_length", 10**12),
    ("patching.patch_size", 0),
    ("patcher", None),
    ("encoder", None),
    ("encoder", []),
    ("decoder_cross_all_layers", 1),
]

BUNDLE_MANIFESTS = [
    *(Mutation(f"name-{name[:20]!a}", rename_file(name), "only plain file names are allowed") for name in NAMES),
    *(Mutation(f"size-{size}", edit("files", "README.md", "size", value=size), "README.md") for size in SIZES),
    *(
        Mutation(f"config-{field}-{value}", edit("config", *field.split("."), value=value))
        for field, value in CONFIG_VALUES
    ),
    Mutation("hash-short", edit("files", "README.md", "sha256", value="0"), "README.md an impossible size or hash"),
    Mutation("hash-case", edit("files", "README.md", "sha256", value="A" * 64), "impossible size or hash"),
    Mutation("hash-wrong", edit("files", "patcher.onnx", "sha256", value="0" * 64), "does not match its sha256"),
    Mutation("version-1", edit("format_version", value=1), "has format version 1; this edgeblt reads 2"),
    Mutation("version-true", edit("format_version", value=True), "has format version True"),
    Mutation("version-float", edit("format_version", value=2.0), "format_version is 2.0"),
    Mutation("version-text", edit("format_version", value="1"), "has format version '1'"),
    Mutation("version-missing", drop("format_version"), "has format version None"),
    Mutation("unknown-field", edit("extra", value=1), "has the unknown field 'extra'"),
    Mutation("unknown-long-field", edit("e" * 100_000, value=1), "has the unknown field 'eee"),
    Mutation("unknown-config-field", edit("config", "extra\n", value=1), r"has the unknown field 'extra\n'"),
    Mutation("missing-field", drop("config", "hashes"), "lacks the field 'hashes'"),
    Mutation("missing-target", drop("target"), "lacks the field 'target'"),
    Mutation("stage-missing", drop("stages", "global"), "has the stages"),
    Mutation("stage-renamed", rename_stage("Patcher"), "has the stages"),
    Mutation(
        "stage-extra", edit("stages", "fifth\n", value={"graph": "a", "weights": [], "weight_format": ""}), "fifth"
    ),
    Mutation("stage-no-object", edit("stages", "global", value="global.onnx"), "global must be a JSON object"),
    Mutation("stages-list", edit("stages", value=[]), "stages is []"),
    Mutation("graph-not-listed", edit("stages", "global", "graph", value="x.onnx"), "'x.onnx', which is not among"),
    Mutation("graph-outside", edit("stages", "global", "graph", value="../x"), "'../x', which is not among"),
    Mutation("weights-not-listed", edit("stages", "global", "weights", value=["x"]), "'x', which is not among"),
    Mutation(
        "weights-text", edit("stages", "global", "weights", value="global.weights"), "weights is 'global.weights'"
    ),
    Mutation("weights-none", edit("stages", "global", "weights", value=[]), "not among its weights"),
    Mutation("graph-of-another", edit("stages", "global", "graph", value="decoder.onnx"), "not among its weights"),
    Mutation("graph-is-card", edit("stages", "global", "graph", value="README.md"), "is no graph that edgeblt writes"),
    Mutation("recipe-escape", edit("recipe", value="\x1b]0;x\x07"), "which cannot be shown"),
    Mutation("format-surrogate", edit("stages", "global", "weight_format", value="\ud800"), "which cannot be shown"),
    Mutation("made-by-long", edit("made_by", value={"x": "y" * 5000}), "which cannot be shown"),
    Mutation("made-by-number", edit("made_by", value={"x": 1}), "made_by.x is 1; it must be of type str"),
    Mutation("deep-version", write_manifest_bytes(b'{"format_version":' + b"[" * 970 + b"]" * 970 + b"}")),
    *(
        Mutation(
            f"deep-{depth}", write_manifest_bytes(b'{"format_version":1,"x":' + b"[" * depth + b"]" * depth + b"}")
        )
        for depth in (400, 900, 940, 960, 980, 990, 100_000)
    ),
    Mutation("deep-objects", write_manifest_bytes(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)),
    Mutation("long-number", write_manifest_bytes(b'{"format_version":' + b"1" * 10_000 + b"}"), "is not JSON"),
    Mutation("no-object", write_manifest_bytes(b"[1]"), "is not a JSON object"),
    Mutation("no-unicode", write_manifest_bytes(b"\xff\xfe{}"), "is not JSON"),
    Mutation("too-large", write_manifest_bytes(b" " * (1 << 20) + b"{}"), "at most 1048576 bytes"),
    Mutation("checksum-missing", lambda directory, rng: drop_checksum(directory), "does not match its checksum"),
]


def drop_checksum(directory: Path) -> None:
    document = json.loads((directory / MANIFEST).read_text())
    del document["checksum"]
    (directory / MANIFEST).write_text(json.dumps(document))


# Graphs that do something else, every hash made right again: only opening them shows it.


def graph(name: str, change: Callable[[Any], object]) -> Callable[[Path, random.Random], object]:
    def apply(directory: Path, rng: random.Random) -> None:
        model = onnx.load(directory / name, load_external_data=False)
        changed = change(model)
        (directory / name).write_bytes((changed if isinstance(changed, onnx.ModelProto) else model).SerializeToString())
        seal(directory)

    return apply


def external(key: str, value: str) -> Callable[[Any], object]:
    """Change an entry of the external data of every large tensor."""

    def change(model: Any) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value

    return change


def raw_graph(content: bytes) -> Callable[[Path, random.Random], object]:
    def apply(directory: Path, rng: random.Random) -> None:
        (directory / "global.onnx").write_bytes(content)
        seal(directory)

    return apply


def reorder_location(directory: Path, rng: random.Random) -> None:
    data = (directory / "patcher.onnx").read_bytes()
    old, new = b"\x0a\x08location\x12\x0fpatcher.weights", b"\x12\x0f../x/er.weights\x0a\x08location"
    assert old in data and len(old) == len(new)
    (directory / "patcher.onnx").write_bytes(data.replace(old, new))
    seal(directory)


def beside(kind: str) -> Callable[[Path, random.Random], object]:
    """The patcher's weights are a file that the manifest does not name."""

    def apply(directory: Path, rng: random.Random) -> None:
        if kind == "link":
            shutil.copy(directory / "patcher.weights", directory.parent / "x.weights")
            (directory / "other.weights").symlink_to(directory.parent / "x.weights")
        elif kind == "pipe":
            os.mkfifo(directory / "other.weights")
        else:
            shutil.copy(directory / "patcher.weights", directory / "other.weights")
        graph("patcher.onnx", external("location", "other.weights"))(directory, rng)

    return apply


def shorter_weights(directory: Path, rng: random.Random) -> None:
    os.truncate(directory / "decoder.weights", 5000)
    seal(directory)


def weights_swapped(directory: Path, rng: random.Random) -> None:
    """Of two stages: the shorter file is too short for the longer one's graph."""
    (directory / "global.weights").rename(directory / "x")
    (directory / "patcher.weights").rename(directory / "global.weights")
    (directory / "x").rename(directory / "patcher.weights")
    seal(directory)


def rename_input(model: Any) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == model.graph.input[0].name:
                node.input[index] = "renamed"
    model.graph.input[0].name = "renamed"


def width_of_input(size: int | str) -> Callable[[Any], object]:
    def change(model: Any) -> None:
        dimension = model.graph.input[0].type.tensor_type.shape.dim[1]
        if isinstance(size, int):
            dimension.dim_value = size
        else:
            dimension.dim_param = size

    return change


def rank_of_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 1


def dtype_of_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def drop_output(model: Any) -> None:
    del model.graph.output[0]


def extra_output(model: Any) -> None:
    model.graph.node.append(helper.make_node("Identity", [model.graph.input[0].name], ["extra"]))
    model.graph.output.add().CopyFrom(model.graph.input[0])
    model.graph.output[-1].name = "extra"


def extra_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1]))


def unknown_op(model: Any) -> None:
    model.graph.node[0].op_type = "NoSuchOp"


def unknown_domain(model: Any) -> None:
    model.graph.node[0].domain = "no.such.domain"


def no_functions(model: Any) -> None:
    del model.functions[:]


def future_opset(model: Any) -> None:
    model.opset_import[0].version = 999


def future_ir(model: Any) -> None:
    model.ir_version = 99


def drop_initializers(model: Any) -> None:
    del model.graph.initializer[:]


def unsorted_nodes(model: Any) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[1:])


def huge_tensor(model: Any) -> None:
    """16 TB, by a tensor that holds nothing."""
    model.graph.initializer[0].dims[:] = [1 << 42]


def tiny_graph() -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return helper.make_model(
        helper.make_graph(nodes, "tiny", [value], [output]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


NOT_ITS_WEIGHTS, NOT_OPENED = "not among its weights", "cannot be opened by onnxruntime"
NOT_OURS = "is no graph that edgeblt writes: "
BUNDLE_GRAPHS = [
    *(
        Mutation(f"location-{value[:20]}", graph("patcher.onnx", external("location", value)), NOT_ITS_WEIGHTS)
        for value in ("../x.weights", "/etc/passwd", "/dev/zero", "a/../../x", "", ".", "none", "encoder.weights",
                      "x" * 300, "*/_ORT_MEM_ADDR_/*", "patcher.weights\n")
    ),
    *(
        Mutation(f"location-{kind}", beside(kind), "'other.weights', which is not among")
        for kind in ("link", "pipe", "file")
    ),
    Mutation("location-reordered", reorder_location, NOT_ITS_WEIGHTS),
    *(
        Mutation(f"{key}-{value}", graph("encoder.onnx", external(key, value)), NOT_OURS)
        for key, value in [("offset", "-4"), ("offset", "999999999999"), ("offset", "1e3"), ("offset", "x\ny"),
                           ("length", "-1"), ("length", "99999999999999999")]
    ),
    Mutation("weights-shorter", shorter_weights, NOT_OURS),
    Mutation("weights-swapped", weights_swapped, NOT_OURS),
    Mutation("input-renamed", graph("global.onnx", rename_input), NOT_OURS),
    Mutation("input-wider", graph("encoder.onnx", extra_input), "'extra' is no tensor that its configuration gives"),
    Mutation("input-width", graph("global.onnx", width_of_input(7))),
    Mutation("input-huge", graph("global.onnx", width_of_input(1 << 40))),
    Mutation("input-symbolic", graph("global.onnx", width_of_input("W")), NOT_OURS),
    Mutation("input-rank", graph("global.onnx", rank_of_input)),
    Mutation("input-dtype", graph("global.onnx", dtype_of_input)),
    Mutation("output-missing", graph("decoder.onnx", drop_output), "has other inputs and outputs than"),
    Mutation("output-extra", graph("decoder.onnx", extra_output), "'extra' is no tensor that its configuration gives"),
    Mutation("op-unknown", graph("encoder.onnx", unknown_op), NOT_OURS),
    Mutation("domain-unknown", graph("encoder.onnx", unknown_domain), NOT_OURS),
    Mutation("functions-missing", graph("patcher.onnx", no_functions), NOT_OPENED),
    Mutation("opset-future", graph("decoder.onnx", future_opset), NOT_OURS),
    Mutation("ir-future", graph("decoder.onnx", future_ir), NOT_OURS),
    Mutation("initializers-missing", graph("decoder.onnx", drop_initializers), NOT_OURS),
    Mutation("node-missing", graph("decoder.onnx", unsorted_nodes), NOT_OURS),
    Mutation("tensor-huge", graph("decoder.onnx", huge_tensor), NOT_OURS),
    Mutation("another-model", graph("global.onnx", lambda model: tiny_graph())),
    Mutation("empty-graph", raw_graph(b""), NOT_OPENED),
    Mutation("no-graph", raw_graph(b"not a model"), NOT_OURS),
    Mutation("zeros", raw_graph(bytes(5000)), NOT_OURS),
    Mutation("a-library", raw_graph(b"\x7fELF\x02\x01\x01" + bytes(500)), NOT_OURS),
]  # fmt: skip


@pytest.fixture
def bundle(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle[1], tmp_path / "parent" / "bundle"))


def listing(directory: Path) -> list[tuple[str, int, bytes]]:
    return [
        (str(path), path.lstat().st_mode, path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b"")
        for path in sorted(directory.rglob("*"))
    ]


def refuse_bundle(mutation: Mutation, bundle: Path, commands: list[list[object]], capture: Any) -> None:
    mutation.apply(bundle, random.Random(mutation.seed))
    before = listing(bundle.parent)
    for command in commands:
        assert_refused(sentence(run_command(capture, *command)), bundle, mutation)
    assert listing(bundle.parent) == before


@pytest.mark.parametrize("mutation", fewer(BUNDLE_DAMAGE, 1), ids=lambda mutation: mutation.name)
def test_damaged_bundles(mutation: Mutation, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands: list[list[object]] = [["inspect", bundle, "--verify"], ["generate", bundle, "hello", "--verify"]]
    if "flip" not in mutation.name or mutation.name.split("-")[1] in (MANIFEST, *GRAPHS):
        commands.append(["generate", bundle, "hello"])  # sizes, graphs and the manifest are checked without being asked
    refuse_bundle(mutation, bundle, commands, capfd)


@pytest.mark.parametrize("mutation", BUNDLE_MANIFESTS, ids=lambda mutation: mutation.name)
def test_hostile_manifests(mutation: Mutation, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refuse_bundle(mutation, bundle, [["generate", bundle, "hello"]], capfd)


@pytest.mark.parametrize("mutation", BUNDLE_GRAPHS, ids=lambda mutation: mutation.name)
def test_hostile_graphs(
    mutation: Mutation, bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the native library is not used, which makes up for functions that are missing."""
    monkeypatch.setattr("edgeblt.runtime.native.register", lambda options: "the portable bodies are wanted")
    refuse_bundle(mutation, bundle, [["generate", bundle, "hello"]], capfd)


def test_the_intact_bundle_is_accepted(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The control: a copy with its hashes made anew, and its graphs written anew, works."""
    graph("patcher.onnx", lambda model: None)(bundle, random.Random(0))
    for command in (["generate", bundle, "hello", "--verify"], ["inspect", bundle, "--verify"]):
        result = run_command(capfd, *command)
        assert (result.code, result.stderr) == (0, "")


# Checkpoints.


def edit_config(path: str, value: object) -> Callable[[Path, random.Random], object]:
    def apply(directory: Path, rng: random.Random) -> None:
        document = json.loads((directory / CONFIG).read_text())
        *sections, key = path.split(".")
        place = document
        for section in sections:
            place = place[section]
        place[key] = value
        (directory / CONFIG).write_text(json.dumps(document))

    return apply


def edit_header(field: str, value: object) -> Callable[[Path, random.Random], object]:
    """One entry of the safetensors header says something else about its tensor."""

    def apply(directory: Path, rng: random.Random) -> None:
        content = (directory / SINGLE).read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:end])
        header[GATE][field] = value
        encoded = json.dumps(header).encode()
        (directory / SINGLE).write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[end:])

    return apply


def edit_tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, random.Random], object]:
    def apply(directory: Path, rng: random.Random) -> None:
        tensors = load_file(directory / SINGLE)
        tensors[GATE] = change(tensors[GATE]).contiguous()
        save_file(tensors, directory / SINGLE)

    return apply


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[-1, -1] = value
        return changed

    return change


def header_length(length: int) -> Callable[[Path, random.Random], object]:
    def apply(directory: Path, rng: random.Random) -> None:
        with (directory / SINGLE).open("r+b") as file:
            file.write(struct.pack("<Q", length))

    return apply


def write_config(content: bytes) -> Callable[[Path, random.Random], object]:
    return lambda directory, rng: (directory / CONFIG).write_bytes(content)


def point_to(shard: object) -> Callable[[Path, random.Random], object]:
    def apply(directory: Path, rng: random.Random) -> None:
        document = json.loads((directory / INDEX).read_text())
        document["weight_map"][GATE] = shard
        (directory / INDEX).write_text(json.dumps(document))

    return apply


def to_pickle(directory: Path, rng: random.Random) -> None:
    (directory / SINGLE).unlink()
    (directory / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")


def flip_header(directory: Path, rng: random.Random) -> None:
    content = bytearray((directory / SINGLE).read_bytes())
    content[rng.randrange(8 + struct.unpack("<Q", content[:8])[0])] ^= 1 << rng.randrange(8)
    (directory / SINGLE).write_bytes(content)


CHECKPOINT_VALUES: list[tuple[str, object]] = [
    ("model_type", "llama"),
    ("vocab_size", 10**12),
    ("vocab_size", 100),
    ("cross_attn_k", 10**9),
    ("encoder_config.hidden_size", 10**12),
    ("encoder_config.hidden_size", -8),
    ("encoder_config.num_attention_heads", 0),
    ("global_config.num_hidden_layers", 10**9),
    ("global_config.num_hidden_layers", 1000),
    ("decoder_config.intermediate_size", 2**31 - 1),
    ("decoder_config.rms_norm_eps", float("nan")),
    ("decoder_config.hidden_act", "__import__('os')"),
    ("patcher_config.num_key_value_heads", 2**40),
    ("patcher_config.rope_parameters", {"rope_type": "yarn"}),
    ("patching_threshold", float("inf")),
    ("patching_threshold", "high"),
    ("max_patch_length", -1),
    ("encoder_hash_byte_group_size", [10**9]),
    ("encoder_hash_byte_group_size", "3"),
    ("encoder_hash_byte_group_vocab", 10**12),
    ("encoder_hash_byte_group_nb_functions", 10**9),
    ("encoder_config", None),
]
SINGLE_CHECKPOINTS = [
    *(Mutation(f"truncate-{name}-{n}", truncate(name)) for name in (CONFIG, SINGLE) for n in range(5)),
    *(
        Mutation(f"{change.__name__}-{name}", replace(change, name))
        for change in REPLACEMENTS for name in (CONFIG, SINGLE)
    ),
    *(Mutation(f"config-{path}-{value}", edit_config(path, value)) for path, value in CHECKPOINT_VALUES),
    *(
        Mutation(f"header-{field}-{value}"[:60], edit_header(field, value), SINGLE)
        for field, value in [("dtype", "F99"), ("dtype", "I32"), ("dtype", None), ("shape", [2**62, 2**62]),
                             ("shape", [-1]), ("shape", []), ("shape", "8"), ("data_offsets", [0, 2**60]),
                             ("data_offsets", [8, 4]), ("data_offsets", [0, 0])]
    ),
    *(Mutation(f"header-length-{n}", header_length(n), SINGLE) for n in (0, 3, 2**24, 2**40, 2**63, 2**64 - 1)),
    Mutation("value-nan", edit_tensor(with_value(float("nan"))), "not finite"),
    Mutation("value-infinite", edit_tensor(with_value(float("inf"))), "not finite"),
    Mutation("tensor-shorter", edit_tensor(lambda tensor: tensor[1:]), "but config.json asks for"),
    Mutation("tensor-transposed", edit_tensor(lambda tensor: tensor.T), "but config.json asks for"),
    Mutation("tensor-scalar", edit_tensor(lambda tensor: torch.tensor(1.0)), "but config.json asks for"),
    Mutation("tensor-integers", edit_tensor(lambda tensor: tensor.int()), "is stored as I32"),
    Mutation("config-empty-object", write_config(b"{}")),
    Mutation("config-list", write_config(b"[]"), "must be a JSON object"),
    Mutation("config-deep", write_config(b"[" * 100_000), "is not valid JSON"),
    Mutation("config-deep-inside", write_config(b'{"model_type":' + b"[" * 960 + b"]" * 960 + b"}")),
    Mutation("config-no-unicode", write_config(b"\xff{}"), "is not valid JSON"),
    Mutation("pickle", to_pickle, "was not written by torch.save"),
]  # fmt: skip
SHARDED_CHECKPOINTS = [
    *(Mutation(f"truncate-{name}-{n}", truncate(name)) for name in (INDEX, *SHARDS) for n in range(2)),
    *(
        Mutation(f"{change.__name__}-{name}", replace(change, name))
        for change in REPLACEMENTS for name in (INDEX, SHARDS[1])
    ),
    *(
        Mutation(f"shard-{str(shard)[:20]!a}", point_to(shard), INDEX)
        for shard in ("../x.safetensors", "/etc/passwd", "a/x.safetensors", "..", "", "\0", "a\nx.safetensors", 3, None,
                      ["x"], "none.safetensors", "x" * 5000 + ".safetensors", "pytorch_model.bin", SHARDS[0])
    ),
]  # fmt: skip
# A changed bit of a number gives another model, not a broken one; elsewhere it is noticed.
CHECKPOINT_FLIPS = [
    *(Mutation(f"flip-{CONFIG}-{n}", flip(CONFIG)) for n in range(14)),
    *(Mutation(f"flip-header-{n}", flip_header) for n in range(14)),
    *(Mutation(f"flip-data-{n}", flip(SINGLE, start=100_000)) for n in range(6)),
]


@pytest.fixture(scope="module")
def shards(tiny_bundle: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint in two shards, the encoder in the second."""
    directory = Path(shutil.copytree(tiny_bundle[0], tmp_path_factory.mktemp("sharded") / "checkpoint"))
    tensors = load_file(directory / SINGLE)
    (directory / SINGLE).unlink()
    weight_map = {name: SHARDS["local_encoder" in name] for name in tensors}
    for shard in SHARDS:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, directory / shard)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def refuse_checkpoint(mutation: Mutation, intact: Path, parent: Path, capture: Any) -> None:
    directory = Path(shutil.copytree(intact, parent / "checkpoint"))
    mutation.apply(directory, random.Random(mutation.seed))
    (parent / "out").mkdir()
    before = listing(parent)
    said = sentence(run_command(capture, "export", directory, parent / "out" / "bundle"))
    assert_refused(said, directory, mutation)
    assert listing(parent) == before  # neither a bundle nor anything half-written


@pytest.mark.parametrize("mutation", SINGLE_CHECKPOINTS, ids=lambda mutation: mutation.name)
def test_damaged_checkpoints(
    mutation: Mutation, tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse_checkpoint(mutation, tiny_bundle[0], tmp_path / "parent", capfd)


@pytest.mark.parametrize("mutation", SHARDED_CHECKPOINTS, ids=lambda mutation: mutation.name)
def test_damaged_shards(mutation: Mutation, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refuse_checkpoint(mutation, shards, tmp_path / "parent", capfd)


@pytest.mark.parametrize("mutation", fewer(CHECKPOINT_FLIPS, 4), ids=lambda mutation: mutation.name)
def test_changed_bits_of_checkpoints(
    mutation: Mutation, tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = Path(shutil.copytree(tiny_bundle[0], tmp_path / "checkpoint"))
    mutation.apply(directory, random.Random(mutation.seed))
    result = run_command(capfd, "export", directory, tmp_path / "out" / "bundle")
    if result.code == 0:
        assert run_command(capfd, "generate", tmp_path / "out" / "bundle", "hello", "--verify").code == 0
    else:
        assert_refused(sentence(result), directory, mutation)
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_intact_shards_are_accepted(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(capfd, "export", shards, tmp_path / "bundle").code == 0


# In processes of their own.

# Runs the commands given as JSON on stdin, the first of them before and after a limit on memory is set: what the
# process has by then, and 256 MB. Prints exit codes, the peak, and all that went to stderr.
LIMITED = """
import contextlib, io, json, resource, sys
from edgeblt.cli import main
def run(arguments):
    sys.argv[1:] = arguments
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as stopped:
        return stopped.code
commands = json.load(sys.stdin)
assert run(commands[0]) == 0
pages = int(open("/proc/self/statm").read().split()[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20),) * 2)
codes = [run(arguments) for arguments in commands]
print(json.dumps([codes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def run_limited(commands: list[list[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and lines on stderr; fails if the commands needed more than a few MB beyond the first one's."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED], input=json.dumps(commands), capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    codes, kilobytes = json.loads(result.stdout)
    assert kilobytes < 100_000
    return codes, [line for line in result.stderr.splitlines() if not line.startswith("exporting ")]


def huge_vocabulary(directory: Path, rng: random.Random) -> None:
    """Manifest and graphs agree on it, as far as onnxruntime can see: buffers of 4 GB a byte. Only running shows it."""
    for name in ("patcher.onnx", "decoder.onnx"):
        model = onnx.load(directory / name, load_external_data=False)
        (output,) = (value for value in model.graph.output if value.name == "logits")
        output.type.tensor_type.shape.dim[1].dim_value = 2**30
        for node in model.graph.node:
            node.output[:] = ["narrow" if name == "logits" else name for name in node.output]
            node.input[:] = ["narrow" if name == "logits" else name for name in node.input]
        model.graph.node.extend(  # a shape that is not known before it is computed
            [
                helper.make_node("Shape", ["narrow"], ["shape"]),
                helper.make_node("Cast", ["shape"], ["shape_32"], to=TensorProto.FLOAT),
                helper.make_node("Abs", ["shape_32"], ["shape_abs"]),
                helper.make_node("Cast", ["shape_abs"], ["shape_64"], to=TensorProto.INT64),
                helper.make_node("Reshape", ["narrow", "shape_64"], ["logits"]),
            ]
        )
        (directory / name).write_bytes(model.SerializeToString())
    edit("config", "vocab_size", value=2**30)(directory, rng)
    seal(directory)


def huge_windows(directory: Path, rng: random.Random) -> None:
    """Allowed, as a window is no size of anything: caches grow with the text."""
    document = json.loads((directory / MANIFEST).read_text())
    for stage in ("patcher", "encoder", "decoder"):
        document["config"][stage]["window"] = 2**31 - 1
        model = onnx.load(directory / f"{stage}.onnx", load_external_data=False)
        attributes = [attribute for node in model.graph.node for attribute in node.attribute]
        for attribute in attributes:
            if attribute.name == "window":
                attribute.i = 2**31 - 1
        (directory / f"{stage}.onnx").write_bytes(model.SerializeToString())
    document["config"]["patching"]["max_patch_length"] = 2**31 - 1
    write_sealed(directory, document)
    seal(directory)


def test_sizes_cost_no_memory_in_bundles(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    hostile = [mutation for mutation in BUNDLE_MANIFESTS if mutation.name.startswith(("config-", "size-"))]
    hostile += [mutation for mutation in BUNDLE_GRAPHS if mutation.name.startswith(("tensor-", "input-", "length-"))]
    hostile += [Mutation("huge-vocabulary", huge_vocabulary)]
    commands, windows = [], Path(shutil.copytree(tiny_bundle[1], tmp_path / "windows"))
    huge_windows(windows, random.Random(0))
    for number, mutation in enumerate(hostile):
        directory = Path(shutil.copytree(tiny_bundle[1], tmp_path / str(number) / "bundle"))
        mutation.apply(directory, random.Random(mutation.seed))
        commands.append(["generate", str(directory), "hello"])
    intact = ["generate", str(tiny_bundle[1]), "hello"]
    codes, lines = run_limited([intact, ["generate", str(windows), "hello"], *commands])
    assert codes == [0, 0] + [2] * len(hostile)
    assert len(lines) == len(hostile) and all(line.startswith("edgeblt: ") for line in lines)
    assert "has the operator 'Abs'" in lines[-1]


def test_sizes_cost_no_memory_in_checkpoints(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    hostile = [mutation for mutation in SINGLE_CHECKPOINTS if mutation.name.startswith(("config-", "header-"))]
    commands = [["export", str(tiny_bundle[0]), str(tmp_path / "intact")], ["inspect", str(tiny_bundle[0])]]
    for number, mutation in enumerate(hostile):
        directory = Path(shutil.copytree(tiny_bundle[0], tmp_path / str(number) / "checkpoint"))
        mutation.apply(directory, random.Random(mutation.seed))
        commands.append(["export", str(directory), str(directory.with_name("bundle"))])
    codes, lines = run_limited(commands)
    assert codes == [2, 0] + [2] * len(hostile)  # the first exists the second time
    assert len(lines) == len(hostile) + 1 and all(line.startswith("edgeblt: ") for line in lines)


PROCESSES = [BUNDLE_DAMAGE[0], BUNDLE_MANIFESTS[0], BUNDLE_GRAPHS[0], BUNDLE_GRAPHS[-1]]


@pytest.mark.parametrize("mutation", PROCESSES, ids=lambda mutation: mutation.name)
def test_processes_on_bundles(mutation: Mutation, bundle: Path) -> None:
    mutation.apply(bundle, random.Random(mutation.seed))
    result = run_process("generate", bundle, "hello")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"edgeblt: ") and result.stderr.count(b"\n") == 1


def test_a_process_on_a_checkpoint(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_bundle[0], tmp_path / "checkpoint"))
    os.truncate(directory / SINGLE, 1000)
    result = run_process("export", directory, tmp_path / "bundle")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"edgeblt: ") and result.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == [directory]


def test_there_are_two_hundred_mutations() -> None:
    bundles = [*BUNDLE_DAMAGE, *BUNDLE_MANIFESTS, *BUNDLE_GRAPHS]
    checkpoints = [*SINGLE_CHECKPOINTS, *SHARDED_CHECKPOINTS]
    assert len({mutation.name for mutation in bundles}) == len(bundles) >= 120
    assert len({mutation.name for mutation in [*SINGLE_CHECKPOINTS]}) == len(SINGLE_CHECKPOINTS)
    assert len(checkpoints) >= 80
