"""What is refused of Meta's form, in one sentence each: fields, contradictions, hostile files."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from checkpoint_oracle import assert_one_sentence
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.checkpoints.config_section import Findings, Section
from edgeblt.export.checkpoints.meta_config import parse_model, sort_model
from edgeblt.export.checkpoints.meta_patching import parse_patching, refuse_contradictions, sort_training
from meta_checkpoints import (
    MODEL_ARGS,
    PATCHER_ARGS,
    Args,
    expressible_config,
    model_args,
    save_meta_form,
    save_patcher,
)

SEED = 4  # with an entropy model
CONFIG, MLP = expressible_config(SEED, "params")
ARGS = model_args(CONFIG) | MLP
PICKLE = "entropy_model/consolidated.pth"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.random_model(CONFIG, SEED)
    return save_meta_form(model, tmp_path_factory.mktemp("saved") / "checkpoint", MLP, entropy="params")


@pytest.fixture(scope="module")
def saved_patcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.random_model(expressible_config(SEED, "config")[0], SEED)
    return save_patcher(model, tmp_path_factory.mktemp("saved") / "patcher", "config")


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.fixture
def patcher(saved_patcher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_patcher, tmp_path / "patcher"))


def edit_json(file: Path, edit: Callable[[Any], object]) -> None:
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def refusal(path: Path, patcher: Path | None = None) -> str:
    with pytest.raises(EdgebltError) as caught:
        opened = open_checkpoint(path, patcher)
        for name in opened.names():
            opened.tensor(name)
    assert_one_sentence(str(caught.value))
    return str(caught.value)


# Fields of config.json.

WRONG_VALUES: dict[str, object] = {
    "architecture": "moe",
    "attn_bias_type": "local_block_causal",
    "attn_impl": "sliding",
    "conv_kernel_size": 3,
    "cross_attn_all_layers_decoder": 1,
    "cross_attn_decoder": False,
    "cross_attn_encoder": False,
    "cross_attn_init_by_pooling": False,
    "cross_attn_k": None,
    "cross_attn_nheads": 64,
    "cross_attn_window_decoder": 512,
    "cross_attn_window_encoder": 512,
    "dim_global": ARGS["dim_local_decoder"],
    "dim_local_decoder": ARGS["dim_local_encoder"] * 2,
    "dim_local_encoder": 1 << 40,
    "dim_token": 7,
    "downsampling_by_pooling": "avg",
    "encoder_enable_byte_ngrams": True,
    "encoder_hash_byte_group_nb_functions": 12,
    "encoder_hash_byte_group_size": None,
    "encoder_hash_byte_group_vocab": -1,
    "entropy_model_is_ngram_model": True,
    "eos_id": 14,
    "global_local_decoder_residual_layer": "first",
    "head_dim": 3,
    "local_attention_window_len": "512",
    "n_heads_global": 7919,
    "n_heads_local_encoder": True,
    "n_kv_heads": 7919,
    "n_kv_heads_global": -1,
    "n_layers_global": 0,
    "n_layers_local_decoder": 25.0,
    "non_linearity": "gelu",
    "norm_affine": False,
    "norm_eps": float("nan"),
    "norm_type": "layernorm",
    "patching_mode": "",
    "pm_size": 1,
    "pre_norm": False,
    "rope_theta": None,
    "tie_local_encoder_decoder": True,
    "tie_local_encoder_decoder_logits": True,
    "tokenize_with_bpe_delimiter": True,
    "use_rope": False,
    "vocab_size": 256,
    "weight_tying": True,
}
OTHER_VALUES: dict[str, Args] = {
    "a size that is no number": {"encoder_hash_byte_group_size": "3,four"},
    "no sizes": {"encoder_hash_byte_group_size": []},
    "a size that is too long": {"encoder_hash_byte_group_size": [3, 65]},
    "too many sizes": {"encoder_hash_byte_group_size": [3] * 1000},
    "a negative window": {"local_attention_window_len": -1},
    "a false window": {"cross_attn_window_encoder": False},
    "no number of layers": {"n_layers_global": 10**30},
    "more layers than edgeblt takes": {"n_layers_global": 5000},
    "a width of bytes that follows from the patches": {"dim_token": None, "use_local_encoder_transformer": False},
}


def parse(args: Args, strict: bool = True) -> tuple[str, ...]:
    section, findings = Section(args, "config.json", ("args",)), Findings()
    sort_model(section, findings)
    notes = findings.settle(strict)
    parse_model(section, PatchingRule(Rule.BYTE), None, lambda stage: 12)
    return notes


def test_the_fields_are_right_as_they_are() -> None:
    parse(ARGS)
    parse(ARGS | {"cross_attn_window_encoder": 1, "cross_attn_window_decoder": 1})
    parse(ARGS | {"encoder_hash_byte_group_size": ",".join(map(str, ARGS["encoder_hash_byte_group_size"]))})
    assert set(ARGS) == set(MODEL_ARGS)


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_each_field_that_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    with pytest.raises(EdgebltError) as caught:
        parse(ARGS | {name: WRONG_VALUES[name]})
    # A wrong width shows in what must divide it or equal it.
    fields = [name] if name != "dim_local_encoder" else ["dim_local", "heads", "hidden_size"]
    assert any(field in str(caught.value) for field in fields), caught.value
    assert str(caught.value).startswith("config.json: args")
    assert_one_sentence(str(caught.value))


@pytest.mark.parametrize("case", OTHER_VALUES)
def test_other_values_that_are_refused(case: str) -> None:
    with pytest.raises(EdgebltError) as caught:
        parse(ARGS | OTHER_VALUES[case])
    assert_one_sentence(str(caught.value))


@pytest.mark.parametrize("name", ["cross_attn_encoder", "cross_attn_init_by_pooling", "downsampling_by_pooling"])
def test_fields_whose_default_is_another_model_are_needed(name: str) -> None:
    with pytest.raises(EdgebltError, match=rf"args\.{name} is None \(only (True|'max')\)"):
        parse({field: value for field, value in ARGS.items() if field != name})


def test_fields_of_which_any_value_will_do() -> None:
    for value in (0, 1, 256, -3, 1e300, "x", None):
        assert parse(ARGS | {"multiple_of": value, "ffn_dim_multiplier": value, "patch_size": value}) == ()
    for patch_size in (4.5, 1, None):
        check({"patch_size": patch_size}, {"patch_size": 4.5}, {"patch_size": 6.0, "multiple_of": 1})


def test_unknown_fields_are_noted_and_refused_if_strict() -> None:
    others = {"mixture": None, "state": {"a": 1}, "line\nbreak": 1, "attention_bias": False, "sliding_window": None}
    (note,) = parse(ARGS | others, strict=False)
    assert note.startswith("config.json: args.mixture, args.state, args.'line\\nbreak': these fields are not known")
    assert_one_sentence(note)
    with pytest.raises(EdgebltError, match=r"^config.json: args.mixture, args.state, args.* leave out --strict$"):
        parse(ARGS | others)
    assert parse(ARGS) == ()


def test_mlps_are_as_wide_as_their_tensors(checkpoint: Path) -> None:
    expected = open_checkpoint(checkpoint, strict=True).config
    params = checkpoint / "entropy_model" / "params.json"

    def set_fields(**fields: object) -> None:
        edit_json(checkpoint / "config.json", lambda document: document["args"].update(fields))
        edit_json(params, lambda document: document["entropy_model"].update(fields))

    set_fields(multiple_of=7)
    assert open_checkpoint(checkpoint, strict=True).config == expected
    set_fields(multiple_of=1 << 40, ffn_dim_multiplier=9.0)
    assert open_checkpoint(checkpoint, strict=True).config == expected


def test_notes_and_refusals_are_of_all_files(checkpoint: Path) -> None:
    config, training = checkpoint / "config.json", checkpoint / "train_args.json"
    params = checkpoint / "entropy_model" / "params.json"

    def set_field(name: str, value: object) -> None:
        edit_json(config, lambda document: document["args"].update({name: value}))
        edit_json(training, lambda document: document["data"]["patcher_args"].update({name: value}))
        edit_json(params, lambda document: document["entropy_model"].update({name: value}))

    assert open_checkpoint(checkpoint).notes == ()
    set_field("mood", 1)
    set_field("mlp_bias", False)
    (note,) = open_checkpoint(checkpoint).notes
    listed = f"{config}: args.mood; {training}: data.patcher_args.mood; {params}: entropy_model.mood: these fields are"
    assert note.startswith(listed) and note.isprintable()
    with pytest.raises(EdgebltError) as caught:
        open_checkpoint(checkpoint, strict=True)
    assert str(caught.value).startswith(listed) and str(caught.value).endswith("leave out --strict")
    set_field("mlp_bias", True)
    message = refusal(checkpoint)
    assert message.count("mlp_bias is True (only false, or no such field)") == 3 and "mood" not in message


def test_all_that_is_refused_is_named_in_one_sentence() -> None:
    wrong = {"weight_tying": True, "pre_norm": False, "qk_norm": True, "downsampling_by_pooling": "min", "eos_id": 5}
    with pytest.raises(EdgebltError) as caught:
        parse(ARGS | wrong | {"mixture": 1})
    assert all(f"args.{name} is {value!r} (only " in str(caught.value) for name, value in wrong.items())
    assert "mixture" not in str(caught.value)
    assert_one_sentence(str(caught.value))


def test_a_window_that_meta_would_not_apply() -> None:
    for implementation in ("sdpa", "flex_attention", None):
        with pytest.raises(EdgebltError, match=r"attn_impl is .* only under 'xformers'"):
            parse(ARGS | {"attn_impl": implementation, "local_attention_window_len": 8})
        parse(ARGS | {"attn_impl": implementation, "local_attention_window_len": None})


def test_several_encoder_layers_with_cross_attention_each() -> None:
    parse(ARGS | {"n_layers_local_encoder": 1, "cross_attn_all_layers_encoder": True})
    parse(ARGS | {"n_layers_local_encoder": 2, "cross_attn_all_layers_encoder": False})
    with pytest.raises(EdgebltError, match="cross_attn_all_layers_encoder is True; edgeblt supports only false"):
        parse(ARGS | {"n_layers_local_encoder": 2, "cross_attn_all_layers_encoder": True})


# Fields of train_args.json.

WRONG_PATCHING: dict[str, tuple[Args, str]] = {
    "threshold": ({"threshold": None}, "threshold is None; it must be a finite number"),
    "infinite threshold": ({"threshold": float("inf")}, "threshold is inf; it must be a finite number"),
    "threshold_add": ({"threshold_add": "0.1"}, "threshold_add is '0.1'; it must be a finite number"),
    "monotonicity": ({"monotonicity": "yes"}, "monotonicity is 'yes'; it must be true or false"),
    "max_patch_length": ({"max_patch_length": 0}, "max_patch_length is 0; it must be an integer"),
    "bpe": ({"patching_mode": "bpe"}, "patching_mode is 'bpe'; edgeblt supports only 'entropy', 'space'"),
    "bpe_patcher": ({"patching_mode": "bpe_patcher"}, "patching_mode is 'bpe_patcher'; edgeblt supports"),
    "no mode": ({"patching_mode": None}, "patching_mode is None; it must be a string"),
    "static": ({"patching_mode": "static"}, "patch_size is 4.5; Meta's model runs static patches of 1 only"),
    "unknown": ({"hysteresis": 1}, "data.patcher_args.hysteresis: this field is not known to edgeblt; remove"),
}
WRONG_TRAINING: dict[str, tuple[object, str]] = {
    "no object": ([], "train_args.json is []; it must be a JSON object"),
    "no data": ({"data": 1}, "train_args.json: data is 1; it must be a JSON object"),
    "no patcher": ({"data": {"patcher_args": "x"}}, "patcher_args is 'x'; it must be a JSON object"),
    "an entropy model": ({"train_entropy_model": True}, "train_entropy_model is True; these are an entropy model's"),
    "a tokenizer": (
        {"data": {"tokenizer_args": {"name": "sp"}}},
        "tokenizer_args.name is 'sp' (only 'blt' or 'bytes')",
    ),
    "a delimiter": (
        {"data": {"tokenizer_args": {"name": "blt", "init_kwargs": {"bpe_delim": True}}}},
        "bpe_delim is True (only False)",
    ),
    "no beginning": (
        {"data": {"tokenizer_args": {"init_kwargs": {"add_bos": False}}}},
        "add_bos is False (only True)",
    ),
}


def parse_training(document: object) -> PatchingRule:
    section, findings = Section(document, "train_args.json"), Findings()
    sort_training(section, findings)
    findings.settle(strict=True)
    return parse_patching(section)


@pytest.mark.parametrize("case", WRONG_PATCHING)
def test_refused_patching(case: str) -> None:
    patcher_args, fragment = WRONG_PATCHING[case]
    with pytest.raises(EdgebltError) as caught:
        parse_training({"data": {"patcher_args": PATCHER_ARGS | patcher_args}})
    assert fragment in str(caught.value)
    assert_one_sentence(str(caught.value))


@pytest.mark.parametrize("case", WRONG_TRAINING)
def test_refused_training_arguments(case: str) -> None:
    document, fragment = WRONG_TRAINING[case]
    with pytest.raises(EdgebltError) as caught:
        parse_training(document)
    assert fragment in str(caught.value)
    assert_one_sentence(str(caught.value))


CONTRADICTIONS: dict[str, tuple[Args, Args, Args]] = {  # fields of config.json, of patcher_args, of the trained model
    "patching_mode": ({"patching_mode": "space"}, {}, {}),
    "patching_threshold": ({"patching_threshold": 1.3}, {}, {}),
    "patching_threshold_add": ({"patching_threshold_add": 0.1}, {}, {}),
    "monotonicity": ({"monotonicity": True}, {}, {}),
    "max_patch_length": ({"max_patch_length": 8}, {"max_patch_length": 9}, {}),
    "rope_theta": ({}, {}, {"rope_theta": 1.0}),
    "weight_tying": ({}, {}, {"weight_tying": True}),
    "encoder_hash_byte_group_size": ({}, {}, {"encoder_hash_byte_group_size": "3,4"}),
}


def check(args: Args, patcher_args: Args, trained: Args) -> None:
    args = ARGS | args
    training = {"data": {"patcher_args": PATCHER_ARGS | patcher_args}, "model": args | trained}
    section = Section(training, "train_args.json")
    refuse_contradictions(Section(args, "config.json: args"), section, parse_patching(section))


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_refused_by_name(name: str) -> None:
    with pytest.raises(EdgebltError) as caught:
        check(*CONTRADICTIONS[name])
    assert f"config.json: args: {name} is " in str(caught.value) and "but train_args.json" in str(caught.value)
    assert_one_sentence(str(caught.value))


def test_what_is_not_stated_contradicts_nothing() -> None:
    check(
        {"patching_threshold": None, "patching_threshold_add": 0.0, "monotonicity": False}, {"max_patch_length": 3}, {}
    )
    check({"patching_threshold": 1.3354420661926}, {}, {})
    check({"patching_threshold": 0.3}, {"threshold": 0.3, "monotonicity": True, "threshold_add": 9.0}, {})
    check({"patching_mode": "byte", "patching_threshold": 3.14}, {"patching_mode": "byte"}, {})
    check({}, {}, {"encoder_hash_byte_group_size": ",".join(map(str, ARGS["encoder_hash_byte_group_size"]))})


# Fields of entropy models.

WRONG_LOADED: dict[str, object] = {
    "dim": 13,
    "eos_id": 14,
    "head_dim": 3,
    "n_heads": None,
    "n_kv_heads": 1,
    "n_layers": "2",
    "norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "sliding_window": 256,
    "vocab_size": 256,
    "weight_tying": True,
}
WRONG_SAVED: dict[str, Args] = {
    "attn_bias_type": {"attn_bias_type": "causal", "sliding_window": 8, "attn_impl": "xformers"},
    "attn_impl": {"attn_bias_type": "local_block_causal", "sliding_window": 8, "attn_impl": "sdpa"},
    "dim_global": {"dim_global": 8},
    "eos_id": {"eos_id": 14},
    "n_heads": {"n_heads": 0},
    "sliding_window": {"attn_bias_type": "local_block_causal", "sliding_window": None, "attn_impl": "xformers"},
    "weight_tying": {"weight_tying": True},
}


@pytest.mark.parametrize("name", WRONG_LOADED)
def test_each_field_of_params_json_is_refused_by_name(name: str, checkpoint: Path) -> None:
    file = checkpoint / "entropy_model" / "params.json"
    heads = json.loads(file.read_text())["entropy_model"]["n_heads"]
    value = heads * 2 if name == "n_kv_heads" else WRONG_LOADED[name]
    edit_json(file, lambda document: document["entropy_model"].update({name: value}))
    message = refusal(checkpoint)
    assert message.startswith(f"{file}: entropy_model") and (
        name in message or (name == "dim" and "n_heads" in message)
    )


@pytest.mark.parametrize("name", WRONG_SAVED)
def test_each_field_of_an_entropy_model_s_config_json_is_refused_by_name(name: str, saved: Path, patcher: Path) -> None:
    edit_json(patcher / "config.json", lambda document: document["args"].update(WRONG_SAVED[name]))
    message = refusal(saved, patcher)
    assert message.startswith(str(patcher / "config.json")) and (name in message or "is a whole model's" in message)


def test_directories_that_are_no_entropy_model(saved: Path, patcher: Path, tmp_path: Path) -> None:
    assert refusal(saved, tmp_path / "none") == (
        f"the checkpoint {tmp_path / 'none'} does not exist; give a directory that holds config.json"
    )
    assert "is a whole model's; give the directory of its entropy model" in refusal(saved, saved)
    assert f"{patcher} is an entropy model on its own; give the main model" in refusal(patcher)
    (patcher / "config.json").write_text("{}")
    assert "config.json has no 'args' of an entropy model" in refusal(saved, patcher)
    (patcher / "config.json").unlink()
    assert "holds neither config.json nor params.json; give the directory of an entropy model" in refusal(
        saved, patcher
    )
    (patcher / "params.json").write_text('{"entropy_model": null}')
    assert "params.json has no 'entropy_model' of an entropy model" in refusal(saved, patcher)


def test_a_patcher_that_is_not_needed(checkpoint: Path, patcher: Path) -> None:
    edit_json(checkpoint / "train_args.json", lambda d: d["data"]["patcher_args"].update(patching_mode="byte"))
    edit_json(checkpoint / "config.json", lambda document: document["args"].update(patching_mode="byte"))
    edit_json(checkpoint / "train_args.json", lambda d: d.pop("model"))
    assert refusal(checkpoint, patcher) == f"{checkpoint} uses no entropy model for its patches; leave out {patcher}"
    assert "patcher.head" not in open_checkpoint(checkpoint).names()


# Files of a directory.


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("train_args.json", "holds no train_args.json, which says where patches start; download it"),
        ("model.safetensors", "holds neither model.safetensors nor model.safetensors.index.json"),
        ("entropy_model/params.json", "holds neither config.json nor params.json"),
        (PICKLE, "holds neither model.safetensors nor"),
        ("entropy_model", "has no entropy model in entropy_model/; give the directory of one with --patcher"),
    ],
)
def test_missing_files(name: str, fragment: str, checkpoint: Path) -> None:
    path = checkpoint / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert fragment in refusal(checkpoint)


@pytest.mark.parametrize("name", ["train_args.json", "entropy_model/params.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe{}", b'{"data": ' + b"1" * 10_000 + b"}"])
def test_files_that_are_not_json(name: str, content: bytes, checkpoint: Path) -> None:
    (checkpoint / name).write_bytes(content)
    assert refusal(checkpoint) == f"{checkpoint / name} is not valid JSON; download it again"


@pytest.mark.parametrize("name", ["config.json", "train_args.json", "model.safetensors", PICKLE,
                                  "entropy_model/params.json"])  # fmt: skip
def test_links_out_of_the_directory(name: str, checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / name
    outside = file.rename(tmp_path / "outside")
    file.symlink_to(outside)
    assert open_checkpoint(checkpoint).names()
    file.unlink()
    for target, fragment in {
        tmp_path / "nowhere": "is a link that leads nowhere",
        tmp_path: "is not a regular file",
    }.items():
        file.symlink_to(target)
        message = refusal(checkpoint)
        assert message.startswith(str(file)) and fragment in message
        file.unlink()
    os.mkfifo(file)
    assert f"{file} is not a regular file" in refusal(checkpoint)


def test_a_folder_that_leads_out_of_the_directory(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "entropy_model").rename(tmp_path / "outside")
    (checkpoint / "entropy_model").symlink_to(tmp_path / "outside")
    assert open_checkpoint(checkpoint).names() == open_checkpoint(checkpoint, tmp_path / "outside").names()


@pytest.mark.parametrize("document", [{"args": None}, {"args": []}, {"args": "x"}, {"args": {}}])
def test_config_json_without_arguments(document: object, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps(document))
    assert str(checkpoint / "config.json") in refusal(checkpoint)


# Tensors.


def edit_pickle(checkpoint: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = torch.load(checkpoint / PICKLE, weights_only=True)
    edit(document)
    torch.save(document, checkpoint / PICKLE)


HEAD = "output.weight"
TENSORS: dict[str, tuple[Callable[[torch.Tensor], object], str]] = {
    "shape": (lambda x: x[:, 1:].clone(), "has shape"),
    "integers": (lambda x: x.long(), "is stored as int64; give a checkpoint in bfloat16"),
    "complex": (lambda x: x.to(torch.complex64), "is stored as complex64; give a checkpoint in"),
    "8-bit floats": (lambda x: x.to(torch.float8_e4m3fn), "is stored as float8_e4m3fn; give"),
    "NaN": (lambda x: x * torch.nan, "holds values that are not finite in float32; give a checkpoint without NaN"),
    "infinite": (lambda x: x - torch.inf, "holds values that are not finite in float32"),
    "too large for float32": (lambda x: x.double() + 1e300, "holds values that are not finite in float32"),
    "transposed": (lambda x: x.T.contiguous().T, "is not contiguous; save it again after .contiguous()"),
    "one number for all": (lambda x: x[:1, :1].clone().expand(*x.shape), "is not contiguous; save it again"),
    "sparse": (lambda x: x.to_sparse(), "is not stored plainly; save the checkpoint again"),
    "without data": (lambda x: x.to("meta"), "is not stored plainly; save the checkpoint again"),
    "a number": (lambda x: 1.0, "'output.weight' is no tensor under its name; give the file of a whole checkpoint"),
    "a list": (lambda x: [x], "'output.weight' is no tensor under its name"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_refused_tensors_of_a_pickle(case: str, checkpoint: Path) -> None:
    change, fragment = TENSORS[case]
    edit_pickle(checkpoint, lambda document: document["model"].update({HEAD: change(document["model"][HEAD])}))
    message = refusal(checkpoint)
    assert message.startswith(str(checkpoint / PICKLE)) and fragment in message and HEAD in message


@pytest.mark.parametrize("kind", [torch.nn.Parameter, lambda x: torch.cat([x, x])[len(x) :], torch.Tensor.double])
def test_tensors_of_a_pickle_that_are_as_good(kind: Callable[[torch.Tensor], torch.Tensor], checkpoint: Path) -> None:
    expected = open_checkpoint(checkpoint).tensor("patcher.head")
    edit_pickle(checkpoint, lambda document: document["model"].update({HEAD: kind(document["model"][HEAD])}))
    assert (open_checkpoint(checkpoint).tensor("patcher.head") == expected).all()


MODELS: dict[str, tuple[object, str]] = {
    "missing": ({"optimizer": {}}, "has no dictionary of tensors under 'model'; give the file of a whole checkpoint"),
    "the tensors alone": ({HEAD: torch.zeros(2)}, "has no dictionary of tensors under 'model'"),
    "empty": ({"model": {}}, "has no dictionary of tensors under 'model'"),
    "a tensor": ({"model": torch.zeros(3)}, "has no dictionary of tensors under 'model'"),
    "a list": ([1], "has no dictionary of tensors under 'model'"),
    "numbered": ({"model": {1: torch.zeros(3)}}, "1 is no tensor under its name"),
    "others": (
        {"model": {"tok_embeddings.weight": torch.zeros(3)}},
        "has no tensor 'layers.0.feed_forward.w1.weight', which the configuration asks for",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_pickles_without_a_model(case: str, checkpoint: Path) -> None:
    document, fragment = MODELS[case]
    torch.save(document, checkpoint / PICKLE)
    message = refusal(checkpoint)
    assert message.startswith(str(checkpoint / PICKLE)) and fragment in message


class MakesFile:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def test_code_in_a_pickle_does_not_run(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = pickle.dumps({"model": MakesFile(marker)}, protocol=2)
    saved = io.BytesIO()
    torch.save({"model": {HEAD: MakesFile(marker)}}, saved)
    for content in (saved.getvalue(), archive(hostile), hostile):
        (checkpoint / PICKLE).write_bytes(content)
        message = refusal(checkpoint)
        assert message.startswith(str(checkpoint / PICKLE)) and message.endswith("; download it again")
        assert not marker.exists()
    pickle.loads(hostile)  # it would have
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x02}q\x00.",
        archive(b""),
        archive(b"\x80\x02]."),
        archive(b"cbuiltins\nbytearray\n(L1152921504606846976L\ntR."),  # more memory than there is
        archive(pickle.dumps({"model": {}}, protocol=2), zipfile.ZIP_DEFLATED),
        archive(b" " * ((16 << 20) + 1)),
    ],
    ids=["empty", "only magic", "bare pickle", "empty pickle", "a list", "huge", "deflated", "large"],
)
def test_files_that_torch_save_did_not_write(content: bytes, checkpoint: Path) -> None:
    (checkpoint / PICKLE).write_bytes(content)
    assert refusal(checkpoint).startswith(str(checkpoint / PICKLE))


def test_truncated_pickles(checkpoint: Path) -> None:
    whole = (checkpoint / PICKLE).read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100, 1):
        (checkpoint / PICKLE).write_bytes(whole[:size])
        assert "is truncated or was not written by torch.save; download it again" in refusal(checkpoint)


def test_any_byte_of_a_pickle_may_be_wrong(checkpoint: Path) -> None:
    """Either the same tensors are read or one sentence is said."""
    whole = (checkpoint / PICKLE).read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole), (25,), generator=generator).tolist():
        content = bytearray(whole)
        content[place] ^= 0xFF
        (checkpoint / PICKLE).write_bytes(content)
        try:
            opened = open_checkpoint(checkpoint)
            for name in opened.names():
                opened.tensor(name)
        except EdgebltError as error:
            assert_one_sentence(str(error))


def test_tables_that_are_missing_or_of_another_size(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    weights, name = load_file(file), "encoder_hash_tok_embedding.1.weight"
    save_file({**weights, name: weights[name][1:].clone()}, file)
    assert f"the tensor {name!r} has shape" in refusal(checkpoint)
    del weights[name]
    save_file(weights, file)
    assert f"{file} has no tensor {name!r}, which the configuration asks for" in refusal(checkpoint)


# Headers of safetensors files, in either form.


def rewrite(file: Path, edit: Callable[[dict[str, Any], int], str]) -> None:
    """Give a safetensors file another header; `edit` gets the header and the size of the data."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    data = content[8 + length :]
    header = edit(json.loads(content[8 : 8 + length]), len(data)).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def overlapping(header: dict[str, Any], size: int) -> str:
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    header[second]["shape"] = header[first]["shape"]
    return json.dumps(header)


def beyond_the_end(header: dict[str, Any], size: int) -> str:
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    begin, end = header[last]["data_offsets"]
    header[last] |= {"data_offsets": [begin, end + 4096], "shape": [(end - begin + 4096) // 4]}
    return json.dumps(header)


def backwards(header: dict[str, Any], size: int) -> str:
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"] = header[name]["data_offsets"][::-1]
    return json.dumps(header)


def negative(header: dict[str, Any], size: int) -> str:
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"] = [-4, 4]
    return json.dumps(header)


def overflowing(header: dict[str, Any], size: int) -> str:
    name = next(name for name in header if name != "__metadata__")
    header[name]["shape"] = [1 << 33, 1 << 33]
    return json.dumps(header)


def repeated(header: dict[str, Any], size: int) -> str:
    name = next(name for name in header if name != "__metadata__")
    return json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}" + "}"


def repeated_offsets(header: dict[str, Any], size: int) -> str:
    text = json.dumps(header)
    return text.replace('"data_offsets"', '"data_offsets": [0, 0], "data_offsets"', 1)


def wrong_dtype(header: dict[str, Any], size: int) -> str:
    name = next(name for name in header if name != "__metadata__")
    header[name]["dtype"] = "F128"
    return json.dumps(header)


EDITS = [overlapping, beyond_the_end, backwards, negative, overflowing, repeated, repeated_offsets, wrong_dtype]


@pytest.fixture(scope="module")
def transformers_form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_model(tiny_models.random_model(CONFIG, SEED), tmp_path_factory.mktemp("transformers"))


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("form", ["transformers", "meta"])
def test_headers_that_lie(
    form: str, edit: Callable[[dict[str, Any], int], str], saved: Path, transformers_form: Path, tmp_path: Path
) -> None:
    original = saved if form == "meta" else transformers_form
    directory = Path(shutil.copytree(original, tmp_path / "checkpoint"))
    file = directory / "model.safetensors"
    rewrite(file, lambda header, size: json.dumps(header))
    assert open_checkpoint(directory).names()  # rewriting alone does no harm
    rewrite(file, edit)
    message = refusal(directory)
    assert message.startswith(str(file))
    assert ("twice in its header" in message) == edit.__name__.startswith("repeated")
