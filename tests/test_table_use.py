"""Hash tables without the rows a text does not use: which are kept, and what is left of the model."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import tiny_models
from checkpoint_oracle import assert_one_sentence
from conftest import tiny_oracle
from edgeblt.bundle.config import HashConfig, ModelConfig
from edgeblt.bundle.hashing import PRIMES
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import BOS
from edgeblt.model import load
from edgeblt.quant.calibration.table_use import count_hits, rows_worth_keeping
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.recipes.recipe import HASH_TABLES
from sampled import mostly_slow

RECIPES = {
    "fp16": '[tables]\nformat = "fp16"',
    "int8": '[tables]\nformat = "int8"\nblock_size = 16',
    "int4": '[tables]\nformat = "int4"\nsymmetric = true\n[decoder]\nformat = "int8"',
    "gptq": '[tables]\nformat = "int4"\n[encoder]\nformat = "int4"\nmethod = "gptq"',
}
SEED = 10


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_model(tiny_oracle(SEED), tmp_path_factory.mktemp("original") / "checkpoint")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(bytes(id - 4 for id in tiny_models.random_ids(7, 2500)[1:]))
    return path


def recipe(tmp_path: Path, name: str) -> Path:
    path = tmp_path / f"{name}.toml"
    path.write_text(RECIPES[name])
    return path


def hits_one_by_one(text: bytes, config: ModelConfig) -> NDArray[np.int64]:
    """The definition, in Python's integers."""
    hashes, ids = config.hashes, [BOS, *(byte + 4 for byte in text)]
    assert isinstance(hashes, HashConfig)
    hits = np.zeros(hashes.table_count * hashes.vocab_size, np.int64)
    tables = [(PRIMES[function], size) for function in range(hashes.function_count) for size in hashes.group_sizes]
    for position in range(len(ids)):
        for table, (prime, size) in enumerate(tables):
            window = [ids[at] if at >= 0 else 0 for at in range(position - size + 1, position + 1)]
            value = sum(id * prime**power for power, id in enumerate(window))
            wrapped = (value + (1 << 63)) % (1 << 64) - (1 << 63)
            hits[table * hashes.vocab_size + wrapped % hashes.vocab_size] += 1
    return hits


@pytest.mark.parametrize("at_a_time", [1, 7, 100, 1 << 16])
def test_hits_are_counted(original: Path, text: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    config, read = open_checkpoint(original).config, text.read_bytes()[:300]
    monkeypatch.setattr("edgeblt.quant.calibration.table_use.AT_A_TIME", at_a_time)
    np.testing.assert_array_equal(count_hits(read, config), hits_one_by_one(read, config))


counts = arrays.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 9))


@given(hits=counts.filter(lambda hits: bool(hits.any())), share=st.floats(0.01, 1))
def test_the_fewest_rows_that_carry_the_share(hits: NDArray[np.int64], share: float) -> None:
    kept = rows_worth_keeping(hits, share)
    assert (hits[kept] > 0).all()
    assert hits[kept].sum() >= share * hits.sum() - 1e-9
    assert hits[kept].sum() - hits[kept].min() < share * hits.sum()  # none could be left out
    assert kept.all() or hits[~kept].max() <= hits[kept].min()


def zeroed(original: Path, path: Path, kept: NDArray[np.bool_]) -> Path:
    """The same checkpoint with zeros in the other rows."""
    path.mkdir()
    (path / "config.json").write_bytes((original / "config.json").read_bytes())
    tensors = load_file(original / "model.safetensors")
    tensors["model.encoder_hash_tok_embedding.weight"][~kept] = 0
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("name", "share"),
    mostly_slow(
        itertools.product(RECIPES, (1.0, 0.7, 0.05)), [("fp16", 1.0), ("int8", 0.05), ("int4", 0.7), ("gptq", 0.7)]
    ),
)
def test_what_is_left_computes_as_zeros_would(
    original: Path, text: Path, tmp_path: Path, name: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeblt.export.graphs.weight_source.AT_A_TIME", 1000)  # many pieces
    hits = count_hits(text.read_bytes(), open_checkpoint(original).config)
    kept = rows_worth_keeping(hits, share)
    pruned = quantize_checkpoint(original, tmp_path / "pruned", recipe(tmp_path, name), text, table_hits=share)
    opened = open_checkpoint(pruned)
    assert opened.shape(HASH_TABLES) == (1 + int(kept.sum()), opened.config.encoder.hidden_size)
    assert not opened.rows(HASH_TABLES, 0, 1).any()
    bundle = export_bundle(pruned, tmp_path / "bundle").path
    ids = [BOS, *(byte + 4 for byte in b"some other text, and " + text.read_bytes()[:200])]
    logits = load(bundle).session().feed(ids)
    if name == "gptq":  # its calibration sees the exact model beside, which has no zeros
        assert np.isfinite(logits).all()
        return
    other = quantize_checkpoint(zeroed(original, tmp_path / "zeroed", kept), tmp_path / "same", recipe(tmp_path, name))
    whole = export_bundle(other, tmp_path / "expected").path
    # The kernel of a whole table reads rows in float32; the lookup of one with rows left out rounds them to float16,
    # and such differences move inputs of later products to the next of their 255 steps.
    np.testing.assert_allclose(logits, load(whole).session().feed(ids), atol=0.25)
    monkeypatch.setattr("edgeblt.runtime.native.register", lambda options: "the portable bodies are wanted")
    np.testing.assert_array_equal(load(bundle).session().feed(ids), load(whole).session().feed(ids))


def test_the_record_says_so(original: Path, text: Path, tmp_path: Path) -> None:
    path = quantize_checkpoint(original, tmp_path / "out", recipe(tmp_path, "int8"), text, table_hits=0.7)
    record = json.loads((path / "config.json").read_text())["compression"]
    stored = load_file(path / "model.safetensors")
    assert record["recipe"]["table_hits"] == 0.7 and record["calibration"].startswith("text, 2499 bytes")
    assert record["table_rows"] == len(stored["encoder.hash_tables.codes"])
    assert stored["encoder.hash_tables.index"].dtype == np.int32
    # Relative error of the tables, with what was dropped.
    exact = load_file(original / "model.safetensors")["model.encoder_hash_tok_embedding.weight"].astype(np.float64)
    opened = open_checkpoint(path)
    index = opened.row_index(HASH_TABLES)
    assert index is not None
    restored = opened.tensor(HASH_TABLES)[index]
    expected = np.sqrt(np.square(restored - exact).sum() / np.square(exact).sum())
    assert record["relative_error"]["tables"] == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be(original: Path, text: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.write_bytes(b"")
    for share in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(EdgebltError, match=r"table_hits is .* above 0 and at most 1") as refused:
            quantize_checkpoint(original, out, recipe(tmp_path, "int8"), text, table_hits=share)
        assert_one_sentence(str(refused.value))
    own = tmp_path / "own.toml"
    own.write_text("table_hits = 0.9\n" + RECIPES["int8"])
    assert open_checkpoint(quantize_checkpoint(original, out, own, text)).record


@pytest.mark.parametrize(
    ("change", "said"),
    [("index", "points outside the table"), ("rows", "table_rows is 100000, of"), ("missing", "should be I32")],
)
def test_damage(original: Path, text: Path, tmp_path: Path, change: str, said: str) -> None:
    path = quantize_checkpoint(original, tmp_path / "out", recipe(tmp_path, "int8"), text, table_hits=0.7)
    stored, document = load_file(path / "model.safetensors"), json.loads((path / "config.json").read_text())
    if change == "index":
        stored["encoder.hash_tables.index"][5] = -1
    elif change == "rows":
        document["compression"]["table_rows"] = 100_000
    else:
        del stored["encoder.hash_tables.index"]
    save_file(stored, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(document))
    with pytest.raises(EdgebltError, match=said) as refused:
        export_bundle(path, tmp_path / "bundle")
    assert_one_sentence(str(refused.value))
    assert not (tmp_path / "bundle").exists()
