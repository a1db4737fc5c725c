"""Over-encoded checkpoints that were changed at random: a bundle, or one sentence."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from checkpoint_changes import (
    Change,
    change_only_header,
    change_start,
    changed_tensor,
    refusals,
)
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from overencoded_models import write_overencoded

DOCUMENT = {
    "model_type": "overencoded", "vocab_size": 260, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "eos_token_id": 2,
    "oe_neighbor_num": 3, "oe_split_num": 2, "oe_vocab_size_ratio": 0.5, "ngram_exclude_sp_token": True,
    "special_token_scope": "0:4", "num_future_heads": 1,
}  # fmt: skip
VALUES: list[Any] = [
    None,
    -1,
    0,
    1,
    7,
    1 << 40,
    1e400,
    "x",
    "0:4,",
    "0:99999",
    [],
    {},
    True,
    [[]],
    [3, 3, 3, 3],
    "16",
    float("nan"),
]


def _change_config(chance: random.Random, directory: Path) -> None:
    file = directory / "config.json"
    document = json.loads(file.read_text())
    document[chance.choice([*document, "oe_vocab_sizes", "head_dim", "rope_scaling"])] = chance.choice(VALUES)
    if chance.random() < 0.1:
        del document[chance.choice(list(document))]
    file.write_text(json.dumps(document))


def _change_tensors(chance: random.Random, directory: Path) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    changed_tensor(chance, weights)
    save_file(weights, file)


CHANGES: list[Change] = [_change_config, change_start, _change_tensors, change_only_header]


@pytest.mark.filterwarnings("ignore::edgeblt.errors.CheckpointNote")
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_changed_checkpoints_get_one_sentence(tmp_path: Path, count: int) -> None:
    assert refusals(CHANGES, count, tmp_path, lambda _, path: write_overencoded(path, DOCUMENT, 0)) > count // 2


def test_head_and_embedding_can_be_one(tmp_path: Path) -> None:
    directory = write_overencoded(tmp_path / "model", DOCUMENT | {"tie_word_embeddings": True}, 0)
    weights = load_file(directory / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors")
    opened = open_checkpoint(directory)
    assert (opened.tensor("causal.head") == opened.tensor("causal.embedding")).all() and opened.unused_names() == []


def test_rows_of_a_published_size_cost_no_memory(tmp_path: Path) -> None:
    """Tables of billions of rows that are not there are refused before anything is made of their size."""
    directory = write_overencoded(tmp_path / "model", DOCUMENT, 0)
    document = json.loads((directory / "config.json").read_text()) | {"oe_vocab_size_ratio": 4e9}
    (directory / "config.json").write_text(json.dumps(document))
    with pytest.raises(EdgebltError, match="has shape"):
        open_checkpoint(directory)
