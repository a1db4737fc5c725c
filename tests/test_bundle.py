"""A bundle on disk: the manifest's bytes, what opening checks, what export writes, and that it appears whole or not."""

import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import defs
from rich.filesize import decimal

from conftest import default_signals
from edgeblt.bundle.config import HashConfig, ModelConfig, PatchingRule, Rule, TransformerConfig
from edgeblt.bundle.contract import STAGES, CacheSpec, StageContract, TensorSpec, stage_contracts
from edgeblt.bundle.manifest import Bundle, FileRecord, Manifest, StageRecord, file_record, open_bundle, write_manifest
from edgeblt.errors import EdgebltError
from edgeblt.export import export_bundle as export_module
from edgeblt.export.export_bundle import export_bundle
from edgeblt.model import load

STACK = TransformerConfig(8, 1, 2, 1, 12, 1e-5, 10000.0, None)
CONFIG = ModelConfig(260, 1, None, STACK, STACK, STACK, False, HashConfig(1, (3,), 7), PatchingRule(Rule.BYTE))
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

# A manifest's document, canonical: keys sorted, no spaces.
STACK_JSON = (
    '{"activation":"silu","head_count":2,"hidden_size":8,"intermediate_size":12,"kv_head_count":1,"layer_count":1,'
    '"norm_epsilon":1e-05,"rope_theta":10000.0,"window":null}'
)
CANONICAL = (
    (
        '{"config":{"cross_attention_k":1,"decoder":@,"decoder_cross_all_layers":false,"encoder":@,"global":@,'
        '"hashes":{"function_count":1,"group_sizes":[3],"vocab_size":7},"patcher":null,'
        '"patching":{"max_patch_length":null,"patch_size":1,"rule":"byte","threshold":0.0,"threshold_add":0.0},'
        '"vocab_size":260},'
        '"files":{"a.onnx":{"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}},'
        '"format_version":2,"kv_cache":"fp32","made_by":{"edgeblt":"0.1.0"},"name":"\\u00e4","recipe":"fp32",'
        '"stages":{"decoder":$,"encoder":$,"global":$,"patcher":$},"target":"cpu"}'
    )
    .replace("@", STACK_JSON)
    .replace("$", '{"graph":"a.onnx","weight_format":"fp32","weights":[]}')
)
CHECKSUM = "4e6c65bb0152bca6f78e50d3792f6f239f39b96809cee52de07c9a630fcdca83"


def small_manifest() -> Manifest:
    stages: dict[str, StageRecord] = {stage: StageRecord("a.onnx", (), "fp32") for stage in STAGES}
    return Manifest(2, "ä", "cpu", "fp32", "fp32", CONFIG, stages, {"a.onnx": FileRecord(0, EMPTY_SHA256)},
                    {"edgeblt": "0.1.0"})  # fmt: skip


@pytest.fixture
def bundle(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle[1], tmp_path / "bundle"))


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def refusal(path: Path, verify: bool = False) -> str:
    with pytest.raises(EdgebltError) as caught:
        open_bundle(path, verify)
    return str(caught.value)


# The manifest.


def test_the_checksum_of_a_literal_document(tmp_path: Path) -> None:
    write_manifest(tmp_path, small_manifest())
    written = (tmp_path / "bundle.json").read_bytes()
    assert hashlib.sha256(CANONICAL.encode()).hexdigest() == CHECKSUM
    assert written.startswith(b'{\n  "format_version": 2,\n  "name": "\\u00e4",\n  "target": "cpu",\n')
    assert written.endswith(f'\n  "checksum": "{CHECKSUM}"\n}}\n'.encode())
    assert json.loads(written) == json.loads(CANONICAL) | {"checksum": CHECKSUM}


def test_the_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, small_manifest())
    (tmp_path / "a.onnx").write_bytes(b"")
    bundle = open_bundle(str(tmp_path), verify=True)
    assert bundle == Bundle(tmp_path, small_manifest())
    assert bundle.size == 0


def test_another_layout_of_the_same_document_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    (tmp_path / "bundle.json").write_text(f'\n{{"checksum":"{CHECKSUM}",{CANONICAL[1:]}')
    assert open_bundle(tmp_path).manifest == small_manifest()


def test_file_record(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_record(tmp_path / "file") == FileRecord(3, digest)


def test_another_format_version(bundle: Path) -> None:
    """Said before anything else in the document is looked at."""
    (bundle / "bundle.json").write_text('{"format_version": 7, "news": true}')
    said = refusal(bundle)
    assert re.fullmatch(
        rf"{bundle}/bundle\.json has format version 7; this edgeblt reads.* 2: export again with it", said
    )


@pytest.mark.parametrize("start", ['{"format_version":', '{"format_version":2,"x":'])
def test_no_depth_overflows(start: str, bundle: Path) -> None:
    """Somewhere in here reading it still works, but showing it or its checksum does not."""
    for depth in range(800, 1010):
        (bundle / "bundle.json").write_text(start + "[" * depth + "]" * depth + "}")
        said = refusal(bundle)
        assert "; export the bundle again" in said or "has format version" in said


# Opening.


def test_open_without_verify_reads_no_weights(bundle: Path) -> None:
    weights = bundle / "encoder.weights"
    content = bytearray(weights.read_bytes())
    content[5000] ^= 1
    weights.write_bytes(content)
    assert open_bundle(bundle).manifest.name == "bundle"
    expected = f"{weights} does not match its sha256: it was changed or damaged; copy the bundle again"
    assert refusal(bundle, verify=True) == expected


def test_open_always_reads_the_graphs(bundle: Path) -> None:
    content = bytearray((bundle / "encoder.onnx").read_bytes())
    content[5000] ^= 1
    (bundle / "encoder.onnx").write_bytes(content)
    assert refusal(bundle).startswith(f"{bundle / 'encoder.onnx'} does not match its sha256")


def test_graphs_are_hashed_whatever_they_are_called(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    (bundle / "encoder.onnx").rename(bundle / "encoder.bin")
    stages = manifest.stages | {"encoder": StageRecord("encoder.bin", ("encoder.weights",), "fp32")}
    files = {name.replace("encoder.onnx", "encoder.bin"): record for name, record in manifest.files.items()}
    write_manifest(bundle, Manifest(**(vars(manifest) | {"stages": stages, "files": files})))
    assert load(bundle).generate("x", 1) is not None
    content = bytearray((bundle / "encoder.bin").read_bytes())
    content[5000] ^= 1
    (bundle / "encoder.bin").write_bytes(content)
    assert refusal(bundle).startswith(f"{bundle / 'encoder.bin'} does not match its sha256")


def test_sizes_add_up(bundle: Path) -> None:
    assert open_bundle(bundle).size == sum(
        len(data) for name, data in contents(bundle).items() if name != "bundle.json"
    )


def test_other_files_beside_it_do_no_harm(bundle: Path) -> None:
    (bundle / ".cache").mkdir()
    (bundle / "notes.txt").write_text("x")
    assert "notes.txt" not in open_bundle(bundle, verify=True).manifest.files


def test_a_bundle_can_be_moved_and_reached_by_a_link(bundle: Path, tmp_path: Path) -> None:
    expected = load(bundle).generate("x", 4)
    bundle.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to("moved")
    assert load(tmp_path / "link").generate("x", 4) == expected


# What export writes.

# The tiny model's weights, by stage and in order; those of 4 KiB and more lie in the weights file.
INITIALIZERS = {
    "patcher": (
        "embedding layers.0.attention_norm layers.0.query_key_value layers.0.output layers.0.mlp_norm "
        "layers.0.gate layers.0.up layers.0.down norm head"
    ),
    "encoder": (
        "embedding hash_tables layers.0.attention_norm layers.0.query_key_value layers.0.output layers.0.mlp_norm "
        "layers.0.gate layers.0.up layers.0.down patch_projection cross.query_norm cross.query cross.key_norm "
        "cross.key_value cross.output"
    ),
    "global": (
        "projection layers.0.attention_norm layers.0.query_key_value layers.0.output layers.0.mlp_norm "
        "layers.0.gate layers.0.up layers.0.down layers.1.attention_norm layers.1.query_key_value "
        "layers.1.output layers.1.mlp_norm layers.1.gate layers.1.up layers.1.down"
    ),
    "decoder": (
        "cross.0.query_norm cross.0.query patch_projection cross.0.key_norm cross.0.key_value cross.1.key_norm "
        "cross.1.key_value cross.2.key_norm cross.2.key_value cross.0.output layers.0.attention_norm "
        "layers.0.query_key_value layers.0.output layers.0.mlp_norm layers.0.gate layers.0.up layers.0.down "
        "cross.1.query_norm cross.1.query cross.1.output layers.1.attention_norm layers.1.query_key_value "
        "layers.1.output layers.1.mlp_norm layers.1.gate layers.1.up layers.1.down cross.2.query_norm "
        "cross.2.query cross.2.output layers.2.attention_norm layers.2.query_key_value layers.2.output "
        "layers.2.mlp_norm layers.2.gate layers.2.up layers.2.down norm head"
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_names_of_initializers_and_where_they_lie(stage: str, tiny_bundle: tuple[Path, Path]) -> None:
    model = onnx.load(tiny_bundle[1] / f"{stage}.onnx", load_external_data=False)
    found = []
    for tensor in model.graph.initializer:
        size = 4 * int(np.prod(tensor.dims, dtype=np.int64))
        external = {entry.key: entry.value for entry in tensor.external_data}
        assert bool(external) == tensor.name.startswith(f"{stage}.")  # constants are in the graph
        if external:
            assert external["location"] == f"{stage}.weights" and int(external["length"]) == size
            assert int(external["offset"]) % (4096 if size >= 4096 else 64) == 0
            found.append(tensor.name.removeprefix(f"{stage}."))
    assert found == INITIALIZERS[stage].split()


def test_the_same_checkpoint_gives_the_same_bytes(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = tiny_bundle
    assert contents(export_bundle(checkpoint, tmp_path / "a" / bundle.name).path) == contents(bundle)
    renamed = contents(export_bundle(str(checkpoint), str(tmp_path / "other")).path)
    assert {name for name in renamed if renamed[name] != contents(bundle)[name]} == {"bundle.json"}


def test_the_manifest_says_what_it_was_made_from(tiny_bundle: tuple[Path, Path]) -> None:
    checkpoint, bundle = tiny_bundle
    manifest = open_bundle(bundle).manifest
    assert (manifest.name, manifest.target, manifest.recipe) == (bundle.name, "cpu", "fp32")
    assert list(manifest.stages) == list(STAGES) and list(manifest.files) == sorted(manifest.files)
    assert set(manifest.files) | {"bundle.json"} == set(contents(bundle))
    assert manifest.made_by["torch"] and manifest.made_by["edgeblt"]
    card = (bundle / "README.md").read_text()
    config = json.loads((checkpoint / "config.json").read_text())
    assert card.startswith(f"# {checkpoint.name}, a Byte Latent Transformer for edgeblt\n")
    assert f"| encoder | 1 x {config['encoder_config']['hidden_size']}, " in card


def test_progress_ends_at_its_end(
    tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeblt.progress.FIRST_LINE_AFTER", 0.0)
    bundle = export_bundle(tiny_bundle[0], tmp_path / "bundle").path
    captured = capfd.readouterr()
    graphs = [onnx.load(bundle / f"{stage}.onnx", load_external_data=False).graph for stage in STAGES]
    tensors = [
        {entry.key: entry.value for entry in tensor.external_data} for each in graphs for tensor in each.initializer
    ]
    size = decimal(sum(int(external.get("length", 0)) for external in tensors))
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == f"exporting checkpoint: {size} of {size}, 0 s left"


# The graphs, without edgeblt.


def is_known(node: Any) -> bool:
    return node.domain != "" or defs.has(node.op_type)


def name_contrib_ops(graph: Any) -> None:
    """onnxruntime takes some of its own operators in ONNX's domain too; onnx's checker does not know them there."""
    for node in graph.node:
        node.domain = node.domain if is_known(node) else "com.microsoft"
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                name_contrib_ops(attribute.g)


@pytest.mark.parametrize("stage", STAGES)
def test_onnx_accepts_the_graphs(stage: str, tiny_bundle: tuple[Path, Path]) -> None:
    model = onnx.load(tiny_bundle[1] / f"{stage}.onnx")
    name_contrib_ops(model.graph)
    onnx.checker.check_model(model)
    assert (model.producer_name, model.graph.name) == ("edgeblt", stage)
    others = {
        "patcher": {"EntropyPatch"}, "encoder": {"HashEmbedding", "PatchAttention"}, "decoder": {"LatentAttention"},
    }  # fmt: skip
    assert {(function.domain, function.name) for function in model.functions} == {
        ("edgeblt", name) for name in {"WindowAttention"} | others.get(stage, set())
    }


def zeros(specs: tuple[TensorSpec, ...], sizes: dict[str, int]) -> dict[str, Any]:
    return {
        spec.name: np.zeros([sizes[size] if isinstance(size, str) else size for size in spec.shape], spec.dtype)
        for spec in specs
    }


def rotations(cache: CacheSpec, slots: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Slot i holds position i; a pair of neighbours turns by position / theta ** (2 * pair / rotary_dim)."""
    angles = np.zeros((slots, cache.head_dim // 2))
    for pair in range(cache.rotary_dim // 2):
        angles[:, pair] = np.arange(slots) / cache.rope_theta ** (2 * pair / cache.rotary_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def run_plainly(bundle: Path, contract: StageContract, sizes: dict[str, int], **inputs: Any) -> dict[str, Any]:
    """One run of a stage on empty caches; the outputs must be as the contract says."""
    session = onnxruntime.InferenceSession(str(bundle / f"{contract.name}.onnx"), providers=["CPUExecutionProvider"])
    feeds = zeros(contract.inputs + (contract.cache.specs("past") if contract.cache else ()), sizes)
    assert inputs.keys() <= feeds.keys()
    if contract.cache:
        feeds["cosines"], feeds["sines"] = rotations(contract.cache, sizes["C"])
    for name, value in inputs.items():
        feeds[name] = np.asarray(value, feeds[name].dtype).reshape(feeds[name].shape)
    outputs = dict(zip((value.name for value in session.get_outputs()), session.run(None, feeds), strict=True))
    wanted = zeros(contract.all_outputs, sizes)
    assert {name: (array.dtype, array.shape) for name, array in outputs.items()} == {
        name: (array.dtype, array.shape) for name, array in wanted.items()
    }
    return outputs


def test_the_graphs_run_from_the_contract_alone(tiny_bundle: tuple[Path, Path]) -> None:
    """A whole sequence in one chunk, each stage in plain onnxruntime, gives the session's logits."""
    bundle = tiny_bundle[1]
    config = open_bundle(bundle).manifest.config
    contracts = stage_contracts(config)
    ids = np.array([1, *(byte + 4 for byte in b"It was the best of times, it was the worst of times")], np.int64)
    count = len(ids)
    sizes = {"T": count, "C": count + 3, "N": 0, "B": 1, "K": 1, "R": 0, "Q": 0, "M": 0}

    patched = run_plainly(bundle, contracts["patcher"], sizes, ids=ids, position=0, total_length=count)
    starts = patched["patch_starts"].astype(np.int64)  # whether the next byte starts a patch, which ends the open one
    completed = int(starts.sum())
    sizes |= {"P": completed, "P + 1": completed + 1, "L": completed}
    assert 3 < completed < count
    encoded = run_plainly(
        bundle, contracts["encoder"], sizes, total_length=count, patches=np.arange(completed + 1),
        windows=np.lib.stride_tricks.sliding_window_view(
            np.concatenate([np.zeros(config.hashes.context, np.int64), ids]), config.hashes.context + 1
        ),
        patch_index=np.cumsum(starts) - starts,
    )  # fmt: skip
    latents = run_plainly(
        bundle, contracts["global"], sizes | {"C": completed + 1}, patch_vectors=encoded["patch_vectors"],
        total_length=completed,
    )["latents"]  # fmt: skip
    decoded = run_plainly(
        bundle, contracts["decoder"], sizes, byte_vectors=encoded["byte_vectors"],
        total_length=count, latents=latents, latent_index=np.cumsum(starts),
    )  # fmt: skip
    np.testing.assert_allclose(decoded["logits"], load(bundle).session().feed(ids), atol=1e-4)
    assert decoded["logits"].std() > 0.5  # and they say something


# Refused exports.


def export_refusal(checkpoint: Path, bundle: Path, **options: Any) -> str:
    with pytest.raises(EdgebltError) as caught:
        export_bundle(checkpoint, bundle, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_refused_exports(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = tiny_bundle
    out = tmp_path / "out"
    said = f"{bundle} exists already; replace it with --force, or choose another name"
    assert export_refusal(checkpoint, bundle) == said
    assert export_refusal(checkpoint, out, recipe="int3").startswith(
        "there is no recipe 'int3'; use one of fp16, fp32, int4"
    )
    assert export_refusal(checkpoint, out, target="tpu") == "target 'tpu' is unknown; this version has cpu, cuda"
    assert export_refusal(bundle, out).startswith(f"{bundle} holds no config.json; give")
    assert export_refusal(tmp_path / "none", out).startswith(f"the checkpoint {tmp_path / 'none'} does not exist; give")
    file = tmp_path / "file"
    file.write_text("x")
    assert re.match(r".*/file/out cannot be written \(.*\); ", export_refusal(checkpoint, file / "out"))
    assert "cannot be written (" in export_refusal(checkpoint, Path("/proc/self/out"))
    assert "cannot be written (File name too long)" in export_refusal(checkpoint, tmp_path / ("x" * 250))
    assert list(tmp_path.iterdir()) == [file]


def test_replace_takes_only_a_bundle(tiny_bundle: tuple[Path, Path], bundle: Path, tmp_path: Path) -> None:
    (bundle / "more").write_text("x")
    assert "is not a bundle alone" in export_refusal(tiny_bundle[0], bundle, replace=True)
    (bundle / "more").unlink()
    (bundle / "bundle.json").write_text("damaged")
    assert open_bundle(export_bundle(tiny_bundle[0], bundle, replace=True).path, verify=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("x")
    assert "exists already" in export_refusal(tiny_bundle[0], other, replace=True)
    assert sorted(tmp_path.iterdir()) == [bundle, other] and contents(other) == {"precious": b"x"}


@pytest.mark.parametrize("name", ["README.md", "bundle.json"])
def test_a_full_disk(
    name: str, tiny_bundle: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = Path.write_text

    def fill(self: Path, *arguments: Any, **options: Any) -> int:
        if self.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fill)
    assert export_refusal(tiny_bundle[0], tmp_path / "out") == (
        f"{tmp_path / 'out'} cannot be written (No space left on device); free some space or choose another place"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [1000, 20_000, 100_000])
def test_a_file_size_limit(limit: int, tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    """The system itself refuses to write on, in the middle of a graph or of weights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        said = export_refusal(tiny_bundle[0], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    reason = r"\(File too large\)|\(\d+ requested and \d+ written\)"  # numpy's own words, without an errno
    assert re.fullmatch(rf"{tmp_path}/out cannot be written ({reason}); free some space or choose another place", said)
    assert list(tmp_path.iterdir()) == []


# Interrupted exports.


@pytest.mark.parametrize("place", ["file_record", "model_card", "write_manifest"])
def test_an_interruption_leaves_nothing(
    place: str, tiny_bundle: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, place, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_bundle[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Forks a process for each line "SIGNAL SHARE TARGET" on stdin. Each runs `edgeblt export` and sends itself the signal
# when it has made that share of the calls to what writes files that an export makes (counted by the
# first, which gets through).
INTERRUPTED = """
import os, signal, sys
import edgeblt.cli, edgeblt.export.export_bundle

WRITERS = ("edgeblt.export.graphs.weight_file", "edgeblt.bundle.whole_files")

def export(target, number=None, moment=None):
    '''Exit status of a process that exports; the number of calls it made goes into `counts`.'''
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = 0
    def count(frame, event, argument):
        nonlocal calls
        # In our own functions only: Python drops an exception in a destructor, whoever's it is.
        if event == "call" and frame.f_globals.get("__name__", "").startswith(WRITERS):
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), number)
    code = 70
    try:
        sys.argv[1:] = ["export", sys.argv[1], target]
        sys.setprofile(count)
        edgeblt.cli.main()
    except SystemExit as stopped:
        code = stopped.code or 0
    finally:
        sys.setprofile(None)
        sys.stdout.flush()
        if moment is None:
            os.write(pipe[1], b"%d" % calls)
        os._exit(code)

pipe = os.pipe()
checkpoint, whole = sys.argv[1:]
assert export(whole) == 0
total = int(os.read(pipe[0], 20))
for line in sys.stdin.read().splitlines():
    number, share, target = line.split(" ", 2)
    print("CODE", export(target, int(number), int(total * float(share))), flush=True)
"""


def test_a_killed_export_is_never_seen(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    """SIGKILL leaves a hidden directory at most; SIGTERM and SIGINT nothing at all."""
    rng = random.Random(0)
    runs = [(number, rng.uniform(0.02, 0.9), tmp_path / str(index) / "bundle")
            for index, number in enumerate([9, 9, 15, 2] * 3)]  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tiny_bundle[0]), str(tmp_path / "whole")],
        input="".join(f"{number} {share} {target}\n" for number, share, target in runs),
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        preexec_fn=default_signals,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    codes = [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("CODE ")]
    assert "Traceback" not in result.stderr
    partial = 0
    for (number, _, target), code in zip(runs, codes, strict=True):
        assert code == {9: -9, 15: 143, 2: 130}[number] or (code == 0 and target.exists())  # it was quicker
        left = [path for path in target.parent.iterdir() if path != target] if target.parent.exists() else []
        partial += len(left)
        assert all(number == 9 and path.name == ".bundle.partial" for path in left)
        if target.exists():  # stopped while it was shown
            open_bundle(target, verify=True)
    assert partial >= 3 and sum(target.exists() for _, _, target in runs) < 5  # the moments were well chosen
    open_bundle(tmp_path / "whole", verify=True)
    stopped = next(target for number, _, target in runs if target.parent.exists() and not target.exists())
    open_bundle(export_bundle(tiny_bundle[0], stopped).path, verify=True)  # what was left is not in the way
