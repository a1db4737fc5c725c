"""Byte Latent Transformers with over-encoding's n-gram tables: transformers' forward with the equations' input."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import test_exactness
import tiny_models
from batch_mixes import run_mix
from checkpoint_changes import (
    Change,
    change_only_header,
    change_start,
    changed_tensor,
    refusals,
)
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.checkpoints.transformers_config import parse_config
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import BOS, EOS, encode
from edgeblt.model import load
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.recipes.recipe import load_recipe
from overencoded_blts import LETTER, SPACE, OverEncodedBlt, over_encoded_blt, over_encoded_config
from overencoded_models import overencoded_config, overencoded_document
from sampled import mostly_slow
from test_batching import stepper_of
from test_commands import run_command

SEEDS = range(40)
WITHOUT_TABLES = next(seed for seed in SEEDS if "ngram_fix_normalize_factor" not in overencoded_document(seed))
VALUES: list[Any] = [None, -1, 0, 1, 7, 1 << 40, 1e400, "x", "0:4,", "0:99999", [], {}, True, [[]], [3, 3], "16"]


def _change_config(chance: random.Random, directory: Path) -> None:
    file = directory / "config.json"
    document = json.loads(file.read_text())
    fields = [name for name in document if name.startswith(("oe_", "ngram_", "special_token_scope", "eos"))]
    document[chance.choice(fields)] = chance.choice(VALUES)
    file.write_text(json.dumps(document))


def _change_tables(chance: random.Random, directory: Path) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    tables = {name: part for name, part in weights.items() if "ngram_embeddings" in name}
    changed_tensor(chance, tables)
    others = {name: part for name, part in weights.items() if "ngram_embeddings" not in name}
    save_file(others | tables, file)


CHANGES: list[Change] = [_change_config, change_start, _change_tables, change_only_header]


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, range(6)))
def test_any_way_of_feeding_equals_the_full_forward(seed: int, tmp_path: Path) -> None:
    """Chunks, rollbacks and forks."""
    test_exactness.test_any_way_of_feeding_equals_the_full_forward(lambda seed: over_encoded_blt(seed, tmp_path), seed)


@pytest.fixture(scope="module")
def model_and_bundle(tmp_path_factory: pytest.TempPathFactory) -> OverEncodedBlt:
    """A model with excluded ids."""
    return over_encoded_blt(10, tmp_path_factory.mktemp("overencoded"), ngram_exclude_sp_token=True)


def test_ids_that_end_a_text_cut_n_grams(model_and_bundle: OverEncodedBlt) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        ids = [rng.choice([EOS, 3, SPACE, LETTER, 200, 201]) for _ in range(150)]
        if text := model_and_bundle.maybe_text([BOS, *ids]):
            text.feed(model_and_bundle.model.session(), len(text.ids))
            return
    raise AssertionError("an entropy is too near the threshold in all texts")


def test_the_reference_computes_the_equations(model_and_bundle: OverEncodedBlt) -> None:
    """The reference of `validate` shares no line with the equations in tests."""
    ids = np.array(tiny_models.random_ids(3, 200))
    expected, starts = model_and_bundle.exact.logits(ids.tolist())
    found = model_and_bundle.reference.row(ids)
    assert np.abs(found.logits - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(found.patch_starts, starts)


@pytest.mark.parametrize("recipe", mostly_slow(["int8", "int4", "fp16"], ["int4"]))
def test_the_whole_road(
    model_and_bundle: OverEncodedBlt, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Projections are matrices as others are, and tables are stored in the recipe's format for tables."""
    source = model_and_bundle.checkpoint
    (tmp_path / "text").write_bytes(b"the cat sat on the mat, and so it goes. " * 60)
    inspected = json.loads(run_command(capfd, "inspect", source, "--json", "-").stdout)
    assert "bytes" in inspected["description"]["n-gram tables"]
    quantize = ("quantize", source, tmp_path / "quantized", "--recipe", recipe, "--calibration", tmp_path / "text")
    assert run_command(capfd, *quantize).code == 0
    assert run_command(capfd, "export", tmp_path / "quantized", tmp_path / "bundle").code == 0
    (tmp_path / "short").write_bytes(b"the cat sat on the mat. " * 9)
    validate = ("validate", tmp_path / "bundle", "--reference", source, "--text", tmp_path / "short", "--json", "-")
    results = json.loads(run_command(capfd, *validate).stdout)
    assert 0 < results["mean_kl"] < 0.5, results
    generated = run_command(capfd, "generate", tmp_path / "bundle", "the cat", "--max-new-bytes", 20)
    assert generated.code == 0
    quantized = open_checkpoint(tmp_path / "quantized")
    assert quantized.config == open_checkpoint(source).config
    assert quantized.format("encoder.hash_tables") == load_recipe(recipe).format(
        "encoder.hash_tables", quantized.shape("encoder.hash_tables")
    )
    with load(tmp_path / "bundle") as model:
        ids = np.array(tiny_models.random_ids(4, 200))
        whole = model.session().feed(ids)
        session = model.session()
        for start in range(0, 200, 7):
            assert session.feed(ids[start : start + 7]).tobytes() == whole[start : start + 7].tobytes()


@pytest.mark.parametrize("target", ["portable", "cuda"])
def test_other_targets_compute_the_same(model_and_bundle: OverEncodedBlt, target: str, tmp_path: Path) -> None:
    ids = np.array(tiny_models.random_ids(5, 300))
    expected = model_and_bundle.text(ids.tolist())
    bundle = export_bundle(model_and_bundle.checkpoint, tmp_path / "bundle", target=target).path
    share = 1e-4 if target == "portable" else 0.02
    with load(bundle, provider="cpu") as model:
        session = model.session()
        found = np.concatenate([session.feed(piece) for piece in np.split(ids, [1, 2, 9, 120, 121])])
        assert np.abs(found - expected.logits).max() <= share * np.abs(expected.logits).max()


def test_sequences_in_common_steps_are_those_alone(model_and_bundle: OverEncodedBlt) -> None:
    run_mix(model_and_bundle.model, stepper_of(model_and_bundle.model, most=4), 1, 20, is_exact=True)


def test_rarely_used_rows_can_be_left_out(model_and_bundle: OverEncodedBlt, tmp_path: Path) -> None:
    text = b"the cat sat on the mat, and so it goes. " * 60
    (tmp_path / "text").write_bytes(text)
    quantized = quantize_checkpoint(
        model_and_bundle.checkpoint, tmp_path / "quantized", "fp32", calibration=tmp_path / "text", table_hits=1.0
    )
    ids = np.append(BOS, encode(text[:200]))
    with load(export_bundle(quantized, tmp_path / "bundle").path) as model:
        found = model.session().feed(ids)
    assert open_checkpoint(quantized).shape("encoder.hash_tables") < open_checkpoint(model_and_bundle.checkpoint).shape(
        "encoder.hash_tables"
    )
    expected = model_and_bundle.model.session().feed(ids)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"oe_neighbor_num": 1}, "n-grams have up to 1 ids"),
        ({"oe_vocab_sizes": [1]}, "there must be"),
        ({"oe_vocab_sizes": ["x"]}, "it must be a list of integers"),
        ({"oe_split_num": 7}, "is not a multiple of"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"special_token_scope": "0:999"}, "give ranges of ids below 260"),
        ({"emb_neighbor_num": 17}, "differs from"),
    ],
)
def test_fields_that_cannot_be_are_one_sentence(
    model_and_bundle: OverEncodedBlt, changes: dict[str, Any], sentence: str
) -> None:
    file = model_and_bundle.checkpoint / "config.json"
    document = json.loads(file.read_text()) | changes
    if "oe_split_num" in changes:
        document |= {"oe_neighbor_num": 2, "oe_vocab_sizes": [3] * 7}
    with pytest.raises(EdgebltError, match=sentence) as error:
        parse_config(document, str(file))
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"oe_split_num": 2}, "oe_neighbor_num, oe_vocab_size_ratio (or oe_vocab_sizes)"),
        ({"emb_split_num": 2, "ngram_vocab_size_ratio": 0.5}, "oe_neighbor_num"),
        ({"emb_neighbor_num": 3, "oe_split_num": 2}, "oe_vocab_size_ratio (or oe_vocab_sizes)"),
        ({"oe_vocab_sizes": [3, 3]}, "oe_neighbor_num, oe_split_num"),
        ({"ngram_exclude_sp_token": True}, "oe_neighbor_num, oe_split_num, oe_vocab_size_ratio (or oe_vocab_sizes)"),
    ],
)
def test_a_part_of_the_fields_is_refused(fields: dict[str, Any], missing: str) -> None:
    """Such a checkpoint would be read as one without tables."""
    said = re.escape(f"config.json: n-gram tables are described by {', '.join(fields)} without {missing}; ")
    with pytest.raises(EdgebltError, match=f"^{said}.*$"):
        parse_config(over_encoded_config(0).to_dict() | fields, "config.json")
    with pytest.raises(EdgebltError, match=f"^{said}.*$"):
        overencoded_config(overencoded_document(WITHOUT_TABLES) | fields)


def test_fields_that_say_nothing_are_no_tables() -> None:
    fields = {"ngram_exclude_sp_token": False, "special_token_scope": "0:4", "oe_neighbor_num": None}
    assert overencoded_config(overencoded_document(WITHOUT_TABLES) | fields).tables is None


@pytest.mark.filterwarnings("ignore::edgeblt.errors.CheckpointNote")
@pytest.mark.parametrize("count", [24, pytest.param(500, marks=pytest.mark.slow)])
def test_changed_checkpoints_get_one_sentence(model_and_bundle: OverEncodedBlt, count: int, tmp_path: Path) -> None:
    def write(number: int, directory: Path) -> None:
        shutil.copytree(model_and_bundle.checkpoint, directory)
        (directory / "generation_config.json").unlink(missing_ok=True)

    assert refusals(CHANGES, count, tmp_path, write) > count // 3
