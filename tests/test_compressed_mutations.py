"""Damaged or hostile compressed checkpoints: each ends in one clear sentence and exit code 2.

What cannot be noticed (a changed bit of a number) is listed apart, and must then work or be refused, nothing else.
"""

import json
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tiny_models
from conftest import tiny_oracle
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.quant.compress import quantize_checkpoint
from test_checkpoint_mutations import edit_json
from test_commands import run_command, run_process, sentence
from test_mutations import REPLACEMENTS, Mutation, flip, listing, replace, truncate
from test_mutations import no_hang as no_hang  # a fixture

CONFIG, WEIGHTS = "config.json", "model.safetensors"
REMEDY = re.compile(r"(; |: )(quantize|give|download|write|use|copy|keep|choose) .|; it must be|this version knows ")
RECIPE = """
    [patcher]
    format = "int8"
    symmetric = true
    [encoder]
    format = "int4"
    block_size = 16
    method = "nearest"
    [global]
    format = "nf4"
    [decoder]
    format = "fp16"
    [tables]
    format = "int8"
    block_size = 16
    """
# A tensor of every kind.
INT8, INT4, NF4, FP16 = "patcher.head", "encoder.layers.0.up", "global.layers.0.query", "decoder.layers.0.down"
TABLES, VECTOR = "encoder.hash_tables", "decoder.norm"

Apply = Callable[[Path, random.Random], object]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("intact")
    (root / "recipe.toml").write_text(RECIPE)
    original = tiny_models.save_model(tiny_oracle(5), root / "original")
    return quantize_checkpoint(original, root / "compressed", root / "recipe.toml")


# config.json


def config(*path: str, value: object) -> Apply:
    """Set the entry at `path`."""

    def edit(document: Any) -> None:
        place = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return lambda directory, rng: edit_json(directory / CONFIG, edit)


def without(*path: str) -> Apply:
    def edit(document: Any) -> None:
        place = document
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return lambda directory, rng: edit_json(directory / CONFIG, edit)


def config_bytes(content: bytes) -> Apply:
    return lambda directory, rng: (directory / CONFIG).write_bytes(content)


def recipe(stage: str, **settings: object) -> Apply:
    """The record says another recipe than the tensors follow."""

    def edit(document: Any) -> None:
        document["compression"]["recipe"][stage].update(settings)

    return lambda directory, rng: edit_json(directory / CONFIG, edit)


def nested(depth: int) -> bytes:
    return b'{"edgeblt_checkpoint": 1, "config": ' + b"[" * depth + b"]" * depth + b', "compression": {}}'


CONFIGS = [
    Mutation("version-2", config("edgeblt_checkpoint", value=2), "has format version 2; this edgeblt reads 1"),
    Mutation("version-0", config("edgeblt_checkpoint", value=0), "has format version 0"),
    Mutation("version-text", config("edgeblt_checkpoint", value="1"), "has format version '1'"),
    Mutation("version-true", config("edgeblt_checkpoint", value=True), "has format version True"),
    Mutation("version-float", config("edgeblt_checkpoint", value=1.0), "has format version 1.0"),
    Mutation("version-null", config("edgeblt_checkpoint", value=None), "has format version None"),
    Mutation("version-list", config("edgeblt_checkpoint", value=[1] * 1000), "has format version [1, 1"),
    Mutation("version-missing", without("edgeblt_checkpoint"), CONFIG),
    Mutation("unknown-field", config("extra", value=1), "and nothing else"),
    Mutation("config-missing", without("config"), "must have config and compression"),
    Mutation("compression-missing", without("compression"), "must have config and compression"),
    Mutation("config-null", config("config", value=None), "config must be a JSON object, not None"),
    Mutation("config-list", config("config", value=[{}]), "config must be a JSON object"),
    Mutation("config-no-stage", without("config", "encoder"), "lacks the field 'encoder'"),
    Mutation("config-huge", config("config", "encoder", "hidden_size", value=10**12)),
    Mutation("config-large", config("config", "global", "hidden_size", value=2**20), "should be"),
    Mutation("config-layers", config("config", "decoder", "layer_count", value=1000), "should be"),
    Mutation("config-many-layers", config("config", "decoder", "layer_count", value=2**31)),
    Mutation("config-tables", config("config", "hashes", "vocab_size", value=10**15)),
    Mutation("config-vocabulary", config("config", "vocab_size", value=10**9)),
    Mutation("config-negative", config("config", "encoder", "head_count", value=-1)),
    Mutation("config-nan", config("config", "decoder", "norm_epsilon", value=float("nan"))),
    Mutation("config-activation", config("config", "decoder", "activation", value="eval")),
    Mutation("config-rule", config("config", "patching", "rule", value="guess"), "must be one of"),
    Mutation("no-patcher", config("config", "patcher", value=None)),
    Mutation("compression-text", config("compression", value="int4"), "compression must be a JSON object"),
    Mutation("recipe-text", config("compression", "recipe", value="int4"), "recipe must be a JSON object"),
    Mutation("recipe-null", config("compression", "recipe", value=None), "recipe must be a JSON object"),
    Mutation("recipe-stage-null", config("compression", "recipe", "encoder", value=None), "encoder must be"),
    Mutation("recipe-no-name", without("compression", "recipe", "name"), "lacks the field 'name'"),
    Mutation("recipe-name-number", config("compression", "recipe", "name", value=4), "name is 4"),
    Mutation("recipe-name-escape", config("compression", "recipe", "name", value="\x1b]0;x\x07"), "cannot be shown"),
    Mutation("recipe-name-long", config("compression", "recipe", "name", value="x" * 5000), "cannot be shown"),
    Mutation("source-lines", config("compression", "source", value="a\nb"), "cannot be shown"),
    Mutation("calibration-surrogate", config("compression", "calibration", value="\ud800"), "cannot be shown"),
    Mutation("made-by-name", config("compression", "made_by", value={"\x1b": "1"}), "cannot be shown"),
    Mutation("made-by-number", config("compression", "made_by", value={"torch": 2}), "made_by.torch is 2"),
    Mutation("recipe-format", recipe("encoder", format="int3"), "format is 'int3'"),
    Mutation("recipe-block", recipe("encoder", block_size=24), "block_size is 24"),
    Mutation("recipe-block-text", recipe("encoder", block_size="16"), "block_size is '16'"),
    Mutation("recipe-block-huge", recipe("encoder", block_size=10**30), "block_size is 1000"),
    Mutation("recipe-method", recipe("encoder", method="../x"), "method is '../x'"),
    Mutation("recipe-extra", recipe("encoder", code="x"), "unknown field 'code'"),
    Mutation("recipe-nf4-tables", recipe("tables", format="nf4", block_size=None), "tables: nf4 has no lookup"),
    Mutation("recipe-gptq-tables", recipe("tables", method="gptq"), "tables: gptq"),
    Mutation("fit-int8-as-int4", recipe("patcher", format="int4"), "should be"),
    Mutation("fit-int4-as-int8", recipe("encoder", format="int8"), "should be"),
    Mutation("fit-int4-as-fp16", recipe("encoder", format="fp16", block_size=None, method="least-squares"), "nothing"),
    Mutation("fit-nf4-as-int4", recipe("global", format="int4"), "should be"),
    Mutation("fit-fp16-as-fp32", recipe("decoder", format="fp32"), "should be F32"),
    Mutation("fit-fp16-as-int8", recipe("decoder", format="int8"), "not nothing"),
    Mutation("fit-zero-points", recipe("patcher", symmetric=False), "zero_points should be U8"),
    Mutation("fit-no-zero-points", recipe("encoder", symmetric=True), "zero_points does not belong to int4"),
    Mutation("fit-rows", recipe("encoder", block_size=0), "scales should be F16"),
    Mutation("fit-heads", config("compression", "recipe", "heads", value={"format": "int4"}), "should be"),
    Mutation("not-json", config_bytes(b"{'edgeblt_checkpoint': 1}"), "is not valid JSON"),
    Mutation("not-an-object", config_bytes(b"[1]"), CONFIG),
    Mutation("not-unicode", config_bytes(b'\xff\xfe{"edgeblt_checkpoint": 1}'), "is not valid JSON"),
    Mutation("only-the-mark", config_bytes(b'{"edgeblt_checkpoint": 1}'), "must have config and compression"),
    Mutation("too-large", lambda directory, rng: pad(directory / CONFIG, 1 << 20), CONFIG),
    Mutation("long-number", config_bytes(b'{"edgeblt_checkpoint": ' + b"1" * 10_000 + b"}"), "is not valid JSON"),
    *(Mutation(f"deep-{depth}", config_bytes(nested(depth)), CONFIG) for depth in (400, 900, 980, 100_000)),
]  # fmt: skip


def pad(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes() + b" " * count)


# model.safetensors


def tensors(edit: Callable[[dict[str, np.ndarray[Any, Any]]], object]) -> Apply:
    def apply(directory: Path, rng: random.Random) -> None:
        loaded = load_file(directory / WEIGHTS)
        edit(loaded)
        save_file({name: np.ascontiguousarray(array) for name, array in loaded.items()}, directory / WEIGHTS)

    return apply


def tensor(name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Apply:
    return tensors(lambda loaded: loaded.update({name: change(loaded[name])}))


def missing(name: str) -> Apply:
    return tensors(lambda loaded: loaded.pop(name))


def put(value: float) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    def change(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array = array.copy()
        array.reshape(-1)[-1] = value
        return array

    return change


def header(edit: Callable[[dict[str, Any]], object]) -> Apply:
    def apply(directory: Path, rng: random.Random) -> None:
        content = (directory / WEIGHTS).read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        document = json.loads(content[8:end])
        edit(document)
        encoded = json.dumps(document).encode()
        (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[end:])

    return apply


def claim(name: str, field: str, value: object) -> Apply:
    return header(lambda document: document[name].update({field: value}))


def header_length(length: int) -> Apply:
    def apply(directory: Path, rng: random.Random) -> None:
        content = (directory / WEIGHTS).read_bytes()
        (directory / WEIGHTS).write_bytes(struct.pack("<Q", length) + content[8:])

    return apply


PARTS = [
    f"{INT8}.codes", f"{INT8}.scales", f"{INT4}.codes", f"{INT4}.scales", f"{INT4}.zero_points", f"{NF4}.codes",
    f"{NF4}.scales", f"{TABLES}.codes", f"{TABLES}.zero_points", FP16, VECTOR,
]  # fmt: skip
NUMBERS = [f"{INT8}.scales", f"{INT4}.scales", f"{NF4}.scales", f"{TABLES}.scales", FP16, VECTOR]

TENSORS = [
    *(Mutation(f"missing-{part}", missing(part), part) for part in PARTS),
    *(Mutation(f"fewer-rows-{part}", tensor(part, lambda array: array[:-1]), part) for part in PARTS),
    *(Mutation(f"deeper-{part}", tensor(part, lambda array: array[None]), part) for part in PARTS),
    *(Mutation(f"scalar-{part}", tensor(part, lambda array: array.reshape(-1)[0]), part) for part in PARTS),
    *(Mutation(f"empty-{part}", tensor(part, lambda array: array[:0]), part) for part in PARTS),
    *(Mutation(f"float64-{part}", tensor(part, lambda array: array.astype(np.float64)), part) for part in PARTS),
    *(Mutation(f"signed-{part}", tensor(part, lambda array: array.view(np.int8)), part) for part in PARTS[:1]),
    *(
        Mutation(f"{value}-{part}", tensor(part, put(value)), part)
        for part in NUMBERS for value in (float("nan"), float("inf"))
    ),
    Mutation("twice", tensors(lambda loaded: loaded.update({INT4: loaded[VECTOR]})), f"{INT4} does not belong to"),
    Mutation("transposed", tensor(f"{INT4}.codes", lambda array: array.T), f"{INT4}.codes should be U8"),
    Mutation("renamed", tensors(lambda loaded: loaded.update({"x": loaded.pop(f"{INT4}.codes")})), f"{INT4}.codes"),
    Mutation("claim-dtype", claim(f"{INT4}.codes", "dtype", "F99")),
    Mutation("claim-same-size", claim(f"{INT4}.codes", "dtype", "I8"), f"{INT4}.codes should be U8"),
    Mutation("claim-bfloat16", claim(FP16, "dtype", "BF16"), f"{FP16} should be F16"),
    Mutation("claim-shape", claim(f"{INT4}.codes", "shape", [2**62, 2**62])),
    Mutation("claim-negative", claim(f"{INT4}.codes", "shape", [-1, 2])),
    Mutation("claim-offsets", claim(f"{INT4}.codes", "data_offsets", [0, 2**40])),
    Mutation("claim-overlap", claim(f"{INT4}.codes", "data_offsets", [0, 4])),
    Mutation("claim-nothing", claim(f"{INT4}.codes", "data_offsets", None)),
    Mutation("no-tensors", header(lambda document: document.clear())),
    Mutation("header-huge", header_length(2**63)),
    Mutation("header-long", header_length(17 << 20)),
    Mutation("header-short", header_length(10)),
    Mutation("header-none", header_length(0)),
    Mutation("data-short", lambda directory, rng: cut(directory / WEIGHTS, 1)),
    Mutation("data-long", lambda directory, rng: pad(directory / WEIGHTS, 1)),
]  # fmt: skip


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


FILES = [
    *(Mutation(f"truncate-{name}-{n}", truncate(name), name) for name in (CONFIG, WEIGHTS) for n in range(3)),
    *(
        Mutation(f"{change.__name__}-{name}", replace(change, name), name)
        for change in REPLACEMENTS for name in (CONFIG, WEIGHTS)
    ),
]  # fmt: skip


def flip_header(directory: Path, rng: random.Random) -> None:
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[rng.randrange(8 + struct.unpack("<Q", content[:8])[0])] ^= 1 << rng.randrange(8)
    (directory / WEIGHTS).write_bytes(content)


FLIPS = [
    *(Mutation(f"flip-header-{n}", flip_header) for n in range(10)),
    *(Mutation(f"flip-config-{n}", flip(CONFIG)) for n in range(10)),
    *(Mutation(f"flip-data-{n}", flip(WEIGHTS, start=20_000)) for n in range(4)),
]


def damaged(mutation: Mutation, intact: Path, parent: Path) -> Path:
    directory = Path(shutil.copytree(intact, parent / "checkpoint"))
    mutation.apply(directory, random.Random(mutation.seed))
    return directory


def assert_refused(said: str, directory: Path, mutation: Mutation) -> None:
    assert str(directory) in said and mutation.says in said, said
    assert REMEDY.search(said), said
    assert len(said) < 700 + 3 * len(str(directory)), said


@pytest.mark.parametrize("mutation", [*FILES, *CONFIGS, *TENSORS], ids=lambda mutation: mutation.name)
def test_refused(mutation: Mutation, intact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = damaged(mutation, intact, tmp_path / "parent")
    (tmp_path / "parent" / "out").mkdir()
    before = listing(tmp_path / "parent")
    said = sentence(run_command(capfd, "export", directory, tmp_path / "parent" / "out" / "bundle"))
    assert_refused(said, directory, mutation)
    assert listing(tmp_path / "parent") == before  # neither a bundle nor anything half-written


@pytest.mark.parametrize("mutation", [*FILES, *CONFIGS][::9], ids=lambda mutation: mutation.name)
def test_refused_for_showing(
    mutation: Mutation, intact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = damaged(mutation, intact, tmp_path)
    assert_refused(sentence(run_command(capfd, "inspect", directory)), directory, mutation)


@pytest.mark.parametrize("mutation", FLIPS, ids=lambda mutation: mutation.name)
def test_changed_bits(mutation: Mutation, intact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory, bundle = damaged(mutation, intact, tmp_path), tmp_path / "out" / "bundle"
    result = run_command(capfd, "export", directory, bundle)
    if result.code == 0:
        assert run_command(capfd, "generate", bundle, "hello", "--max-new-bytes", 2, "--verify").code == 0
    else:
        assert_refused(sentence(result), directory, mutation)
        assert not bundle.parent.exists() or list(bundle.parent.iterdir()) == []


def test_a_process(intact: Path, tmp_path: Path) -> None:
    directory = damaged(TENSORS[0], intact, tmp_path)
    result = run_process("export", directory, tmp_path / "bundle")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"edgeblt: ") and result.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == [directory]


def test_the_intact_one_is_accepted(intact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(capfd, "export", intact, tmp_path / "bundle").code == 0
    assert run_command(capfd, "inspect", intact).code == 0
    checkpoint = open_checkpoint(intact)
    kinds = [checkpoint.format(name).describe() for name in (INT8, INT4, NF4, FP16, VECTOR, TABLES)]
    assert kinds == ["int8, one block a row, symmetric", "int4, blocks of 16", "nf4, blocks of 64", "fp16", "fp32",
                     "int8, blocks of 16"]  # fmt: skip


def test_names_are_unique() -> None:
    mutations = [*FILES, *CONFIGS, *TENSORS]
    assert len({mutation.name for mutation in mutations}) == len(mutations) >= 150
