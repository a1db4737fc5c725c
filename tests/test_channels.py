"""Feed-forward channels that are removed: which, what makes up for them, and that all else stays as it is."""

import copy
import dataclasses
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import BltForCausalLM

import checkpoint_oracle
import patching_oracle
import test_exactness
import tiny_models
from checkpoint_oracle import assert_one_sentence
from conftest import ENTROPY_TOLERANCE, TOLERANCE
from edgeblt.bundle.contract import STAGES
from edgeblt.bundle.dataclass_json import dataclass_document, parse_dataclass
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.inspection import inspect_checkpoint
from edgeblt.model import load
from edgeblt.quant.calibration.layerwise import calibration_texts
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.formats.weight_format import Linear
from edgeblt.quant.methods.channel_choice import choose_channels
from edgeblt.quant.methods.channels import MULTIPLE, kept_count
from edgeblt.quant.methods.data_free import quantize_least_squares
from edgeblt.quant.methods.gptq import DAMPING, Inputs, Products, gptq
from edgeblt.quant.recipes.recipe import Recipe, load_recipe
from sampled import mostly_slow
from test_commands import run_command, sentence
from test_methods import dependent_inputs

SEED = 10  # a patcher, two global layers, a projection into their width
SIZES = {"patcher": 140, "encoder": 150, "global": 200, "decoder": 130}  # channels
KEPT = {"patcher": 128, "encoder": 128, "global": 128, "decoder": 128}  # of them, where half are wanted
LENGTH = 300
TEXT_BYTES = 400  # of a text at a time in calibration
Array = NDArray[np.float64]

FORMATS = {
    "fp32": "",
    "fp16": 'format = "fp16"',
    "int8": 'format = "int8"\nblock_size = 128\nsymmetric = true',
    "int4-gptq": 'format = "int4"\nmethod = "gptq"',
    "wanda": 'format = "int8"\nblock_size = 64\nsymmetric = true\nsparsity = "2:4"\npruning = "wanda"',
    "nf4": 'format = "nf4"',
}


def recipe_text(settings: str, share: str = "50%", stages: tuple[str, ...] = STAGES) -> str:
    return "".join(f'[{stage}]\n{settings}\nchannels = "{share}"\n' for stage in stages)


def oracle_of(sizes: dict[str, int]) -> Any:  # a BltForCausalLM, whose own types are of no help
    config = tiny_models.random_config(SEED)
    for stage, size in sizes.items():
        stack(config, stage).intermediate_size = size
    config.decoder_config.num_hidden_layers = 1  # quicker
    model = tiny_models.random_model(config, SEED)
    tiny_models.separate_threshold(model, tiny_models.random_ids(SEED, LENGTH))
    return model


def stack(config: Any, stage: str) -> Any:
    return getattr(config, f"{stage}_config")


def with_weights(model: Any, checkpoint: Checkpoint) -> Any:
    """transformers' own model with fewer channels and the checkpoint's weights."""
    config = copy.deepcopy(model.config)
    for stage, size in KEPT.items():
        stack(config, stage).intermediate_size = size
    pruned = BltForCausalLM(config).eval()
    for name, module in checkpoint_oracle.modules(pruned):
        weight = checkpoint.tensor(name)
        assert weight.shape == module.weight.shape, name
        if isinstance(module, torch.nn.Embedding) and isinstance(checkpoint.format(name), Linear):
            weight = weight.astype(np.float16).astype(np.float32)  # codes that are looked up are decoded so
        module.weight = torch.nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    return pruned


@dataclass(frozen=True)
class Workshop:
    """A model, and what recipes make of it."""

    root: Path
    model: Any

    @functools.cached_property
    def original(self) -> Path:
        return tiny_models.save_model(self.model, self.root / "model")

    @functools.cached_property
    def text(self) -> Path:
        path = self.root / "text"
        path.write_bytes(bytes(id - 4 for id in tiny_models.random_ids(99, 2 * TEXT_BYTES + 20)[1:]))
        return path

    @functools.cache  # noqa: B019  (lives as long as the tests of this file)
    def recipe(self, name: str, share: str = "50%") -> Path:
        path = self.root / f"{name}-{share[:-1]}.toml"
        path.write_text(recipe_text(FORMATS[name], share))
        return path

    @functools.cache  # noqa: B019
    def compressed(self, name: str) -> Path:
        return quantize_checkpoint(self.original, self.root / name, self.recipe(name), self.text)

    @functools.cache  # noqa: B019
    def bundle(self, name: str) -> Path:
        return export_bundle(self.compressed(name), self.root / f"{name}-bundle").path


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeblt.quant.calibration.layerwise.TEXT_BYTES", TEXT_BYTES)
        patch.setattr("edgeblt.quant.methods.data_free.SHARES", (1.0, 0.9))  # quicker
        yield Workshop(tmp_path_factory.mktemp("channels"), oracle_of(SIZES))


# Which channels go.


def loss(down: Array, gram: Array, kept: list[int]) -> float:
    """Of the best weights for these inputs alone: sum of squares that `gram`, of all inputs, gives the difference."""
    best = np.linalg.solve(gram[np.ix_(kept, kept)], gram[kept] @ down.T).T
    difference = down.copy()
    difference[:, kept] -= best
    return float(np.trace(difference @ gram @ difference.T))


def one_by_one(down: Array, gram: Array, count: int) -> list[int]:
    """Each time the channel without which the loss is least."""
    kept = list(range(len(gram)))
    while len(kept) > count:
        rest = [[other for other in kept if other != one] for one in kept]
        kept = min(rest, key=lambda kept: loss(down, gram, kept))
    return kept


@pytest.mark.parametrize("seed", range(6))
def test_what_can_best_be_made_up_for_goes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, down = dependent_inputs(rng, 24, 200), rng.standard_normal((7, 24)).astype(np.float32)
    gram = inputs.T @ inputs
    damped = gram + (DAMPING * np.diag(gram).mean() + 1e-12) * np.eye(24)
    chosen = choose_channels(down, torch.from_numpy(gram), 9)
    assert chosen.tolist() == one_by_one(down.astype(np.float64), damped, 9)
    np.testing.assert_array_equal(gram, inputs.T @ inputs)  # it stays


def test_many_go_at_a_time() -> None:
    """Two of 300, not one: nearly as good as one by one, and far better than any."""
    rng = np.random.default_rng(0)
    inputs, down = dependent_inputs(rng, 300, 1000), rng.standard_normal((20, 300)).astype(np.float32)
    gram = inputs.T @ inputs
    gram += DAMPING * np.diag(gram).mean() * np.eye(300)
    chosen = choose_channels(down, torch.from_numpy(gram), 128)
    assert len(chosen) == 128 and (np.diff(chosen) > 0).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeblt.quant.methods.channel_choice.STEPS", 300)
        singly = choose_channels(down, torch.from_numpy(gram), 128)
    at_random = [loss(down.astype(np.float64), gram, sorted(rng.permutation(300)[:128])) for _ in range(10)]
    lost, least = (loss(down.astype(np.float64), gram, kept.tolist()) for kept in (chosen, singly))
    assert lost < 1.1 * least and lost < 0.5 * min(at_random)


# What makes up for them.


def fitted(inputs: Array, exact: Array, down: Array, kept: NDArray[np.int64]) -> Array:
    """Least squares in float64: the weights on kept inputs that give what `down` gives on the exact ones; damped."""
    own = inputs[:, kept]
    damping = np.sqrt(DAMPING * np.square(own).sum(axis=0).mean() + 1e-12)
    system = np.concatenate([own, damping * np.eye(len(kept))])
    wanted = np.concatenate([exact @ down.T, damping * down[:, kept].T])
    result: Array = np.linalg.lstsq(system, wanted)[0].T
    return result


@pytest.mark.parametrize("group", [1, 4])
def test_the_rest_is_fitted(group: int) -> None:
    rng = np.random.default_rng(1)
    exact, down = dependent_inputs(rng, 40, 500), rng.standard_normal((9, 40)).astype(np.float32)
    inputs = exact + 0.1 * rng.standard_normal(exact.shape)
    kept = np.sort(rng.permutation(40)[:24])
    products = Products(torch.from_numpy(inputs.T @ inputs), torch.from_numpy((exact - inputs).T @ inputs))
    result = Inputs(products, group, torch.from_numpy(kept)).fitted(down)
    expected = fitted(inputs, exact, down.astype(np.float64), kept)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_rounding_makes_up_too() -> None:
    """GPTQ from the fitted weights is nearer to what all channels give than rounding them is."""
    rng = np.random.default_rng(2)
    inputs, down = dependent_inputs(rng, 96, 2000), rng.standard_normal((30, 96)).astype(np.float32)
    kept, format = np.sort(rng.permutation(96)[:64]), Linear(4, 32, symmetric=False)

    def known() -> Inputs:
        gram = torch.from_numpy(inputs.T @ inputs)
        return Inputs(Products(gram, torch.zeros_like(gram)), kept=torch.from_numpy(kept))

    rounded = quantize_least_squares(known().fitted(down), format).dequantize()
    better = gptq(down, known(), format).dequantize()
    errors = [np.square(inputs[:, kept] @ weight.T - inputs @ down.T).sum() for weight in (better, rounded)]
    assert errors[0] < 0.9 * errors[1]


def reading(model: Any, texts: list[list[int]], starts: list[NDArray[np.bool_]]) -> dict[str, Array]:
    """What every `down` of transformers' model reads, by canonical name: float64 [all positions, channels]."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0][0]))
        for name, module in checkpoint_oracle.modules(model)
        if name.endswith(".down")
    ]
    for ids, own in zip(texts, starts, strict=True):
        tiny_models.reference_entropies(model, ids)
        test_exactness.forward(model, ids, own)
        for name, rows in seen.items():
            if name.startswith("global.") and own[-1]:
                rows[-1] = rows[-1][:-1]  # a patch that no byte of the text is in
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows).double().numpy() for name, rows in seen.items()}


def test_every_layer_is_fitted_to_what_its_own_inputs_are(workshop: Workshop) -> None:
    """Layer by layer, from what the smaller model before it computes, to what the whole one does: the gradient is 0."""
    compressed, original = open_checkpoint(workshop.compressed("fp32")), open_checkpoint(workshop.original)
    texts = [text.tolist() for text in calibration_texts(workshop.text.read_bytes())]
    starts = []
    for ids in texts:
        entropies = tiny_models.reference_entropies(workshop.model, ids).numpy()
        assert np.abs(entropies[1:] - original.config.patching.threshold).min() > ENTROPY_TOLERANCE
        starts.append(patching_oracle.patch_starts(original.config.patching, entropies, ids))
    exact = reading(workshop.model, texts, starts)
    inputs = reading(with_weights(workshop.model, compressed), texts, starts)
    assert len(exact) == sum(SIZES[stage] > 0 for stage in SIZES for _ in layers(original, stage))
    for name, wanted in exact.items():
        gate, whole = (checkpoint.tensor(name.replace("down", "gate")) for checkpoint in (compressed, original))
        kept = [np.flatnonzero((whole == row).all(axis=1)).item() for row in gate]
        assert kept == sorted(kept)
        up = (checkpoint.tensor(name.replace("down", "up")) for checkpoint in (compressed, original))
        np.testing.assert_array_equal(next(up), next(up)[kept])
        down, own = original.tensor(name).astype(np.float64), compressed.tensor(name).astype(np.float64)
        x = inputs[name]
        damping = DAMPING * np.square(x).sum(axis=0).mean()
        gradient = (x @ own.T - wanted @ down.T).T @ x + damping * (own - down[:, kept])
        scale = np.abs((wanted @ down.T).T @ x).max()
        assert np.abs(gradient).max() < 1e-4 * scale, name
        unfitted = (x @ down[:, kept].T - wanted @ down.T).T @ x
        assert np.abs(unfitted).max() > 1e-2 * scale, name


def layers(checkpoint: Checkpoint, stage: str) -> list[str]:
    return [name for name in checkpoint.names() if name.startswith(f"{stage}.layers") and name.endswith(".down")]


def test_channels_that_do_nothing_are_no_loss(tmp_path: Path, workshop: Workshop) -> None:
    """Dead ones go first, and nothing has to be made up for: what is left is as it was."""
    model, rng = copy.deepcopy(workshop.model), np.random.default_rng(3)
    alive: dict[str, NDArray[np.int64]] = {}
    for name, module in checkpoint_oracle.modules(model):
        if name.endswith(".up"):
            size = len(module.weight)
            dead = rng.permutation(size)[: size - 100]
            module.weight.data[dead] = 0
            alive[name.removesuffix(".up")] = np.setdiff1d(np.arange(size), dead)
    checkpoint = tiny_models.save_model(model, tmp_path / "model")
    made = quantize_checkpoint(checkpoint, tmp_path / "out", workshop.recipe("fp32"), workshop.text)
    original, compressed = open_checkpoint(checkpoint), open_checkpoint(made)
    for prefix, channels in alive.items():
        up, whole = compressed.tensor(f"{prefix}.up"), original.tensor(f"{prefix}.up")
        living = np.flatnonzero(up.any(axis=1))
        np.testing.assert_array_equal(up[living], whole[channels])
        down, wanted = compressed.tensor(f"{prefix}.down"), original.tensor(f"{prefix}.down")
        largest = float(np.abs(wanted).max())
        np.testing.assert_allclose(down[:, living], wanted[:, channels], rtol=0, atol=1e-6 * largest)
    ids = np.array(tiny_models.random_ids(SEED, LENGTH))
    before, after = (
        load(export_bundle(source, tmp_path / f"bundle{number}").path).session().feed(ids)
        for number, source in enumerate((checkpoint, made))
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=TOLERANCE * float(np.abs(before).max()))


# From the checkpoint to the bundle.


def test_transformers_computes_the_same(workshop: Workshop) -> None:
    compressed = open_checkpoint(workshop.compressed("fp32"))
    for stage, size in KEPT.items():
        config = compressed.config
        found = {"patcher": config.patcher, "encoder": config.encoder, "global": config.global_}.get(
            stage, config.decoder
        )
        assert found and found.intermediate_size == size
    check_bundle(workshop, "fp32")


@pytest.mark.usefixtures("products_in_float32")
@pytest.mark.parametrize("name", mostly_slow(FORMATS, ("fp32", "int4-gptq", "wanda")))
def test_every_format(workshop: Workshop, name: str) -> None:
    check_bundle(workshop, name)
    compressed, original = open_checkpoint(workshop.compressed(name)), open_checkpoint(workshop.original)
    assert compressed.unused_names() == [] and compressed.names() == original.names()
    model = load(workshop.bundle(name))
    assert model.config == compressed.config
    sizes = {stage: original.shape(layers(original, stage)[0])[1] for stage in STAGES}
    assert sizes == SIZES


def check_bundle(workshop: Workshop, name: str) -> None:
    compressed, ids = open_checkpoint(workshop.compressed(name)), tiny_models.random_ids(SEED, LENGTH)
    oracle = with_weights(workshop.model, compressed)
    chunks = list(load(workshop.bundle(name)).session().run(np.array(ids)))
    logits, starts = (np.concatenate([getattr(chunk, part) for chunk in chunks]) for part in ("logits", "patch_starts"))
    expected = test_exactness.forward(oracle, ids, starts)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


def test_channels_cost_what_they_cost(workshop: Workshop) -> None:
    """The recorded error counts weights that are gone as zeros."""
    compressed, original = open_checkpoint(workshop.compressed("fp32")), open_checkpoint(workshop.original)
    squares, total = 0.0, 0.0
    for name in original.names():
        if name.startswith("global."):
            whole = original.tensor(name).astype(np.float64)
            total += np.square(whole).sum()
            if name.endswith((".gate", ".up", ".down")):
                gate = compressed.tensor(f"{name.rpartition('.')[0]}.gate")
                all_gates = original.tensor(f"{name.rpartition('.')[0]}.gate")
                kept = [np.flatnonzero((all_gates == row).all(axis=1)).item() for row in gate]
                restored = np.zeros_like(whole)
                restored[(slice(None), kept) if name.endswith("down") else kept] = compressed.tensor(name)
                squares += np.square(whole - restored).sum()
    assert compressed.record
    assert compressed.record.relative_error["global"] == pytest.approx(np.sqrt(squares / total), rel=1e-5)


def test_commands(workshop: Workshop, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The bundle is validated against the whole model; a recipe of channels is planned, and wants a text."""
    text, report, recipe = tmp_path / "text", tmp_path / "report.json", workshop.recipe("int8")
    text.write_bytes(workshop.text.read_bytes()[:300])
    bundle = export_bundle(workshop.compressed("int8"), tmp_path / "bundle").path
    validated = run_command(
        capfd, "validate", bundle, "--reference", workshop.original, "--text", text, "--json", report
    )
    assert validated.code == 0, validated.stderr
    assert 0.01 < json.loads(report.read_text())["mean_kl"] < 1
    (tmp_path / "short").write_bytes(b"short")
    refused = run_command(
        capfd, "export", workshop.original, tmp_path / "out", "--recipe", recipe, "--calibration", tmp_path / "short"
    )
    assert "text has 5 bytes; give at least" in sentence(refused) and not (tmp_path / "out").exists()
    plans = inspect_checkpoint(open_checkpoint(workshop.original), [recipe]).plans
    planned = next(plan for plan in plans if plan.recipe == recipe.stem)
    (made,) = inspect_checkpoint(open_checkpoint(workshop.compressed("int8"))).plans
    assert dataclasses.replace(planned, recipe="") == dataclasses.replace(made, recipe="")


# Recipes.


@given(st.integers(1, 99), st.integers(1, 20_000))
def test_how_many_are_kept(percent: int, size: int) -> None:
    kept = kept_count(f"{percent}%", size)
    assert kept == size or kept % MULTIPLE == 0
    assert 100 * kept >= percent * size and kept <= size
    assert kept - MULTIPLE < percent * size / 100


def test_recipes_go_through_files(workshop: Workshop) -> None:
    recipe = load_recipe(workshop.recipe("int8", "75%"))
    assert recipe.global_.channels == "75%" and recipe.needs_text and recipe.needs_calibration
    assert parse_dataclass(Recipe, json.loads(json.dumps(dataclass_document(recipe))), "a record") == recipe
    written = open_checkpoint(workshop.compressed("nf4")).record
    assert written and written.recipe == load_recipe(workshop.recipe("nf4"))
    assert load_recipe("int8").pruned(open_checkpoint(workshop.original).config).decoder.intermediate_size == 130


REFUSED = [
    *((f"[global]\nchannels = {value}", "channels is") for value in (
        '"0%"', '"100%"', '"75"', '"7.5%"', '"-5%"', '"075%"', '""', '"most"', '"50%\\n"', '"2:4"', "75", "0.75",
        "true", '"\u0667\u0665%"', f'"{"9" * 5000}%"',
    )),
    ('[tables]\nchannels = "50%"', "tables: only a stage has channels; give them for patcher, encoder, global"),
    ('[heads]\nchannels = "50%"', "heads: only a stage has channels"),
    ('[embeddings]\nchannels = "50%"', "embeddings: only a stage has channels"),
    ('channels = "50%"', "unknown field 'channels'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_share(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(EdgebltError) as refused:
        load_recipe(path)
    assert_one_sentence(str(refused.value).replace(str(tmp_path), ""))
    assert said in str(refused.value)
