"""MambaByte's checkpoints as they are published, and what is refused of them in one sentence."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_changes import (
    Change,
    change_bytes,
    change_header,
    changed_tensor,
    refusals,
)
from checkpoint_oracle import assert_one_sentence
from edgeblt.errors import CheckpointNote, EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.mambabyte.names import mambabyte_shapes
from edgeblt.mambabyte.config import MambaByteConfig
from mambabyte_models import mambabyte_config, random_mambabyte, random_weights, write_mambabyte

PUBLISHED = {
    "d_model": 48, "n_layer": 2, "vocab_size": 256, "ssm_cfg": {"expand": 2}, "rms_norm": False,
    "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8, "tie_embeddings": False,
}  # fmt: skip
CONFIG = MambaByteConfig(48, 2, 96, 16, 3, 4, "layer", 1e-5, has_slots=True)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_published_checkpoint(tmp_path: Path, pickled: bool) -> None:
    weights = random_weights(CONFIG, 0)
    opened = open_checkpoint(write_mambabyte(tmp_path / "model", PUBLISHED, weights, pickled))
    assert opened.config == CONFIG and opened.notes == () and opened.unused_names() == []
    assert set(opened.files()) == {"config.json", "pytorch_model.bin" if pickled else "model.safetensors"}
    found = opened.tensor("mamba.layers.1.convolution")
    assert found.tobytes() == weights["backbone.layers.1.mixer.conv1d.weight"].numpy().tobytes()


NAMES_IN_TRAINING = {
    "backbone.embedding.weight": "mambabyte.token_embedding.weight",
    "backbone.layers.1.mixer.A_log": "mambabyte.layers.1.mixer.A_log",
    "backbone.layers.0.norm.bias": "mambabyte.layers.0.norm.bias",
    "backbone.norm_f.bias": "mambabyte.final_norm.bias",
    "lm_head.weight": "lm_head.weight",
}


def in_training(name: str) -> str:
    """The name that the training repository's modules give a published tensor, by their attributes."""
    parts = {"backbone": "mambabyte", "embedding": "token_embedding", "norm_f": "final_norm"}
    return ".".join(parts.get(part, part) for part in name.split("."))


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_the_training_repository_has_names_of_its_own(tmp_path: Path, wrapper: str) -> None:
    assert all(in_training(name) == named for name, named in NAMES_IN_TRAINING.items())
    weights = random_weights(CONFIG, 0)
    renamed = {wrapper + in_training(name): tensor for name, tensor in weights.items()}
    published = open_checkpoint(write_mambabyte(tmp_path / "published", PUBLISHED, weights))
    opened = open_checkpoint(write_mambabyte(tmp_path / "model", PUBLISHED, renamed, pickled=True))
    assert opened.unused_names() == []
    for name in mambabyte_shapes(CONFIG):
        assert opened.tensor(name).tobytes() == published.tensor(name).tobytes()
    (tmp_path / "model" / "pytorch_model.bin").rename(tmp_path / "model" / "mambabyte_353M.pt")
    with pytest.raises(EdgebltError, match=r"mambabyte_353M\.pt.* rename it to pytorch_model\.bin"):
        open_checkpoint(tmp_path / "model")
    del renamed[wrapper + "mambabyte.final_norm.bias"]
    with pytest.raises(EdgebltError, match=r"has no tensor 'mambabyte\.final_norm\.bias'"):
        open_checkpoint(write_mambabyte(tmp_path / "damaged", PUBLISHED, renamed, pickled=True))


def test_head_and_embedding_can_be_one(tmp_path: Path) -> None:
    weights = random_weights(CONFIG, 0)
    del weights["lm_head.weight"]
    opened = open_checkpoint(write_mambabyte(tmp_path / "model", PUBLISHED | {"tie_embeddings": True}, weights))
    assert (opened.tensor("mamba.head") == opened.tensor("mamba.embedding")).all()


def test_unknown_fields_are_named(tmp_path: Path) -> None:
    directory = write_mambabyte(tmp_path / "model", PUBLISHED | {"novelty": 1}, random_weights(CONFIG, 0))
    assert "novelty" in open_checkpoint(directory).notes[0]
    with pytest.raises(EdgebltError, match="novelty"):
        open_checkpoint(directory, strict=True)
    with pytest.warns(CheckpointNote, match="novelty"):
        export_bundle(directory, tmp_path / "bundle")


REFUSED: dict[str, dict[str, Any]] = {
    "d_model is 0": {"d_model": 0},
    "n_layer is true": {"n_layer": True},
    "vocab_size is 50280": {"vocab_size": 50280},
    "ssm_cfg.layer is 'Mamba2'": {"ssm_cfg": {"layer": "Mamba2"}},
    "ssm_cfg.bias is true": {"ssm_cfg": {"bias": True}},
    "attn_layer_idx is [1]": {"attn_layer_idx": [1]},
    "kernel_size is 5": {"ssm_cfg": {"d_conv": 5}},
    "state_size is 100000": {"ssm_cfg": {"d_state": 100000}},
    "layer_count is 2000000000": {"n_layer": 2000000000},
    "ssm_cfg is [1]": {"ssm_cfg": [1]},
    "dt_rank is -1": {"ssm_cfg": {"dt_rank": -1}},
    "channel_count is": {"d_model": 2000000000, "ssm_cfg": {"expand": 2000000000}},
    "has shape": {"d_model": 1 << 29},
    "has no tensor 'backbone.layers.2.": {"n_layer": 3},
}


@pytest.mark.parametrize("said", REFUSED)
def test_configurations_that_are_refused(tmp_path: Path, said: str) -> None:
    directory = write_mambabyte(tmp_path / "model", PUBLISHED | REFUSED[said], random_weights(CONFIG, 0))
    with pytest.raises(EdgebltError) as caught:
        open_checkpoint(directory)
    assert_one_sentence(str(caught.value))
    assert said.partition(" is ")[0].rpartition(".")[2] in str(caught.value)


def test_hash_tables_cannot_be_pruned_where_there_are_none(tmp_path: Path) -> None:
    directory = write_mambabyte(tmp_path / "model", PUBLISHED, random_weights(CONFIG, 0))
    with pytest.raises(EdgebltError, match="has no hash tables"):
        export_bundle(directory, tmp_path / "bundle", table_hits=0.9)


# Checkpoints changed at random: a sentence, or a bundle.


def _change_config(chance: random.Random, directory: Path) -> None:
    file = directory / "config.json"
    document = json.loads(file.read_text())
    where = document if chance.random() < 0.6 else document["ssm_cfg"]
    name = chance.choice([*where, "d_state", "d_conv", "dt_rank", "rms_norm"])
    where[name] = chance.choice([None, -1, 0, 1, 7, 1 << 40, 1e400, "x", [], {}, True, [[]], "16"])
    if chance.random() < 0.1:
        del document[chance.choice(list(document))]
    file.write_text(json.dumps(document))


def _change_bytes(chance: random.Random, directory: Path) -> None:
    change_bytes(chance, directory, reach=6000)


def _change_tensors(chance: random.Random, directory: Path) -> None:
    weights = random_weights(CONFIG, 0)
    found = changed_tensor(chance, weights)
    for file in directory.iterdir():
        file.unlink()
    write_mambabyte(directory, PUBLISHED, weights, pickled=chance.random() < 0.5 and found.dtype == torch.float32)


def _change_header(chance: random.Random, directory: Path) -> None:
    file = directory / "model.safetensors"
    if file.exists():
        change_header(chance, file)
    else:
        _change_bytes(chance, directory)


CHANGES: list[Change] = [_change_config, _change_bytes, _change_tensors, _change_header]


@pytest.mark.filterwarnings("ignore::edgeblt.errors.CheckpointNote")
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_changed_checkpoints_get_one_sentence(tmp_path: Path, count: int) -> None:
    def write(number: int, directory: Path) -> None:
        write_mambabyte(directory, PUBLISHED, random_weights(CONFIG, 0), pickled=number % 2 == 1)

    assert refusals(CHANGES, count, tmp_path, write) > count // 2


def test_random_configurations_are_read_as_written(tmp_path: Path) -> None:
    for seed in range(5):
        assert open_checkpoint(random_mambabyte(tmp_path / str(seed), seed)).config == mambabyte_config(seed)[0]
