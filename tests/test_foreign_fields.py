"""Configurations as people have them: fields of other models, of other software, of nobody; and what is refused."""

import copy
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BltConfig, BltForCausalLM

import foreign_fields
import tiny_models
from checkpoint_oracle import config_as_loaded, small_config
from edgeblt import load
from edgeblt.errors import CheckpointNote, EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.checkpoints.llama_switches import HARMLESS, SWITCHES
from edgeblt.export.checkpoints.transformers_config import KNOWN, RULES, WINDOW, parse_config
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.inspection import inspect_checkpoint
from edgeblt.export.reference import TransformersReference
from edgeblt.quant.compress import quantize_checkpoint
from test_commands import run_command, sentence

Document = dict[str, Any]
SECTIONS = foreign_fields.SECTIONS
DOCS = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text()
LENGTH = 60
FAST = random.Random(0).sample(range(foreign_fields.COUNT), 12)


def as_loaded(document: Document) -> Any:  # a BltForCausalLM, whose own types are of no help
    """What transformers makes of a `config.json`, without its weights."""
    return BltForCausalLM(BltConfig(**copy.deepcopy(document))).eval()


def save(model: Any, document: Document, path: Path) -> Path:
    tiny_models.save_model(model, path)
    (path / "config.json").write_text(json.dumps(document))
    return path


def assert_exports_equal(document: Document, seed: int, path: Path) -> None:
    """The bundle of a checkpoint with this `config.json` computes what transformers does, to 1e-4 of scale."""
    model, ids = (
        tiny_models.random_model(BltConfig(**copy.deepcopy(document)), seed),
        tiny_models.random_ids(seed, LENGTH),
    )
    tiny_models.separate_threshold(model, ids)
    document["patching_threshold"] = model.config.patching_threshold
    checkpoint = save(model, document, path / "checkpoint")
    again = as_loaded(document)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():  # one id more: with a maximum patch length transformers' last position is another
        expected = again(torch.tensor([[*ids, 4]]), use_cache=False).logits[0, :-1].numpy()
    found = load(export_bundle(checkpoint, path / "bundle").path).session().feed(np.array(ids))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize("seed", range(foreign_fields.COUNT))
def test_neutral_fields_are_silent_and_change_nothing(seed: int) -> None:
    plain, document = foreign_fields.foreign_config(seed)
    assert len(document.keys() - plain.keys()) + sum(len(document[s].keys() - plain[s].keys()) for s in SECTIONS) > 10
    parsed = parse_config(document, "config.json", strict=True)
    assert parsed.notes == () and parsed == parse_config(plain, "config.json", strict=True)
    assert parsed.model == config_as_loaded(BltConfig(**copy.deepcopy(document)))


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=() if s in FAST else pytest.mark.slow) for s in range(foreign_fields.COUNT)]
)
def test_configurations_with_neutral_fields_equal_transformers(seed: int, tmp_path: Path) -> None:
    assert_exports_equal(foreign_fields.foreign_config(seed)[1], seed, tmp_path)


def transformers_own_config() -> Document:
    """What transformers' own tests of BLT use, but for their vocabulary of 32.

    Source: transformers `tests/models/blt/test_modeling_blt.py`: all stacks alike, no patcher at work, rotary
    parameters without a base beside a base on its own, and three sizes set at the top afterwards.
    """
    stack = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "rope_theta": 500000.0,
        "rope_parameters": {"rope_type": "default"},
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "dropout": 0.0,
    }
    return {
        "model_type": "blt",
        "vocab_size": 260,
        "max_position_embeddings": 32,
        "patch_in_forward": False,
        "patch_size": 4,
        "patching_mode": "entropy",
        "patching_threshold": 1.335442066192627,
        "patching_batch_size": 1,
        "max_patch_length": None,
        "cross_attn_k": 2,
        "encoder_hash_byte_group_size": [2, 3],
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_nb_functions": 1,
        "patcher_config": dict(stack),
        "encoder_config": dict(stack),
        "decoder_config": stack | {"vocab_size": 260, "hidden_size_global": 32},
        "global_config": stack | {"hidden_size": 32},
        "rope_parameters": {"rope_type": "default"},
        "tie_word_embeddings": False,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "hidden_size": 16,
    }


@pytest.mark.parametrize("change", [{}, {"patch_in_forward": True}], ids=["as it is", "with its patcher"])
@pytest.mark.filterwarnings("ignore::edgeblt.errors.CheckpointNote")  # it has no windows
def test_the_configuration_of_transformers_own_tests(change: Document, tmp_path: Path) -> None:
    assert_exports_equal(transformers_own_config() | change, 3, tmp_path)
    written = as_loaded(transformers_own_config() | change).config
    assert parse_config(written.to_dict(), "config.json").model == config_as_loaded(written)


def test_another_vocabulary() -> None:
    with pytest.raises(EdgebltError, match="vocab_size is 32; 256 bytes and the special ids need at least 260"):
        parse_config(transformers_own_config() | {"vocab_size": 32}, "config.json")


def test_a_larger_vocabulary_equals_transformers(tmp_path: Path) -> None:
    document = small_config(local_attention_window_len=8, vocab_size=300).to_dict()
    for name in ("patcher_config", "encoder_config"):
        document[name]["vocab_size"] = 300
    assert_exports_equal(document, 5, tmp_path)


# Fields that nobody knows.

NAMES = st.text("abcxyz_", min_size=3, max_size=12).map("zz".__add__)
VALUES = st.sampled_from([None, False, True, 0, 1, 2.5, "text", [], [1, {}], {}, {"a": {"b": 1}}])
PLACES = st.sampled_from([None, *SECTIONS])


@settings(max_examples=40, deadline=None)
@given(fields=st.dictionaries(st.tuples(PLACES, NAMES), VALUES, min_size=1, max_size=12))
def test_unknown_fields_are_noted_together_or_refused(fields: dict[tuple[str | None, str], object]) -> None:
    document, listed = small_config().to_dict(), []
    for (place, name), value in fields.items():
        (document[place] if place else document)[name] = value
        listed.append(f"{place}.{name}" if place else name)
    parsed = parse_config(document, "config.json")
    (note,) = parsed.notes
    with pytest.raises(EdgebltError) as caught:
        parse_config(document, "config.json", strict=True)
    for message in (note, str(caught.value)):
        start, _, rest = message.partition(": ")
        named, _, rest = rest.partition(": ")
        assert start == "config.json" and sorted(named.split(", ")) == sorted(listed)
        assert rest.startswith("these fields are" if len(listed) > 1 else "this field is") and message.isprintable()
    assert parsed.model == parse_config(small_config().to_dict(), "config.json", strict=True).model


def test_names_that_are_no_names_do_not_spoil_the_sentence() -> None:
    names = ["line\nbreak", "\x1b[31m", "x" * 10_000, "é", ""]
    (note,) = parse_config(small_config().to_dict() | dict.fromkeys(names, 1), "config.json").notes
    assert note.isprintable() and note.isascii() and len(note) < 600 and r"'line\nbreak'" in note


def test_very_many_unknown_fields_are_counted() -> None:
    many = {f"zz{number}": None for number in range(100_000)}
    (note,) = parse_config(small_config().to_dict() | many, "config.json").notes
    assert "zz199, 99800 more: these fields are" in note


# Fields that would change the computation.

OTHERWISE: dict[str, object] = {  # where neither true nor 2 will do
    "mlp_activation": "relu", "activation": "relu", "activation_function": "relu", "hidden_activation": "relu",
    "is_causal": False, "layer_types": ["full_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"],
    "no_rope_layers": [1, 0], "mlp_multipliers": [1.0, 0.5], "position_embedding_type": "absolute",
    "quantization_config": {"bits": 4}, "compression_config": {"bits": 4}, "quantization": {"bits": 4},
    "rope_interleave": False, "rope_interleaved": False, "rotary_emb_interleaved": False, "gated_mlp": False,
}  # fmt: skip
DANGEROUS = {name: OTHERWISE.get(name, 2) for name in SWITCHES if name not in KNOWN}


@settings(max_examples=60, deadline=None)
@given(fields=st.dictionaries(st.tuples(PLACES, st.sampled_from(sorted(DANGEROUS))), st.none(), min_size=1, max_size=8))
def test_fields_that_change_the_computation_are_refused_together(fields: dict[tuple[str | None, str], None]) -> None:
    document, listed = small_config().to_dict() | {"zz_unknown": 1}, []
    for place, name in fields:
        if name == "sliding_window" and place in ("patcher_config", "encoder_config", "decoder_config"):
            continue  # there it is a BLT's own
        (document[place] if place else document)[name] = DANGEROUS[name]
        listed.append(f"{place}.{name}" if place else name)
    if not listed:
        return
    with pytest.raises(EdgebltError) as caught:
        parse_config(document, "config.json")
    message = str(caught.value)
    assert all(f"{name} is {DANGEROUS[name.split('.')[-1]]!r} (" in message for name in listed), message
    assert message.count(" is ") >= len(listed) and "zz_unknown" not in message
    assert message.startswith("config.json: ") and message.isprintable() and "trained with" in message


@pytest.mark.parametrize("name", sorted(DANGEROUS))
def test_each_is_silent_where_it_is_neutral(name: str) -> None:
    neutral = True if name == "is_causal" else None
    document = small_config().to_dict() | {name: neutral}
    for section in SECTIONS:
        if name != "sliding_window":
            document[section][name] = neutral
    assert parse_config(document, "config.json", strict=True).notes == ()


def test_no_field_is_both_harmless_and_a_switch() -> None:
    assert not HARMLESS & SWITCHES.keys()
    assert not KNOWN & RULES.keys()


def test_the_docs_name_each_switch() -> None:
    missing = [name for name in RULES if f"`{name}`" not in DOCS]
    assert not missing, missing


def test_a_mask_that_looks_ahead_is_refused_as_transformers_would_compute_it() -> None:
    """`is_causal` is no field of BLT's configuration, but the masks read it: null too is another model."""
    document = small_config(local_attention_window_len=6).to_dict()
    model = tiny_models.random_model(BltConfig(**copy.deepcopy(document)), 1)
    ids = torch.tensor([tiny_models.random_ids(1, 20)])
    with torch.no_grad():
        plain = model(ids, use_cache=False).logits
        for value, changes in ((True, False), (False, True), (None, True)):
            document["encoder_config"]["is_causal"] = value
            other = as_loaded(document)
            other.load_state_dict(model.state_dict())
            assert (not torch.equal(other(ids, use_cache=False).logits, plain)) is changes
            if changes:
                with pytest.raises(EdgebltError, match=r"encoder_config\.is_causal is"):
                    parse_config(document, "config.json")


def test_a_default_that_its_model_never_means_is_noted() -> None:
    """Granite's attention_multiplier, which multiplies scores instead of the usual scale."""
    document = small_config().to_dict()
    document["encoder_config"]["attention_multiplier"] = 1.0
    (note,) = parse_config(document, "config.json").notes
    assert "encoder_config.attention_multiplier" in note
    document["encoder_config"]["attention_multiplier"] = 0.2
    with pytest.raises(EdgebltError, match=r"attention_multiplier is 0\.2"):
        parse_config(document, "config.json")


# What users see.


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without windows, with two unknown fields, and an empty section that transformers stumbles over."""
    model = tiny_models.random_model(small_config(), 1)
    document = model.config.to_dict() | {"mixture": 1, "quantization_config": {}, "attention_bias": False}
    document.pop("local_attention_window_len")
    document["patcher_config"].pop("sliding_window")
    document["decoder_config"]["mood"] = "x"
    return save(model, document, tmp_path_factory.mktemp("noted") / "checkpoint")


UNKNOWN = "mixture, decoder_config.mood: these fields are not known to edgeblt"
WINDOWS = f"has no local_attention_window_len and no patcher_config.sliding_window: {WINDOW} was taken"


def test_notes_in_python(noted: Path, tmp_path: Path) -> None:
    with pytest.warns(CheckpointNote) as given_:
        export_bundle(noted, tmp_path / "bundle")
    assert [UNKNOWN in str(note.message) for note in given_] == [True, False]
    assert WINDOWS in str(given_[1].message) and given_[0].filename == __file__
    with pytest.warns(CheckpointNote) as given_:
        TransformersReference(noted)
    assert len(given_) == 2
    with warnings.catch_warnings(action="error"):
        assert inspect_checkpoint(open_checkpoint(noted)).notes == open_checkpoint(noted).notes
        for convert in (export_bundle, quantize_checkpoint):
            with pytest.raises(EdgebltError, match="leave out --strict"):
                convert(noted, tmp_path / "none", strict=True)
    assert not (tmp_path / "none").exists()


def test_notes_of_commands(noted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def notes(*arguments: object) -> list[str]:
        result = run_command(capsys, *arguments)
        assert result.code == 0, result
        return [line for line in result.stderr.splitlines() if line.startswith("edgeblt: ")]

    for command in (("export",), ("quantize", "--recipe", "nf4")):
        said = notes(*command, noted, tmp_path / command[0])
        assert len(said) == 2 and UNKNOWN in said[0] and WINDOWS in said[1]
    assert open_checkpoint(tmp_path / "quantize").notes == ()
    shown = run_command(capsys, "inspect", noted, "--json", "-")
    assert shown.stderr == "" and [UNKNOWN in note for note in json.loads(shown.stdout)["notes"]] == [True, False]
    assert json.loads(shown.stdout)["description"]["windows"] == "encoder and decoder 512, patcher 512"
    shown = run_command(capsys, "inspect", noted)
    assert f"note: {noted / 'config.json'} {WINDOWS}" in shown.stdout and UNKNOWN in shown.stdout


def test_strict_commands(noted: Path, tiny_bundle: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    for arguments in (
        ("export", noted, tmp_path / "none"),
        ("quantize", noted, tmp_path / "none"),
        ("inspect", noted),
        ("validate", tiny_bundle[1], "--reference", noted),
    ):
        assert sentence(run_command(capsys, *arguments, "--strict")).startswith(f"{noted}/config.json: {UNKNOWN}")
    assert not (tmp_path / "none").exists()
    assert "leave out --strict" in sentence(run_command(capsys, "inspect", tiny_bundle[1], "--strict"))
    missing = ("validate", tiny_bundle[1], "--reference-logits", tmp_path / "file")
    assert "give --strict with --reference only" in sentence(run_command(capsys, *missing, "--strict"))


@pytest.mark.filterwarnings("ignore::edgeblt.errors.CheckpointNote")
def test_a_reference_that_transformers_does_not_open_itself(noted: Path) -> None:
    """It computes what the same checkpoint does with the section left out."""
    ids = np.array(tiny_models.random_ids(2, 30))
    model = tiny_models.random_model(small_config(), 1)
    with torch.no_grad():
        expected = model(torch.tensor(ids)[None], use_cache=False).logits[0].numpy()
    np.testing.assert_allclose(TransformersReference(noted).row(ids).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"local_attention_window_len": None, "patcher_config": {"sliding_window": None}}, None),
        ({"local_attention_window_len": 512}, "no patcher_config.sliding_window"),
        ({"patcher_config": {"sliding_window": 512}}, "no local_attention_window_len"),
        ({"patch_in_forward": False}, "no local_attention_window_len: 512"),
    ],
)
def test_windows_that_were_taken(fields: Document, expected: str | None) -> None:
    notes = parse_config({"model_type": "blt"} | fields, "config.json").notes
    assert len(notes) == (expected is not None)
    if expected:
        assert notes[0].startswith(f"config.json has {expected}") and notes[0].count(" and ") == 0
