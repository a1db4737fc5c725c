"""Checkpoints in Meta's form: the same bundles as from transformers' form, Meta's patching rules, references."""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import patching_oracle
import tiny_models
from checkpoint_oracle import assert_one_sentence, config_as_loaded
from conftest import TOLERANCE
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import expected_shapes, open_checkpoint
from edgeblt.export.checkpoints.config_section import Section
from edgeblt.export.checkpoints.files.stored_weights import FusedWeight
from edgeblt.export.checkpoints.meta_patching import parse_patching
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference, checkpoint_sha256
from edgeblt.model import load
from edgeblt.quant.compress import quantize_checkpoint
from meta_checkpoints import (
    PATCHER_ARGS,
    Args,
    Entropy,
    expressible_config,
    save_meta_form,
    save_patcher,
    write_json,
)
from sampled import mostly_slow
from test_commands import run_command, sentence

SEEDS = range(20)
IN_THE_SUITE = (0, 3, 6, 7, 9, 13, 16)  # with every feature that the random models have
LENGTH = 150  # ids: longer than the windows


@dataclass(frozen=True)
class Pair:
    """One model in transformers' form and in Meta's."""

    model: Any
    ids: list[int]
    transformers: Path
    meta: Path
    patcher: Path | None  # where the entropy model is, unless it is in `meta`


def save_pair(seed: int, root: Path, entropy: Entropy, dtype: torch.dtype, apart: bool) -> Pair:
    config, mlp = expressible_config(seed, entropy)
    model = tiny_models.random_model(config, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    ids = tiny_models.random_ids(seed, LENGTH)
    tiny_models.separate_threshold(model, ids)
    transformers = tiny_models.save_model(model, root / "transformers" / "checkpoint", dtype)
    meta = save_meta_form(model, root / "meta" / "checkpoint", mlp, dtype, "none" if apart else entropy)
    patcher = None
    if apart and config.patch_in_forward:
        patcher = save_patcher(model, root / "patcher", entropy, dtype)
    return Pair(model, ids, transformers, meta, patcher)


def small_pair(root: Path) -> Pair:
    """A model with a maximum patch length and two tables of hashes, at least."""
    return save_pair(4, root, "params", torch.float32, apart=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return small_pair(tmp_path_factory.mktemp("pair"))


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def whole_logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """[len(ids), vocab], from one pass over one id more: see `TransformersReference.row`."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([[*ids, 4]]), use_cache=False).logits[0, :-1].numpy()
    return logits


# The same model, whichever form it comes in.


@pytest.mark.parametrize("seed", mostly_slow(SEEDS, IN_THE_SUITE))
def test_bundles_are_those_of_transformers_form(seed: int, tmp_path: Path) -> None:
    entropy: Entropy = "params" if seed % 2 else "config"
    dtype = torch.bfloat16 if seed % 3 == 0 else torch.float32
    pair = save_pair(seed, tmp_path, entropy, dtype, apart=seed % 4 > 1)
    expected = export_bundle(pair.transformers, tmp_path / "a" / "bundle").path
    bundle = export_bundle(pair.meta, tmp_path / "b" / "bundle", patcher=pair.patcher).path
    assert contents(bundle) == contents(expected)
    logits = whole_logits(pair.model, pair.ids)
    actual = load(bundle).session().feed(pair.ids)
    np.testing.assert_allclose(actual, logits, rtol=0, atol=TOLERANCE * float(np.abs(logits).max()))


def test_the_random_models_differ_in_what_matters() -> None:
    found = [expressible_config(seed, "params" if seed % 2 else "config") for seed in SEEDS]
    for name in ("global_projection", "no_global_projection", "window", "no_window", "patcher_window", "no_patcher",
                 "max_patch_length", "two_hashes", "decoder_cross_all", "decoder_cross_first", "three_heads",
                 "three_encoder_layers", "grouped_query", "k_1", "k_2", "k_3", "k_4"):  # fmt: skip
        assert any(tiny_models.features(config)[name] for config, _ in found), name
    assert {mlp["ffn_dim_multiplier"] for _, mlp in found} == {0.6, 1.0, 1.3}


@pytest.mark.parametrize("seed", [1, 8])
def test_compressed_checkpoints_are_those_of_transformers_form(seed: int, tmp_path: Path) -> None:
    pair = save_pair(seed, tmp_path, "params", torch.bfloat16, apart=True)
    expected = quantize_checkpoint(pair.transformers, tmp_path / "a" / "int8", "int8")
    compressed = quantize_checkpoint(pair.meta, tmp_path / "b" / "int8", "int8", patcher=pair.patcher)
    assert contents(compressed) == contents(expected)


@pytest.mark.parametrize("entropy", ["params", "config"])
def test_everything_is_read(entropy: Entropy, tmp_path: Path) -> None:
    pair = save_pair(10, tmp_path, entropy, torch.bfloat16, apart=False)
    checkpoint, expected = open_checkpoint(pair.meta), open_checkpoint(pair.transformers)
    assert checkpoint.config == expected.config == config_as_loaded(pair.model.config)
    assert checkpoint.names() == expected.names() == list(expected_shapes(checkpoint.config))
    assert checkpoint.unused_names() == [] and not checkpoint.is_quantized
    for name in checkpoint.names():
        np.testing.assert_array_equal(checkpoint.tensor(name), expected.tensor(name), err_msg=name)
        assert checkpoint.dtype(name) == "bfloat16"
        assert checkpoint.stored_bytes(name) == expected.stored_bytes(name)


def test_shards(pair: Pair, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = Path(shutil.copytree(pair.meta, tmp_path / "checkpoint"))
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({name: weights[name] for name in weights if shards[name] == shard}, directory / shard)
    write_json(directory / "model.safetensors.index.json", {"weight_map": shards})
    checkpoint, expected = open_checkpoint(directory), open_checkpoint(pair.meta)
    for name in checkpoint.names():
        np.testing.assert_array_equal(checkpoint.tensor(name), expected.tensor(name), err_msg=name)
    assert len(checkpoint.files()) == len(expected.files()) + 3


def test_the_download_cache_of_hugging_face(pair: Pair, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "0123", tmp_path / "models--x" / "blobs"
    (snapshot / "entropy_model").mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(open_checkpoint(pair.meta).files()):
        shutil.copy(pair.meta / name, blobs / str(number))
        (snapshot / name).symlink_to(blobs / str(number))
    assert checkpoint_sha256(open_checkpoint(snapshot).files()) == checkpoint_sha256(open_checkpoint(pair.meta).files())


# Tables that are stored one by one.


@dataclass
class Table:
    """Rows that know which of them were read."""

    name: str
    values: NDArray[np.float32]
    reads: list[tuple[int, int]] = field(default_factory=list)
    file: Path = Path("file")
    dtype: str = "float32"
    stored_bytes: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        self.reads.append((start, stop))
        return self.values[start:stop]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_only_the_rows_asked_for_are_read(heights: list[int], data: st.DataObject) -> None:
    rows = np.arange(3 * sum(heights), dtype=np.float32).reshape(-1, 3)
    parts = np.split(rows, np.cumsum(heights)[:-1])
    tables = [Table(str(index), values) for index, values in enumerate(parts)]
    weight = FusedWeight(tuple(tables))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(rows))] * 2)))
    assert weight.shape == rows.shape and weight.dtype == "float32"
    np.testing.assert_array_equal(weight.rows(start, stop), rows[start:stop])
    assert sum(end - begin for table in tables for begin, end in table.reads) == stop - start
    assert all(begin < end for table in tables for begin, end in table.reads)


# Patching rules.

RULES: dict[str, tuple[Args, PatchingRule]] = {
    "Meta's defaults": ({}, PatchingRule(Rule.THRESHOLD, 1.335442066192627)),
    "a threshold": ({"threshold": 2, "max_patch_length": 7}, PatchingRule(Rule.THRESHOLD, 2.0, max_patch_length=7)),
    "monotonic": ({"threshold": 0.1, "monotonicity": True}, PatchingRule(Rule.MONOTONIC, 0.1)),
    "monotonic before another threshold": (
        {"threshold": 0.1, "monotonicity": True, "threshold_add": 0.5},
        PatchingRule(Rule.MONOTONIC, 0.1),
    ),
    "threshold and rise": (
        {"threshold": 0.6, "threshold_add": 0.2, "max_patch_length": 9},
        PatchingRule(Rule.THRESHOLD_AND_RISE, 0.6, 0.2, 9),
    ),
    "any rise": ({"threshold": 0.6, "threshold_add": 0.0}, PatchingRule(Rule.THRESHOLD_AND_RISE, 0.6, 0.0)),
    "space": ({"patching_mode": "space", "max_patch_length": 5}, PatchingRule(Rule.SPACE, max_patch_length=5)),
    "byte": ({"patching_mode": "byte"}, PatchingRule(Rule.BYTE)),
    "static": ({"patching_mode": "static", "patch_size": 1.0}, PatchingRule(Rule.STATIC, patch_size=1)),
}


@pytest.mark.parametrize("case", RULES)
def test_rules_come_from_the_training_arguments(case: str) -> None:
    patcher_args, expected = RULES[case]
    for full in ({}, PATCHER_ARGS):
        training = Section({"data": {"patcher_args": {**full, **patcher_args}}}, "train_args.json")
        assert parse_patching(training) == expected


@pytest.mark.parametrize("case", ["a threshold", "monotonic", "threshold and rise", "space", "static"])
def test_bundles_patch_by_meta_s_rules(case: str, tmp_path: Path) -> None:
    config, mlp = expressible_config(4, "params")
    model, ids = tiny_models.random_model(config, 4), tiny_models.random_ids(4, LENGTH)
    entropies = tiny_models.reference_entropies(model, ids).numpy()
    patcher_args = dict(RULES[case][0])
    if patcher_args.get("patching_mode", "entropy") == "entropy":
        rises = np.diff(entropies)[1:]
        patcher_args["threshold"] = between(rises if "monotonicity" in patcher_args else entropies)
        if "threshold_add" in patcher_args:
            patcher_args["threshold_add"] = between(rises)
    checkpoint = save_meta_form(model, tmp_path / "checkpoint", mlp | {"patching_mode": None}, torch.float32, "params",
                                {"max_patch_length": None} | patcher_args)  # fmt: skip
    starts = load(export_bundle(checkpoint, tmp_path / "bundle").path).session()
    found = np.concatenate([chunk.patch_starts for chunk in starts.run(ids)])
    expected = patching_oracle.patch_starts(open_checkpoint(checkpoint).config.patching, entropies, np.array(ids))
    np.testing.assert_array_equal(found, expected)
    assert case == "static" or 10 < np.count_nonzero(expected) < LENGTH - 10


def between(values: NDArray[np.float32]) -> float:
    """The middle of the widest gap among the middle half of `values`."""
    middle = np.sort(values.astype(np.float64))[len(values) // 4 : -len(values) // 4]
    widest = int(np.diff(middle).argmax())
    assert middle[widest + 1] - middle[widest] > 1e-3
    return float((middle[widest] + middle[widest + 1]) / 2)


def meta_starts(entropies: NDArray[np.float32], patcher_args: Args) -> NDArray[np.bool_]:
    """[T]: whether position t + 1 starts a patch, in the steps of Meta's `Patcher.patch`, next token included.

    Restated from `bytelatent/data/patcher.py`: the first entropy is dropped, a mask over the others begins with True
    where rises count, what it marks starts behind the two that always do; lengths above the maximum are split.
    """
    rest = entropies[1:]
    threshold, added = np.float32(patcher_args["threshold"]), patcher_args.get("threshold_add")
    mask = rest > threshold
    if patcher_args.get("monotonicity"):
        mask = np.concatenate([[True], np.diff(rest) > threshold])[: len(rest)]
    elif added is not None:
        both = (np.diff(rest) > np.float32(added)) & (rest[1:] > threshold)
        both[:1] = False  # not right behind the True that the mask begins with
        mask = np.concatenate([[True], both])[: len(rest)]
    starts = [0, 1, *(np.flatnonzero(mask) + 2)]
    pieces: list[int] = []
    for length in np.diff([*starts, len(entropies) + 1]):
        longest = patcher_args.get("max_patch_length") or length
        whole, rest_of_patch = divmod(length - 1, longest)
        pieces += [longest] * whole + [rest_of_patch + 1]
    result = np.zeros(len(entropies) + 2, bool)
    result[np.cumsum([0, *pieces])] = True
    return result[1:-1]


ENTROPIES = st.lists(st.integers(0, 12), min_size=1, max_size=40).map(lambda steps: np.array(steps, np.float32) / 4)
THRESHOLDS = st.integers(-8, 12).map(lambda step: step / 4 + 0.125)


@settings(deadline=None, max_examples=150)
@given(ENTROPIES, THRESHOLDS, st.one_of(st.none(), THRESHOLDS), st.booleans(), st.one_of(st.none(), st.integers(1, 9)))
def test_rules_are_meta_s_on_random_entropies(
    entropies: NDArray[np.float32], threshold: float, added: float | None, monotonicity: bool, longest: int | None
) -> None:
    patcher_args = {"threshold": threshold, "threshold_add": added, "monotonicity": monotonicity}
    patcher_args |= {"max_patch_length": longest}
    rule = parse_patching(Section({"data": {"patcher_args": patcher_args}}, "train_args.json"))
    ids = np.full(len(entropies), 101)
    np.testing.assert_array_equal(
        patching_oracle.patch_starts(rule, entropies, ids), meta_starts(entropies, patcher_args)
    )


# Entropy models elsewhere.


def test_the_given_entropy_model_wins(pair: Pair, tmp_path: Path) -> None:
    other = tiny_models.random_model(pair.model.config, seed=99)
    patcher = save_patcher(other, tmp_path / "other", "config")
    checkpoint = open_checkpoint(pair.meta, patcher)
    weight = other.model.patcher.lm_head.weight.detach().numpy()
    np.testing.assert_array_equal(checkpoint.tensor("patcher.head"), weight)
    assert checkpoint.files()["entropy_model/config.json"] == patcher / "config.json"
    assert "entropy_model/params.json" not in checkpoint.files()


def test_the_consolidated_folder_comes_first(pair: Pair, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pair.meta / "entropy_model", tmp_path / "patcher"))
    (directory / "consolidated").mkdir()
    (directory / "consolidated.pth").rename(directory / "consolidated" / "consolidated.pth")
    (directory / "consolidated.pth").write_bytes(b"nothing")
    assert "entropy_model/consolidated/consolidated.pth" in open_checkpoint(pair.meta, directory).files()


def test_extra_tensors_are_listed(pair: Pair, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pair.meta, tmp_path / "checkpoint"))
    file = directory / "entropy_model" / "consolidated.pth"
    document = torch.load(file, weights_only=True)
    document["model"]["rope.freqs"] = torch.zeros(3)
    torch.save(document, file)
    assert open_checkpoint(directory).unused_names() == ["entropy_model/rope.freqs"]


# References.


def test_the_reference_is_transformers_model(tmp_path: Path) -> None:
    for seed, patched in ((4, True), (6, False)):
        pair = save_pair(seed, tmp_path / str(seed), "config", torch.bfloat16, apart=patched)
        assert pair.model.config.patch_in_forward is patched
        reference, expected = TransformersReference(pair.meta, pair.patcher), TransformersReference(pair.transformers)
        row, ids = reference.row(np.array(pair.ids)), np.array(pair.ids)
        np.testing.assert_array_equal(row.logits, expected.row(ids).logits)
        np.testing.assert_array_equal(row.patch_starts, expected.row(ids).patch_starts)


def test_a_compressed_checkpoint_in_floating_point_is_a_reference(pair: Pair, tmp_path: Path) -> None:
    compressed = quantize_checkpoint(pair.meta, tmp_path / "fp32", "fp32")
    row, expected = (TransformersReference(path).row(np.array(pair.ids)) for path in (compressed, pair.transformers))
    np.testing.assert_array_equal(row.logits, expected.logits)


def test_the_sha256_covers_every_file(pair: Pair) -> None:
    names = ["config.json", "train_args.json", "model.safetensors", "entropy_model/params.json",
             "entropy_model/consolidated.pth"]  # fmt: skip
    files = open_checkpoint(pair.meta).files()
    assert list(files) == names
    lines = "".join(f"{hashlib.sha256((pair.meta / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert checkpoint_sha256(files) == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("case", ["monotonic", "threshold and rise", "space", "static"])
def test_rules_that_transformers_lacks_are_no_reference(case: str, pair: Pair, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pair.meta, tmp_path / "checkpoint"))
    write_json(directory / "train_args.json", {"data": {"patcher_args": RULES[case][0]}})
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(config.replace('"patching_mode": "entropy"', '"patching_mode": null'))
    with pytest.raises(EdgebltError) as caught:
        TransformersReference(directory)
    assert str(caught.value).startswith(
        f"transformers cannot patch by {RULES[case][1].describe()}, only at a threshold"
    )
    assert_one_sentence(str(caught.value))


# Commands.


def test_commands_take_a_patcher(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pair = save_pair(4, tmp_path, "params", torch.float32, apart=True)
    options = ("--patcher", pair.patcher)
    bundle, text = tmp_path / "bundle", tmp_path / "text"
    text.write_bytes(bytes(token - 4 for token in pair.ids[1:40]))
    said = sentence(run_command(capfd, "inspect", pair.meta))
    assert said == f"{pair.meta} has no entropy model in entropy_model/; give the directory of one with --patcher"
    assert "patcher" in run_command(capfd, "inspect", pair.meta, *options).stdout
    assert run_command(capfd, "quantize", pair.meta, tmp_path / "int8", "--recipe", "int8", *options).code == 0
    assert run_command(capfd, "export", pair.meta, bundle, *options).code == 0
    arguments = ["validate", bundle, "--reference", pair.meta, "--text", text, "--max-kl", 1e-6]
    assert run_command(capfd, *arguments, "--min-boundary-agreement", 1, *options).code == 0
    refused: dict[tuple[object, ...], str] = {
        ("inspect", bundle): f"{bundle} is a bundle, which has its patcher; leave out --patcher",
        ("inspect", pair.transformers): f"{pair.transformers} is no checkpoint in Meta's form; leave out the patcher "
        f"{pair.patcher}",
        ("validate", bundle, "--reference-logits", text): f"{text} needs no entropy model; give --patcher with "
        "--reference only",
    }
    for command, expected in refused.items():
        assert sentence(run_command(capfd, *command, *options)) == expected
