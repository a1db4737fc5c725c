"""Reading transformers' form: every tensor, and every way a directory can be wrong."""

import copy
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from checkpoint_oracle import assert_one_sentence, config_as_loaded, modules, small_config
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint, expected_shapes, open_checkpoint
from sampled import mostly_slow

HEAD, EMBEDDING = "lm_head.weight", "model.local_encoder.embed_tokens.weight"
GATE = "model.local_encoder.layers.0.mlp.gate_proj.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def assert_same_tensors(checkpoint: Checkpoint, model: Any) -> None:
    expected = dict(modules(model))
    assert checkpoint.names() == list(expected)
    for name, module in expected.items():
        tensor = checkpoint.tensor(name)
        assert tensor.dtype == np.float32 and tensor.flags.c_contiguous and tensor.flags.writeable
        np.testing.assert_array_equal(tensor, module.weight.detach().float().numpy(), err_msg=name)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.tensor([tiny_models.random_ids(0, 40)]), use_cache=False).logits
    return result


@pytest.fixture(scope="module")
def small_model() -> Any:
    return tiny_models.random_model(small_config(), 0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, small_model: Any) -> Path:
    return tiny_models.save_model(small_model, tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, small_model: Any) -> Path:
    return tiny_models.save_model(small_model, tmp_path_factory.mktemp("sharded"), max_shard_size=9000)


@pytest.fixture
def single(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "checkpoint"))


def edit_json(file: Path, edit: Callable[[Any], object]) -> None:
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / SINGLE)
    edit(weights)
    save_file(weights, directory / SINGLE)


def refusal(path: Path | str) -> str:
    with pytest.raises(EdgebltError) as caught:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            checkpoint.tensor(name)
    assert_one_sentence(str(caught.value))
    return str(caught.value)


# Right checkpoints.


def test_seeded_configs_cover_every_feature() -> None:
    found = [tiny_models.features(config) for _, config in tiny_models.seeded_configs()]
    assert len(found) >= 48
    assert [name for name in found[0] if not any(features[name] for features in found)] == []


@pytest.mark.parametrize("seed", mostly_slow(range(tiny_models.CONFIG_COUNT), tiny_models.VARIED_SEEDS))
def test_every_configuration_reads_as_its_model(seed: int, tmp_path: Path) -> None:
    config = tiny_models.random_config(seed)
    model = tiny_models.random_model(config, seed)
    checkpoint = open_checkpoint(str(tiny_models.save_model(model, tmp_path)))
    assert checkpoint.config == config_as_loaded(config)
    assert checkpoint.path == tmp_path
    assert {name: checkpoint.shape(name) for name in checkpoint.names()} == expected_shapes(checkpoint.config)
    assert_same_tensors(checkpoint, model)
    # What is left over has no effect: the logits stay when it is overwritten.
    unused, parameters = checkpoint.unused_names(), dict(model.named_parameters())
    if unused:
        before = logits(model)
        with torch.no_grad():
            for name in unused:
                parameters[name].normal_()
        assert torch.equal(logits(model), before)
    assert len(unused) + len(checkpoint.names()) == len(parameters) + config.tie_word_embeddings


def test_separate_threshold_keeps_its_distance() -> None:
    config = tiny_models.random_config(0)
    model, ids = tiny_models.random_model(config, 0), tiny_models.random_ids(0, 200)
    margin = tiny_models.separate_threshold(model, ids)
    entropies = tiny_models.reference_entropies(model, ids)[1:]
    assert margin > 1e-3
    assert (entropies - model.config.patching_threshold).abs().min() == pytest.approx(margin, rel=1e-3)
    assert 2 <= len(ids) / (2 + int((entropies > model.config.patching_threshold).sum())) <= 6


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float16", 2), ("float32", 4), ("float64", 8)])
def test_dtypes(dtype: str, size: int, small_model: Any, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_models.save_model(small_model, tmp_path, dtype=getattr(torch, dtype)))
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {dtype}
    assert checkpoint.stored_bytes("decoder.head") == 260 * 8 * size
    assert_same_tensors(checkpoint, copy.deepcopy(small_model).to(getattr(torch, dtype)))


def test_shards(sharded: Path, saved: Path, small_model: Any) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert_same_tensors(open_checkpoint(sharded), small_model)
    assert open_checkpoint(sharded).unused_names() == open_checkpoint(saved).unused_names() != []


def test_rows(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    whole = checkpoint.tensor("encoder.hash_tables")
    np.testing.assert_array_equal(checkpoint.rows("encoder.hash_tables", 5, 17), whole[5:17])
    assert whole.shape == (66, 8)


def test_a_tensor_does_not_follow_its_file(single: Path, small_model: Any) -> None:
    tensor = open_checkpoint(single).tensor("decoder.head")
    size = (single / SINGLE).stat().st_size
    with (single / SINGLE).open("r+b") as stream:  # in place: a mapping of the file would show it
        stream.write(bytes(size))
    np.testing.assert_array_equal(tensor, small_model.lm_head.weight.detach().numpy())


@pytest.mark.parametrize("stored", [{HEAD}, {EMBEDDING}, {HEAD, EMBEDDING}])
def test_tied_weights_as_transformers_loads_them(stored: set[str], tmp_path: Path) -> None:
    model = tiny_models.random_model(small_config(tie_word_embeddings=True), 0)
    tiny_models.save_model(model, tmp_path)

    def store(weights: dict[str, torch.Tensor]) -> None:
        del weights[HEAD]  # the only one of the two that transformers itself writes
        weights.update({name: torch.full((260, 8), 1.0 + (name == HEAD)) for name in stored})

    edit_weights(tmp_path, store)
    assert_same_tensors(open_checkpoint(tmp_path), type(model).from_pretrained(tmp_path))


@pytest.mark.parametrize("name", [HEAD, EMBEDDING])
def test_untied_weights_are_both_needed(name: str, single: Path) -> None:
    edit_weights(single, lambda weights: weights.pop(name))
    assert refusal(single) == (
        f"{single / SINGLE} has no tensor {name!r}, which config.json asks for; give the complete checkpoint"
    )


def test_extra_tensors_are_listed(single: Path) -> None:
    edit_weights(single, lambda weights: weights.update({"model.patcher.rotary_emb.inv_freq": torch.zeros(2).int()}))
    unused = open_checkpoint(single).unused_names()
    assert "model.patcher.rotary_emb.inv_freq" in unused
    assert "model.local_encoder.cross_attn_layers.0.q_proj.weight" in unused
    assert "model.local_encoder.cross_attn_layers.1.q_proj.weight" not in unused


def test_the_download_cache_of_hugging_face(single: Path, small_model: Any, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "0123", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(single.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert_same_tensors(open_checkpoint(snapshot), small_model)


def test_opening_needs_no_transformers() -> None:
    code = "import sys, edgeblt.export.checkpoints.checkpoint; sys.exit('transformers' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )


# Files: refused.


def test_refused_paths(tmp_path: Path, single: Path) -> None:
    assert refusal(tmp_path / "none").endswith("none does not exist; give a directory that holds config.json")
    assert refusal(single / SINGLE).endswith("is not a directory; give a directory that holds config.json")
    with pytest.raises(EdgebltError, match="does not exist"):
        open_checkpoint(str(tmp_path / ("x" * 5000)))
    (single / "config.json").unlink()
    assert refusal(single) == f"{single} holds no config.json; give the directory of a transformers checkpoint"


@pytest.mark.parametrize(
    "content", [b"{", b"", b"\xff\xfe{}", b"[" * 100_000, b'{"vocab_size": ' + b"1" * 10_000 + b"}"]
)
def test_config_that_is_not_json(content: bytes, single: Path) -> None:
    (single / "config.json").write_bytes(content)
    assert refusal(single) == f"{single / 'config.json'} is not valid JSON; download it again"


def test_config_that_is_no_object_or_too_large(single: Path) -> None:
    (single / "config.json").write_text("[1]")
    assert "config.json is [1]; it must be a JSON object" in refusal(single)
    os.truncate(single / "config.json", (16 << 20) + 1)
    assert "config.json is larger than 16 MB" in refusal(single)


def test_no_weights_and_pickles(single: Path) -> None:
    (single / SINGLE).unlink()
    assert f"holds neither {SINGLE} nor {INDEX}, nor pytorch_model.bin" in refusal(single)
    (single / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert refusal(single) == (
        f"{single / 'pytorch_model.bin'} is truncated or was not written by torch.save; download it again"
    )


def test_truncated_weights(single: Path) -> None:
    size = (single / SINGLE).stat().st_size
    os.truncate(single / SINGLE, size - 1)
    assert f"{single / SINGLE} is not a whole safetensors file (" in refusal(single)
    os.truncate(single / SINGLE, 100)
    assert "is truncated or not a safetensors file (100 bytes); download or write it again" in refusal(single)
    os.truncate(single / SINGLE, 0)
    assert "is truncated or not a safetensors file (0 bytes)" in refusal(single)


@pytest.mark.parametrize("header", [(16 << 20) + 1, 1 << 63, (1 << 64) - 1])
def test_huge_headers(header: int, single: Path) -> None:
    with (single / SINGLE).open("r+b") as stream:
        stream.write(struct.pack("<Q", header))
        stream.truncate(1 << 30)  # sparse: large enough for the first header
    assert "is truncated or not a safetensors file" in refusal(single)


def test_wrong_tensors(single: Path) -> None:
    weights = load_file(single / SINGLE)
    one_bad = torch.zeros(12, 8, dtype=torch.float64)
    bad = {
        "has shape [12, 7], but config.json asks for [12, 8]": torch.zeros(12, 7),
        "has shape [96], but config.json asks for [12, 8]": torch.zeros(96),
        "is stored as I64; give a checkpoint in bfloat16": torch.zeros(12, 8).long(),
        "is stored as F8_E4M3; give a checkpoint in": torch.zeros(12, 8).to(torch.float8_e4m3fn),
        "not finite in float32; give a checkpoint without NaN": one_bad.float().index_fill(
            0, torch.tensor(3), torch.nan
        ),
        "values that are not finite in float32": one_bad.float().index_fill(0, torch.tensor(3), torch.inf),
        "not finite in float32": one_bad.float().index_fill(0, torch.tensor(3), -torch.inf),
        "not finite in float32; give": one_bad.index_fill(0, torch.tensor(3), 1e300),
    }
    for fragment, tensor in bad.items():
        save_file(weights | {GATE: tensor}, single / SINGLE)
        message = refusal(single)
        assert fragment in message and f"{single / SINGLE}: the tensor {GATE!r}" in message


def test_weights_replaced_after_opening(single: Path) -> None:
    checkpoint = open_checkpoint(single)
    edit_weights(single, lambda weights: weights.update({GATE: torch.zeros(3, 8)}))
    with pytest.raises(EdgebltError, match=r"model\.safetensors has changed since it was opened"):
        checkpoint.tensor("encoder.layers.0.gate")
    (single / SINGLE).unlink()
    with pytest.raises(EdgebltError, match=r"cannot be read \(No such file or directory\); give a whole checkpoint"):
        checkpoint.tensor("encoder.layers.0.gate")


@pytest.mark.parametrize(
    ("shard", "fragment"),
    [
        ("../x.safetensors", "must be a plain *.safetensors name"),
        ("/etc/x.safetensors", "must be a plain *.safetensors name"),
        ("C:x.safetensors", "must be a plain *.safetensors name"),
        ("a\\x.safetensors", "must be a plain *.safetensors name"),
        ("a\nx.safetensors", "must be a plain *.safetensors name"),
        ("\0.safetensors", "must be a plain *.safetensors name"),
        ("", "must be a plain *.safetensors name"),
        ("..", "must be a plain *.safetensors name"),
        ("pytorch_model.bin", "must be a plain *.safetensors name"),
        (3, "names the shard '3'; a shard must be a plain"),
        (None, "names the shard 'None'; a shard must be a plain"),
        ("none.safetensors", "names the shard 'none.safetensors', which is missing; download it"),
        ("x" * 300 + ".safetensors", "which is missing; download it"),
    ],
)
def test_hostile_shard_names(shard: object, fragment: str, shards: Path) -> None:
    edit_json(shards / INDEX, lambda index: index["weight_map"].update({GATE: shard}))
    message = refusal(shards)
    assert message.startswith(f"{shards / INDEX} names the shard ") and fragment in message


@pytest.mark.parametrize("document", [{}, [], {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": None}])
def test_index_without_a_map(document: Any, shards: Path) -> None:
    (shards / INDEX).write_text(json.dumps(document))
    assert "has no weight_map from tensor names to file names" in refusal(shards)


def test_index_and_shards_that_disagree(shards: Path) -> None:
    document = json.loads((shards / INDEX).read_text())
    names = sorted(set(document["weight_map"].values()))
    other = next(name for name in names if name != document["weight_map"][GATE])
    edit_json(shards / INDEX, lambda index: index["weight_map"].update({GATE: other}))
    assert f"says that {other} has the tensor {GATE!r}, but it has not" in refusal(shards)
    shutil.copy(shards / names[0], shards / names[1])
    assert f"is in both {names[0]} and {names[1]}; download" in refusal(shards)


@pytest.mark.parametrize("name", ["config.json", INDEX, "model-00001-of-{count}.safetensors"])
def test_links(name: str, shards: Path, tmp_path: Path) -> None:
    file = shards / name.format(count=f"{len(list(shards.glob('*.safetensors'))):05}")
    inside, outside = shards / "inside", tmp_path / "outside"
    file.rename(inside)
    shutil.copy(inside, outside)
    for target in (Path("inside"), outside):
        file.symlink_to(target)
        assert open_checkpoint(shards).names()
        file.unlink()
    file.symlink_to("inside")
    targets = {
        "is a link that leads nowhere; download": shards / "nowhere",
        "leads nowhere": file,
        "is not a regular file": shards,
    }
    for fragment, target in targets.items():
        file.unlink()
        file.symlink_to(target)
        message = refusal(shards)
        assert message.startswith(str(file)) and fragment in message
    file.unlink()
    os.mkfifo(file)
    assert "is not a regular file; download" in refusal(shards)
