"""MambaByte from checkpoint to bytes: exact against the recurrence in float64, however a text is cut."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import edgeblt
from edgeblt.bundle.manifest import open_bundle
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.mambabyte.form import parse_mambabyte
from edgeblt.export.mambabyte.names import mambabyte_shapes, published_name
from edgeblt.export.mambabyte.numerics import mambabyte_logits
from edgeblt.export.reference import validate_against
from edgeblt.ids import BOS, EOS, OFFSET, encode
from edgeblt.mambabyte.config import MambaByteConfig
from edgeblt.measure.reference import Text
from edgeblt.model import Model
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.runtime import native
from interruptions import InterruptAt
from mambabyte_models import mambabyte_config, random_mambabyte, random_weights, write_mambabyte

SEEDS = [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 40))]
TOLERANCE = 1e-4  # share of the largest logit


def random_bytes(seed: int, count: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, count).astype(np.uint8).tobytes()


def ids_of(data: bytes) -> np.ndarray:
    return np.concatenate([[BOS], encode(data)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_mambabyte(tmp_path_factory.mktemp("mambabyte") / "checkpoint", 6)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    return export_bundle(checkpoint, checkpoint.parent / "bundle").path


@pytest.fixture
def model(bundle: Path) -> Model:
    return edgeblt.load(bundle)


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_are_those_of_the_recurrence(seed: int, tmp_path: Path) -> None:
    """Random chunks, rollbacks and forks, each time the same bits, near the recurrence in float64."""
    directory = random_mambabyte(tmp_path / "checkpoint", seed, pickled=bool(seed % 2))
    opened, random = open_checkpoint(directory), np.random.default_rng(seed)
    data = random_bytes(seed, int(random.integers(60, 320)))
    wanted, ids = mambabyte_logits(opened.config, opened.tensor, data), ids_of(data)
    with edgeblt.load(export_bundle(directory, tmp_path / "bundle").path, threads=1) as model:
        session = model.session()
        whole = session.feed(ids)
        assert np.abs(whole[1:, OFFSET:] - wanted).max() <= TOLERANCE * np.abs(wanted).max()
        session = model.session()
        for _ in range(12):
            if random.integers(3) == 0:
                session.rollback(int(random.integers(0, session.position + 1)))
            if random.integers(4) == 0:
                other = session.fork()
                other.feed(ids[session.position :][:5])
            start = session.position
            count = int(random.choice([1, 2, 7, 40, 150]))
            found = session.feed(ids[start : start + count])
            assert found.tobytes() == whole[start : start + count].tobytes()


@pytest.mark.parametrize("seed", [1, 3, 7])
def test_the_recurrence_is_that_of_transformers_where_norms_are_rms(seed: int) -> None:
    config, document = mambabyte_config(seed)
    if not document["rms_norm"]:
        document["rms_norm"], config = True, edgeblt_config(document)
    weights = random_weights(config, seed)
    theirs = MambaForCausalLM(
        MambaConfig(
            vocab_size=256, hidden_size=config.hidden_size, state_size=config.state_size,
            num_hidden_layers=config.layer_count, conv_kernel=config.kernel_size,
            expand=config.channel_count // config.hidden_size, time_step_rank=config.step_rank, use_bias=False,
            use_conv_bias=True, layer_norm_epsilon=config.norm_epsilon, tie_word_embeddings=False,
        )
    ).double().eval()  # fmt: skip
    renamed = {name.replace("backbone.embedding.", "backbone.embeddings."): value for name, value in weights.items()}
    theirs.load_state_dict(renamed, strict=True)
    data = random_bytes(seed, 70)
    with torch.no_grad():
        wanted = theirs(torch.tensor([list(data)]), use_cache=False).logits[0].numpy()
    by_name = canonical(config, weights)
    found = mambabyte_logits(config, by_name.__getitem__, data)
    # transformers keeps its scan in float32.
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def edgeblt_config(document: dict[str, Any]) -> MambaByteConfig:
    return parse_mambabyte(document, Path("config.json"), strict=True)[0]


def canonical(config: MambaByteConfig, weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: weights[published_name(name)].numpy() for name in mambabyte_shapes(config)}


def test_the_recurrence_in_float32_is_near_that_in_float64(checkpoint: Path) -> None:
    opened, data = open_checkpoint(checkpoint), random_bytes(0, 200)
    exact = mambabyte_logits(opened.config, opened.tensor, data)
    rounded = mambabyte_logits(opened.config, opened.tensor, data, np.float32)
    assert rounded.dtype == np.float32
    assert np.abs(exact - rounded).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("recipe", ["int8", "fp16", "sparse"])
def test_recipes_change_no_bit_by_cutting(recipe: str, tmp_path: Path) -> None:
    directory = random_mambabyte(tmp_path / "checkpoint", 4)
    file = tmp_path / "sparse.toml"
    file.write_text('[global]\nformat = "int8"\nsymmetric = true\nsparsity = "2:4"\npruning = "magnitude"\n')
    chosen = edgeblt.Name(recipe) if recipe != "sparse" else file
    ids = ids_of(random_bytes(1, 50))
    with edgeblt.load(export_bundle(directory, tmp_path / "bundle", chosen).path) as model:
        whole, session = model.session().feed(ids), model.session()
        parts = [session.feed(ids[start : start + 3]) for start in range(0, len(ids), 3)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_quantizing_with_gptq_and_exporting_what_it_wrote(tmp_path: Path) -> None:
    """The products that calibration sees are the model's: GPTQ's model is nearer to the original than rounding's."""
    config, document = mambabyte_config(6)
    document |= {"n_layer": 2, "d_model": 32, "ssm_cfg": {"expand": 2}}
    config = edgeblt_config(document)
    directory = write_mambabyte(tmp_path / "checkpoint", document, random_weights(config, 6))
    text = tmp_path / "text.txt"
    text.write_bytes(b"The quick brown fox jumps over the lazy dog. " * 60)
    rows = {}
    for method in ("gptq", "nearest"):
        recipe = tmp_path / f"{method}.toml"
        recipe.write_text(f'[global]\nformat = "int4"\nblock_size = 32\nmethod = "{method}"\n')
        compressed = quantize_checkpoint(directory, tmp_path / method, recipe, text)
        record = open_checkpoint(compressed)
        assert record.dtype("mamba.layers.0.a_log") == "float32"
        assert record.dtype("mamba.layers.0.convolution") == "float32"
        assert record.dtype("mamba.layers.0.x_proj").startswith("int4")
        with edgeblt.load(export_bundle(compressed, tmp_path / f"{method}-bundle").path) as model:
            (rows[method],) = validate_against(directory, [model], [Text("fox", text.read_bytes()[:600])])
    assert rows["gptq"].mean_kl < rows["nearest"].mean_kl
    assert rows["gptq"].reference_bits_per_byte == rows["nearest"].reference_bits_per_byte


def test_validation_of_fp32_finds_no_difference(checkpoint: Path, model: Model) -> None:
    (report,) = validate_against(checkpoint, [model], [Text("random", random_bytes(3, 500))])
    assert report.mean_kl < 1e-9 and report.top1_agreement == report.boundary_agreement == 1
    assert report.max_abs_logit_difference < 1e-3


# Sessions


def test_bos_says_nothing_of_the_byte_after_it(model: Model) -> None:
    logits = model.session().feed([BOS])
    assert logits.shape == (1, 260) and (logits[0, OFFSET:] == 0).all() and (logits[0, :OFFSET] < -1000).all()
    scores = model.score(b"ab")
    assert scores.logprobs[0] == pytest.approx(-np.log(256))
    assert scores.patch_starts.all() and (scores.entropies == 0).all()


@pytest.mark.parametrize("ids", [[BOS, BOS], [EOS], [BOS, 100, 0]])
def test_ids_that_are_no_bytes_are_refused(model: Model, ids: list[int]) -> None:
    session = model.session()
    with pytest.raises(EdgebltError, match="is no byte; this model reads bytes"):
        session.feed(ids)
    assert session.position == 0


def test_an_empty_prompt_is_refused(model: Model) -> None:
    with pytest.raises(EdgebltError, match="give a prompt of at least one byte"):
        model.generate("")
    with pytest.raises(EdgebltError, match="give a prompt of at least one byte"):
        model.generate_batch(["a", ""])
    session = model.session()
    session.feed(ids_of(b"a"))
    assert len(b"".join(model.stream("", max_new_bytes=3, session=session))) == 3


def test_the_state_does_not_grow(model: Model) -> None:
    session = model.session()
    sizes = []
    for id in ids_of(random_bytes(5, 400)):
        session.feed([id])
        sizes.append(sum(session.cache_bytes.values()))
    one = 4 * model.bundle.manifest.config.state_elements
    assert max(sizes) == sizes[-1] == 4 * one  # now, before, and two kept ones
    assert sizes[100] == sizes[-1]


def test_rolling_back_reads_little_again(model: Model) -> None:
    session, ids = model.session(), ids_of(random_bytes(5, 400))
    for id in ids:
        session.feed([id])
    before = session.work["mamba"].positions
    for back in (1, 5, 32):
        session.rollback(len(ids) - back)
        session.feed(ids[len(ids) - back :])
    assert session.work["mamba"].positions - before <= 3 * 64 + 1 + 5 + 32


@pytest.mark.parametrize("position", [0, 1, 2, 63, 64, 65, 200])
def test_saved_and_restored(model: Model, tmp_path: Path, position: int) -> None:
    ids = ids_of(random_bytes(2, 220))
    session = model.session()
    session.feed(ids)
    session.rollback(position)
    session.save(tmp_path / "state")
    restored = model.restore(tmp_path / "state")
    assert restored.position == position and restored.ids.tolist() == ids[:position].tolist()
    assert restored.feed(ids[position:]).tobytes() == session.feed(ids[position:]).tobytes()


def test_a_saved_session_of_other_states_is_refused(model: Model, tmp_path: Path) -> None:
    session = model.session()
    session.feed(ids_of(b"abc"))
    session.save(tmp_path / "state")
    content = bytearray((tmp_path / "state").read_bytes())
    content[-3] ^= 0xFF
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(EdgebltError):
        model.restore(tmp_path / "state")


def test_drafts_batches_and_kept_prefixes_change_no_byte(bundle: Path) -> None:
    prompt = b"abcabcabcabc" * 12
    with edgeblt.load(bundle, prefix_cache_bytes=0) as plain:
        assert plain.is_exact
        wanted = plain.generate(prompt, 60, draft="none")
    with edgeblt.load(bundle) as model:
        for _ in range(2):  # the second starts from a kept state
            assert model.generate(prompt, 60, draft="ngram") == wanted
        assert model.prefix_cache.statistics.hits == 1
        assert model.generate_batch([prompt, b"x", prompt], max_new_bytes=60)[::2] == [wanted, wanted]
        assert model.draft_statistics("auto") is not None


def test_an_interrupted_session_is_where_it_was(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session, ids = model.session(), ids_of(random_bytes(4, 600))
    session.feed(ids[:50])
    run, calls = session._runner.run, []  # type: ignore[attr-defined]

    def failing(*arguments: object) -> None:
        calls.append(run(*arguments))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(session._runner, "run", failing)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        session.feed(ids[50:])
    assert session.position == 50
    assert session.feed(ids[50:]).tobytes() == model.session().feed(ids)[50:].tobytes()


@pytest.mark.parametrize("position", [40, 170])
def test_an_interrupted_rollback_is_whole_or_none(model: Model, position: int) -> None:
    """Interrupted at any line; there are states after 160 and 200 ids, and none before 40."""
    ids, line, finished = ids_of(random_bytes(7, 220)), 0, False
    whole = model.session().feed(ids)
    while not finished:
        line += 1
        session = model.session()
        session.feed(ids[:160])
        session.feed(ids[160:200])
        with InterruptAt(line):
            try:
                session.rollback(position)
                finished = True
            except KeyboardInterrupt:
                pass
        assert session.position in (200, position)
        rest = ids[session.position :]
        np.testing.assert_array_equal(session.feed(rest), whole[-len(rest) :])
    assert line > 10


def test_without_the_library_it_computes_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(random_bytes(6, 90))
    with edgeblt.load(bundle) as model:
        with_library = model.session().feed(ids)
    monkeypatch.setattr(native, "library_path", lambda: None)
    with edgeblt.load(bundle) as model:
        session, whole = model.session(), model.session().feed(ids)
        parts = [session.feed([id]) for id in ids]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    scale = np.abs(whole[1:, OFFSET:]).max()
    assert np.abs(whole - with_library)[:, OFFSET:].max() <= 1e-5 * scale


# Bundles


def test_a_bundle_says_what_it_is(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["architecture"] == "mambabyte" and list(manifest["stages"]) == ["mamba"]
    assert open_bundle(bundle, verify=True).manifest.config.layer_count >= 1
    assert "# checkpoint, a MambaByte for edgeblt" in (bundle / "README.md").read_text()


def test_a_gpu_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgebltError, match="a MambaByte runs on the cpu only"):
        export_bundle(checkpoint, tmp_path / "bundle", target="cuda")
