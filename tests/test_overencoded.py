"""Over-encoded transformers from checkpoint to bytes: exact against the equations, however a text is cut."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import edgeblt
from edgeblt.bundle.over_encoding import OverEncoding, table_rows
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.overencoded.names import stored_names
from edgeblt.export.overencoded.numerics import overencoded_logits
from edgeblt.export.reference import validate_against
from edgeblt.ids import BOS, EOS, VOCAB_SIZE, encode
from edgeblt.measure.reference import Text
from edgeblt.model import Model
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.runtime import native
from edgeblt.runtime.causal.session import CausalSession
from interruptions import InterruptAt
from overencoded_models import overencoded_config, overencoded_document, random_overencoded, write_overencoded
from sampled import mostly_slow

SEEDS = [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 40))]
TOLERANCE = 1e-4  # share of the largest logit


def random_ids(seed: int, count: int) -> np.ndarray[Any, Any]:
    """BOS, then bytes with EOS and special ids among them."""
    ids = np.random.default_rng(seed).integers(4, VOCAB_SIZE, count)
    ids[np.random.default_rng(seed + 1).random(count) < 0.05] = EOS
    ids[np.random.default_rng(seed + 2).random(count) < 0.02] = 3
    ids[np.random.default_rng(seed + 3).random(count) < 0.1] = 37
    return np.concatenate([[BOS], ids])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    document = overencoded_document(1) | {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    document |= {"oe_neighbor_num": 3, "oe_split_num": 2, "oe_vocab_sizes": [301, 303, 305, 307], "num_future_heads": 2}
    for name in ("oe_vocab_size_ratio", "emb_neighbor_num", "emb_split_num"):
        document.pop(name, None)
    return write_overencoded(tmp_path_factory.mktemp("overencoded") / "checkpoint", document, 1)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    return export_bundle(checkpoint, checkpoint.parent / "bundle").path


@pytest.fixture
def model(bundle: Path) -> Model:
    return edgeblt.load(bundle)


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_are_those_of_the_equations(seed: int, tmp_path: Path) -> None:
    """Random chunks, rollbacks and forks, each time the same bits, near the equations in float64."""
    directory, random = random_overencoded(tmp_path / "checkpoint", seed), np.random.default_rng(seed)
    opened, ids = open_checkpoint(directory), random_ids(seed, int(random.integers(60, 330)))
    wanted = overencoded_logits(opened.config, opened.tensor, ids)
    with edgeblt.load(export_bundle(directory, tmp_path / "bundle").path, threads=1) as model:
        whole = model.session().feed(ids)
        assert np.abs(whole - wanted[:, 0]).max() <= TOLERANCE * np.abs(wanted).max()
        session = model.session()
        assert isinstance(session, CausalSession)
        for _ in range(12):
            if random.integers(3) == 0:
                session.rollback(int(random.integers(0, session.position + 1)))
            if random.integers(4) == 0:
                session.fork().feed(ids[session.position :][:5])
            start, count = session.position, int(random.choice([1, 2, 7, 40, 150]))
            found = session.feed(ids[start : start + count])
            assert found.tobytes() == whole[start : start + count].tobytes()
            if len(found):
                further = session.further_logits()
                assert further.shape == (opened.config.further_count, VOCAB_SIZE)
                if len(further):
                    difference = np.abs(further - wanted[session.position - 1, 1:]).max()
                    assert difference <= TOLERANCE * np.abs(wanted).max()


def test_without_tables_it_is_transformers_llama(tmp_path: Path) -> None:
    document = overencoded_document(3) | {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}
    for name in [name for name in document if name.startswith(("oe_", "emb_", "ngram_", "special_"))]:
        del document[name]
    opened = open_checkpoint(write_overencoded(tmp_path / "checkpoint", document | {"num_future_heads": 0}, 3))
    config = opened.config.transformer
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE, hidden_size=48, intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layer_count, num_attention_heads=6, num_key_value_heads=3, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, tie_word_embeddings=False,
        )
    ).double().eval()  # fmt: skip
    weights = {}
    for name in opened.names():
        values = torch.from_numpy(opened.tensor(name)).double()
        if name.endswith((".query", ".key")):  # theirs turns halves of a head, ours adjacent pairs
            values = values.view(-1, config.head_dim // 2, 2, 48).transpose(1, 2).reshape(values.shape)
        weights[stored_names(name, 0)[0]] = values
    theirs.load_state_dict(weights)
    ids = random_ids(3, 90)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    found = overencoded_logits(opened.config, opened.tensor, ids)[:, 0]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()  # their angles are float32


def rows_one_by_one(tables: OverEncoding, ids: list[int]) -> list[list[int]]:
    """Rows by Python's integers, straight from the definition."""
    found = []
    for t, own in enumerate(ids):
        row, first = [], 0
        for table, count in enumerate(tables.rows):
            total = own
            for s in range(1, table // tables.splits + 2):
                passed = ids[max(t - s, 0) : t]
                hidden = t - s < 0 or any(id in (*tables.ends, *tables.excluded) for id in passed)
                total += 0 if hidden else ids[t - s] * (tables.vocab_size**s % count)
            row.append(first + total % count)
            first += count
        found.append(row)
    return found


def random_tables(seed: int) -> OverEncoding:
    random = np.random.default_rng(seed)
    vocab, neighbors, splits = (
        int(random.choice([260, 131_072])),
        int(random.integers(2, 7)),
        int(random.integers(1, 4)),
    )
    rows = tuple(int(2 ** random.uniform(0, 33)) for _ in range(splits * (neighbors - 1)))
    excluded = tuple(int(id) for id in random.integers(0, 40, int(random.integers(0, 5))))
    return OverEncoding(vocab, neighbors, splits, rows, bool(seed % 2), (EOS,), excluded)


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        *((seed, 1000) for seed in range(12)),
        *(pytest.param(seed, 50_000, marks=pytest.mark.slow) for seed in range(20, 40)),
    ],
)
def test_table_rows_are_those_of_pythons_integers(seed: int, count: int) -> None:
    tables, random = random_tables(seed), np.random.default_rng(seed)
    ids = random.integers(0, tables.vocab_size, count)
    ids[random.random(count) < 0.3] = random.integers(0, 40, count)[random.random(count) < 0.3][0]
    padded = np.concatenate([np.zeros(tables.context, np.int64), ids])
    windows = np.lib.stride_tricks.sliding_window_view(padded, tables.neighbors)
    assert table_rows(tables, windows).tolist() == rows_one_by_one(tables, ids.tolist())


@pytest.mark.parametrize(
    "recipe",
    mostly_slow(["int8", "int4", "sparse-int8", "nf4", "int4-small", "fp16"], keep=("int8", "int4-small")),
)
def test_the_whole_road(checkpoint: Path, recipe: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"the cat sat on the mat, and so it goes. " * 40)
    quantized = quantize_checkpoint(
        checkpoint, tmp_path / "quantized", edgeblt.Name(recipe), calibration=tmp_path / "text"
    )
    bundle = export_bundle(quantized, tmp_path / "bundle").path
    with edgeblt.load(bundle) as model:
        (report,) = validate_against(checkpoint, [model], [Text("text", b"the cat sat on the mat. " * 20)])
        assert 0 < report.mean_kl < 0.5
        assert len(model.generate(b"the cat", 40, draft="none")) <= 40


@pytest.mark.parametrize("text", ["int8", "causal=int8"])
def test_keys_and_values_in_another_format(checkpoint: Path, model: Model, text: str, tmp_path: Path) -> None:
    ids = random_ids(5, 200)
    (tmp_path / "own.toml").write_text(f'kv_cache = "{text}"')
    bundle = export_bundle(checkpoint, tmp_path / "bundle", tmp_path / "own.toml")
    assert bundle.manifest.kv_cache == "int8"
    with edgeblt.load(bundle.path) as compact:
        session, exact = compact.session(), model.session()
        difference, logits = session.feed(ids), exact.feed(ids)
        difference -= logits
        assert 0 < np.abs(difference).max() <= 0.05 * np.abs(logits).max()
        assert session.cache_bytes["causal"] < exact.cache_bytes["causal"] / 3


@pytest.mark.skipif(native.library_path() is None, reason="needs the native library")
def test_the_native_library_changes_no_decision(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(5, 200)
    with edgeblt.load(bundle) as model:
        found = model.session().feed(ids)
    monkeypatch.setenv("EDGEBLT_NATIVE", "0")
    with edgeblt.load(bundle) as model:
        assert np.abs(model.session().feed(ids) - found).max() <= 1e-5 * np.abs(found).max()


def test_saved_and_forked_sessions_go_on(model: Model, tmp_path: Path) -> None:
    ids = random_ids(6, 300)
    whole = model.session().feed(ids)
    session = model.session()
    session.feed(ids[:130])
    session.save(tmp_path / "saved")
    copy = model.session()
    copy.start_from(session.snapshot())
    for other in (session.fork(), model.restore(tmp_path / "saved"), copy):
        assert other.feed(ids[130:]).tobytes() == whole[130:].tobytes()


@pytest.mark.parametrize(("operation", "end"), [("feed", 262), ("rollback", 30)])
def test_an_interruption_at_any_line_loses_nothing(model: Model, operation: str, end: int) -> None:
    """The chunk after position 250 makes the cache larger."""
    ids, line, finished = random_ids(8, 300), 0, False
    whole = model.session().feed(ids)
    while not finished:
        line += 1
        session = model.session()
        session.feed(ids[:250])
        with InterruptAt(line):
            try:
                if operation == "feed":
                    session.feed(ids[250:end])
                else:
                    session.rollback(end)
                finished = True
            except KeyboardInterrupt:
                pass
        assert session.position in (250, end)
        position = session.position
        assert session.feed(ids[position:]).tobytes() == whole[position:].tobytes(), line
    assert line > 10


def test_drafts_do_not_change_a_text(model: Model) -> None:
    assert model.is_exact
    prompt = b"abcabcabcabc" * 8
    texts = {
        draft: model.generate(prompt, 120, draft=edgeblt.Name(draft)) for draft in ("none", "ngram", "heads", "auto")
    }
    assert len(set(texts.values())) == 1
    sampled = {
        draft: model.generate(prompt, 60, temperature=1.0, seed=3, draft=edgeblt.Name(draft))
        for draft in ("none", "heads")
    }
    assert len(set(sampled.values())) == 1


def test_one_text_and_many_score_alike(model: Model) -> None:
    texts = [b"one text", b"and another, longer one", b""]
    for text, scores in zip(texts, model.score_batch(texts), strict=True):
        np.testing.assert_allclose(scores.logprobs, model.score(text).logprobs, rtol=1e-6)


def refused(document: dict[str, Any]) -> str:
    with pytest.raises(EdgebltError) as error:
        overencoded_config(document)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": 256}, "vocab_size is 256; a model of bytes has 260 ids"),
        ({"oe_neighbor_num": 1}, "must be between 2 and 64"),
        ({"emb_neighbor_num": 4}, "differs from emb_neighbor_num"),
        ({"oe_vocab_sizes": [1]}, "there must be"),
        ({"oe_vocab_sizes": "many"}, "must be a list of integers"),
        ({"special_token_scope": "a:b", "ngram_exclude_sp_token": True}, "give ranges of ids"),
        ({"num_future_heads": 9}, "at most 8"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": 7}, "hidden_size"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(changes: dict[str, Any], sentence: str) -> None:
    document = {
        "model_type": "overencoded", "vocab_size": 260, "hidden_size": 64, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "oe_neighbor_num": 3, "oe_split_num": 2,
        "oe_vocab_size_ratio": 2.0,
    }  # fmt: skip
    assert overencoded_config(document).tables is not None
    assert sentence in refused(document | changes)


def test_a_missing_tensor_is_named(checkpoint: Path, tmp_path: Path) -> None:
    document = json.loads((checkpoint / "config.json").read_text())
    document["num_hidden_layers"] += 1
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(EdgebltError, match="has no tensor"):
        open_checkpoint(tmp_path)


def test_bytes_follow_an_empty_prompt(model: Model) -> None:
    assert model.generate(b"", 10) == model.generate("", 10)
    assert len(encode(model.generate(b"x", 10))) <= 10
