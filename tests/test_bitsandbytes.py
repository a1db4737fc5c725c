"""bitsandbytes in and out: its checkpoints export with their very weights, and our nf4 and fp4 are its own numbers.

The oracle is bitsandbytes on the CPU, and transformers computing with its layers. What 4-bit codes stand for is
computed here from the format's definition: bitsandbytes 0.50.2 itself takes scales of other blocks on processors with
AVX-512 where rows are no multiple of a block.
"""

import functools
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes.functional as oracle
import numpy as np
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, BltForCausalLM

import tiny_models
from checkpoint_oracle import assert_one_sentence, modules, small_config
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.model import load
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.formats.codebooks import LEVELS, quantize_codebook
from edgeblt.quant.formats.weight_format import Codebook, Floating, Linear
from sampled import mostly_slow

PROMISED = 1e-3  # of the largest logit, between transformers and the bundle
TOLERANCE = 1e-5  # held: 2e-6 was measured
LLM_INT8_DEVIATION = 0.02  # of the logits' root mean square; 0.006 to 0.013 was measured, for transformers' own 0.015
LENGTH = 200  # ids
FOUR_BITS: dict[str, dict[str, Any]] = {
    f"{name}{', double' if double else ''}": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": name,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": torch.float32,
    }
    for name in ("nf4", "fp4")
    for double in (False, True)
}
KINDS = FOUR_BITS | {"int8": {"load_in_8bit": True}}
# Odd widths, grouped queries; no entropies; tied weights, a maximum length. Their heads are padded.
SEEDS = (0, 6, 10)
LARGE = 100  # no seed of tiny_models
FOUR_BITS_IN_THE_SUITE = ((0, "nf4"), (6, "fp4"), (10, "fp4, double"), (LARGE, "nf4, double"))
QUERY = "model.patcher.layers.0.self_attn.q_proj.weight"
STATE = f"{QUERY}.quant_state.bitsandbytes__nf4"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Quantized:
    """A checkpoint that transformers saved in a bitsandbytes format, and the model that it loads from there."""

    checkpoint: Path
    ids: list[int]

    @functools.cached_property
    def model(self) -> Any:  # a BltForCausalLM, whose own types are of no help
        return loaded(self.checkpoint)

    @functools.cached_property
    def logits(self) -> NDArray[np.float32]:
        """transformers' [LENGTH, vocab] of all ids at once."""
        return forward(self.model, self.ids)


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    """bitsandbytes compiles what it computes on odd shapes, anew for each; and tells of every product in int8."""
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with torch.compiler.set_stance("force_eager"):
        yield
    logger.setLevel(before)


def loaded(path: Path, dtype: torch.dtype = torch.float32, **quantization: Any) -> Any:
    """What transformers loads, set to compute with the format's numbers, in float32 all through if `dtype` says so."""
    options = {"quantization_config": BitsAndBytesConfig(**quantization)} if quantization else {}
    model = BltForCausalLM.from_pretrained(path, dtype=dtype, **options).eval()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Its own is in bfloat16 on some CPUs, and wrong on some.
            setattr(module, "forward", functools.partial(product, module))  # noqa: B010
    for parameter in model.parameters():
        if parameter.is_floating_point():  # transformers leaves them as they are stored
            parameter.data = parameter.data.to(dtype)
    return model


def product(layer: Any, value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(value, torch.from_numpy(stored_weight(layer)).to(value.dtype), layer.bias)


def forward(model: Any, ids: list[int]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return logits


def original(seed: int) -> Any:
    config = large_config() if seed == LARGE else tiny_models.random_config(seed)
    return tiny_models.random_model(config, seed)


def large_config() -> Any:
    """Matrices of hundreds of blocks, whose rows end within blocks."""
    return small_config(
        patcher_config=stack(96, 4, 150),
        encoder_config=stack(120, 5, 200) | {"cross_attn_all_layers": True},
        global_config=stack(240, 10, 321),
        decoder_config=stack(120, 6, 130) | {"hidden_size_global": 240},
        use_cache=False,
    )


def stack(width: int, heads: int, intermediate: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": intermediate}
    return sizes | {"num_hidden_layers": 2}


def quantize_with_transformers(
    root: Path, seed: int, dtype: torch.dtype = torch.float32, max_shard_size: str | int = "1GB", **options: Any
) -> Quantized:
    model = loaded(tiny_models.save_model(original(seed), root / "original", dtype), dtype, **options)
    ids = tiny_models.random_ids(seed, LENGTH)
    if dtype == torch.float32:
        tiny_models.separate_threshold(model, ids)
    model.save_pretrained(root / "checkpoint", max_shard_size=max_shard_size)
    return Quantized(root / "checkpoint", ids)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Quantized]:
    """By seed of the configuration and kind, made when first asked for."""

    def make(seed: int, kind: str) -> Quantized:
        return quantize_with_transformers(tmp_path_factory.mktemp("bitsandbytes"), seed, **KINDS[kind])

    return functools.cache(make)


def stored_weight(module: Any) -> NDArray[np.float32]:
    """What a layer computes with, float32 [out, in]."""
    weight = module.weight
    if isinstance(module, Linear4bit):
        return format_4bit(weight.data, weight.quant_state)
    if isinstance(module, Linear8bitLt):
        holder: Any = weight if weight.CB is not None else module.state  # the state, once it has computed
        rows = llm_int8(holder.CB, holder.SCB)
        theirs = oracle.int8_vectorwise_dequant(holder.CB, holder.SCB).numpy()
        np.testing.assert_allclose(rows, theirs, rtol=3e-7, atol=0)  # it multiplies by the float32 next to 1 / 127
        return rows
    floating: NDArray[np.float32] = weight.detach().float().numpy()
    return floating


def format_4bit(packed: torch.Tensor, state: Any) -> NDArray[np.float32]:
    """What codes stand for: two in a byte, the first in the high bits, of elements row after row. Element i is the
    level of its code times the scale of block i // blocksize, whether or not the block began in another row.

    A scale stored in 8 bits is the level of its code, of another table, times the scale of its block, plus an offset.
    """
    count, bytes_ = int(np.prod(state.shape)), packed.numpy().reshape(-1).view(np.uint8)
    codes = np.stack([bytes_ >> 4, bytes_ & 15], axis=1).reshape(-1)[:count]
    scales = state.absmax.numpy()
    if state.nested:
        nested = state.state2
        inner = np.repeat(nested.absmax.numpy(), nested.blocksize)[: len(scales)]
        scales = nested.code.numpy()[scales] * inner + np.float32(state.offset.numpy())
    by_element: NDArray[np.float32] = np.repeat(scales, state.blocksize)[:count]
    weight: NDArray[np.float32] = (state.code.numpy()[codes] * by_element).reshape(tuple(state.shape))
    return weight


def llm_int8(codes: torch.Tensor, largest: torch.Tensor) -> NDArray[np.float32]:
    scales: NDArray[np.float32] = np.divide(largest.numpy()[:, None], np.float32(127))
    return codes.numpy().astype(np.float32) * scales


def assert_same_weights(checkpoint: Checkpoint, model: Any) -> set[str]:
    """Every weight is the model's; gives the names of the quantized ones."""
    layers = (Linear4bit, Linear8bitLt)
    expected = dict(modules(model))
    assert checkpoint.names() == list(expected)
    for name, module in expected.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), stored_weight(module), err_msg=name)
        assert isinstance(checkpoint.format(name), Floating) != isinstance(module, layers), name
    return {name for name, module in expected.items() if isinstance(module, layers)}


def deviation(bundle: Path, quantized: Quantized) -> float:
    """The largest difference of logits, of the largest logit."""
    difference = load(bundle).session().feed(quantized.ids) - quantized.logits
    return float(np.abs(difference).max() / np.abs(quantized.logits).max())


def refusal(path: Path) -> str:
    with pytest.raises(EdgebltError) as caught:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            checkpoint.tensor(name)
    assert_one_sentence(str(caught.value))
    return str(caught.value)


# In.


@pytest.mark.parametrize(
    ("seed", "kind"),
    mostly_slow(itertools.product((*SEEDS, LARGE), KINDS), [*FOUR_BITS_IN_THE_SUITE, (0, "int8"), (10, "int8")]),
)
def test_weights_are_the_checkpoints_own(quantized: Callable[[int, str], Quantized], seed: int, kind: str) -> None:
    found = quantized(seed, kind)
    checkpoint = open_checkpoint(found.checkpoint)
    names = assert_same_weights(checkpoint, found.model)
    assert checkpoint.is_quantized and len(names) > 20
    # What transformers leaves in floating point.
    assert names.isdisjoint({"encoder.embedding", "encoder.hash_tables", "patcher.head", "decoder.head"})
    formats = {checkpoint.format(name) for name in names}
    name = kind.partition(",")[0]
    assert formats == {Linear(8, None, symmetric=True, scale_bits=32) if name == "int8" else Codebook(name, 64)}
    np.testing.assert_array_equal(
        checkpoint.rows("decoder.layers.0.gate", 3, 7), checkpoint.tensor("decoder.layers.0.gate")[3:7]
    )
    described = {checkpoint.dtype(name) for name in names}
    scales = ", scales in 8 bits" if "double" in kind else ""
    assert described == {"LLM.int8" if name == "int8" else f"{name}, blocks of 64{scales}"}


@pytest.mark.parametrize(
    ("seed", "kind"), mostly_slow(itertools.product((*SEEDS, LARGE), FOUR_BITS), FOUR_BITS_IN_THE_SUITE)
)
def test_four_bit_logits_are_transformers(
    quantized: Callable[[int, str], Quantized], seed: int, kind: str, tmp_path: Path
) -> None:
    found = quantized(seed, kind)
    bundle = export_bundle(found.checkpoint, tmp_path / "bundle")
    assert deviation(bundle.path, found) < TOLERANCE < PROMISED
    assert bundle.manifest.recipe == "bitsandbytes"
    assert bundle.manifest.stages["global"].weight_format == f"{kind.partition(',')[0]}, blocks of 64"


@pytest.mark.parametrize("seed", mostly_slow([1, 6, 14], keep=[14]))
def test_llm_int8_is_as_near_to_the_float_forward_as_transformers(seed: int, tmp_path: Path) -> None:
    """transformers rounds activations by row, the bundle by block of a row; the weights are the same."""
    found = quantize_with_transformers(tmp_path, seed, **KINDS["int8"])
    exact = loaded(tmp_path / "original")
    with torch.no_grad():
        for name, module in modules(exact):
            module.weight.copy_(torch.from_numpy(open_checkpoint(found.checkpoint).tensor(name)))
    exact.config.patching_threshold = found.model.config.patching_threshold
    expected = forward(exact, found.ids)
    bundle = load(export_bundle(found.checkpoint, tmp_path / "bundle").path)
    measured = spread(bundle.session().feed(found.ids) - expected) / spread(expected)
    assert measured < LLM_INT8_DEVIATION
    assert measured < 1.5 * spread(found.logits - expected) / spread(expected)


def spread(values: NDArray[np.float32]) -> float:
    """The root mean square."""
    return float(np.sqrt(np.square(values.astype(np.float64)).mean()))


@pytest.mark.parametrize(
    ("skipped", "heads"),
    [(["k_proj", "lm_head"], False), ([], True)],
    ids=["mixed formats in one attention", "heads too"],
)
def test_modules_that_are_skipped(skipped: list[str], heads: bool, tmp_path: Path) -> None:
    found = quantize_with_transformers(tmp_path, 1, **KINDS["nf4, double"], llm_int8_skip_modules=skipped)
    names = assert_same_weights(open_checkpoint(found.checkpoint), found.model)
    assert ("decoder.head" in names, "patcher.head" in names) == (heads, heads)
    assert ("decoder.layers.0.key" in names, "decoder.layers.0.query" in names) == (heads, True)
    assert deviation(export_bundle(found.checkpoint, tmp_path / "bundle").path, found) < TOLERANCE


def test_an_original_in_bfloat16(tmp_path: Path) -> None:
    """Its quant_state says bfloat16, to which bitsandbytes rounds only where it computes in it."""
    found = quantize_with_transformers(tmp_path, 6, torch.bfloat16, **KINDS["nf4"])
    assert (
        b"bfloat16"
        in load_file(found.checkpoint / SINGLE)[
            "model.local_decoder.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4"
        ]
        .numpy()
        .tobytes()
    )
    assert_same_weights(open_checkpoint(found.checkpoint), found.model)
    assert deviation(export_bundle(found.checkpoint, tmp_path / "bundle").path, found) < TOLERANCE


@pytest.mark.parametrize("block_size", mostly_slow([32, 256, 4096], [256]))
def test_block_sizes(block_size: int, tmp_path: Path) -> None:
    """transformers has no setting for them, but bitsandbytes has; MatMulBnb4 knows none above 256."""
    model = loaded(tiny_models.save_model(original(LARGE), tmp_path / "original"), **KINDS["fp4, double"])
    originals = load_file(tmp_path / "original" / SINGLE)
    for name, weight in ((f"{name}.weight", layer.weight) for name, layer in model.named_modules() if is_4_bit(layer)):
        weight.data, weight.quant_state = oracle.quantize_4bit(
            originals[name], blocksize=block_size, quant_type="fp4", compress_statistics=True
        )
    ids = tiny_models.random_ids(0, LENGTH)
    tiny_models.separate_threshold(model, ids)
    model.save_pretrained(tmp_path / "checkpoint")
    found = Quantized(tmp_path / "checkpoint", ids)
    checkpoint = open_checkpoint(found.checkpoint)
    assert checkpoint.format("decoder.layers.0.gate") == Codebook("fp4", block_size)
    assert_same_weights(checkpoint, found.model)
    assert deviation(export_bundle(found.checkpoint, tmp_path / "bundle").path, found) < TOLERANCE


def is_4_bit(layer: object) -> bool:
    return isinstance(layer, Linear4bit)


@pytest.mark.parametrize("kind", ["nf4, double", "int8"])
def test_shards(kind: str, tmp_path: Path) -> None:
    """A matrix and its companions can lie in different files."""
    found = quantize_with_transformers(tmp_path, 10, max_shard_size=3000, **KINDS[kind])
    assert len(list(found.checkpoint.glob("*.safetensors"))) > 10
    assert_same_weights(open_checkpoint(found.checkpoint), found.model)


@pytest.mark.parametrize("kind", ["nf4, double", "int8"])
def test_nothing_that_is_used_is_listed_as_unused(quantized: Callable[[int, str], Quantized], kind: str) -> None:
    """Only what belongs to cross-attentions without effect is left over."""
    stored = load_file(quantized(0, kind).checkpoint / SINGLE)
    checkpoint = open_checkpoint(quantized(0, kind).checkpoint)
    unused = checkpoint.unused_names()
    assert all(name.startswith("model.local_encoder.cross_attn_layers.") for name in unused)
    used = sum(checkpoint.stored_bytes(name) for name in checkpoint.names())
    assert used <= sum(tensor.nbytes for tensor in stored.values()) - sum(stored[name].nbytes for name in unused)


def test_quantized_checkpoints_are_not_quantized_again(
    quantized: Callable[[int, str], Quantized], tmp_path: Path
) -> None:
    path = quantized(0, "nf4").checkpoint
    with pytest.raises(EdgebltError, match="is quantized already; give the original, or export it as it is"):
        quantize_checkpoint(path, tmp_path / "out", "int8")
    with pytest.raises(EdgebltError, match="is quantized already; leave out the recipe, or give the original"):
        export_bundle(path, tmp_path / "out", "int8")
    with pytest.raises(EdgebltError, match="is quantized; give the checkpoint it was made from as the reference"):
        TransformersReference(path)


# In: refused.


@pytest.fixture
def nested(quantized: Callable[[int, str], Quantized], tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized(0, "nf4, double").checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def plain(quantized: Callable[[int, str], Quantized], tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized(0, "nf4").checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def eight_bits(quantized: Callable[[int, str], Quantized], tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized(0, "int8").checkpoint, tmp_path / "eight_bits"))


def with_tensors(directory: Path, changes: Mapping[str, torch.Tensor | None]) -> Path:
    tensors = load_file(directory / SINGLE)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, directory / SINGLE)
    return directory


def text(value: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)


def with_state(directory: Path, **fields: object) -> str:
    """The refusal of a checkpoint in which fields of one quant_state are others."""
    state = json.loads(load_file(directory / SINGLE)[STATE].numpy().tobytes())
    return refusal(with_tensors(directory, {STATE: text(json.dumps(state | fields).encode())}))


@pytest.mark.parametrize("companion", [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"])
def test_companions_that_are_missing_or_misshapen(companion: str, nested: Path) -> None:
    name = QUERY + companion
    tensor = load_file(nested / SINGLE)[name]
    message = refusal(with_tensors(nested, {name: tensor[:-1].clone()}))
    kind = "U8" if companion == ".absmax" else "F32"
    shape = list(tensor.shape)
    assert message == (
        f"{nested / SINGLE}: the tensor {name!r} is {kind} {[shape[0] - 1]} instead of {kind} {shape}; "
        "save the checkpoint again"
    )
    assert f"is F64 {shape} instead of {kind} {shape}" in refusal(with_tensors(nested, {name: tensor.double()}))
    assert refusal(with_tensors(nested, {name: None})) == (
        f"{nested / SINGLE} has no tensor {name!r}, which {QUERY!r} needs; save it again"
    )


def test_a_quant_state_that_is_missing_or_given_twice(nested: Path) -> None:
    said = f"{nested / SINGLE}: the tensor {QUERY!r}, without one quant_state, for nf4 or fp4, is not as bitsandbytes "
    state = load_file(nested / SINGLE)[STATE]
    twice = {STATE.replace("nf4", "fp4"): state}
    assert refusal(with_tensors(nested, twice)) == said + "saves it; save the checkpoint again"
    assert refusal(with_tensors(nested, {STATE: None} | dict.fromkeys(twice))).startswith(said)
    foreign = {STATE.replace("nf4", "af4"): state}
    assert refusal(with_tensors(nested, foreign)).startswith(said)


def test_codes_that_are_misshapen(plain: Path) -> None:
    codes = load_file(plain / SINGLE)[QUERY]
    assert f"{QUERY!r} is U8 [449, 1] instead of U8 [450, 1]" in refusal(with_tensors(plain, {QUERY: codes[:-1]}))
    assert "is U8 [1, 450] instead of U8 [450, 1]" in refusal(with_tensors(plain, {QUERY: codes.T.contiguous()}))
    assert refusal(with_tensors(plain, {QUERY: codes.reshape(-1).view(torch.bfloat16)[:, None]})) == (
        f"{plain / SINGLE}: the tensor {QUERY!r} holds 4-bit codes as BF16; save the checkpoint with "
        "bnb_4bit_quant_storage uint8"
    )


def test_codes_of_a_vector(plain: Path) -> None:
    norm = "model.patcher.norm.weight"
    message = refusal(with_tensors(plain, {norm: torch.zeros(30, dtype=torch.uint8)}))
    assert f"{norm!r}, a vector, is not as bitsandbytes saves it" in message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "which is not JSON"),
        (b"\xff\xfe", "which is not JSON"),
        (b"\x80\x04cos\nsystem\n", "which is not JSON"),  # the start of a pickle
        (b"[" * 4000, "which is not JSON"),
        (b"[1]", "which is not a JSON object"),
        (b"{}" + b" " * 5000, "which is no short JSON text"),
        (b"{}", "whose quant_state is not for nf4 of shape [30, 30]"),
    ],
)
def test_a_quant_state_that_is_something_else(content: bytes, what: str, plain: Path) -> None:
    tensor = text(content) if content else torch.zeros(0, dtype=torch.uint8)
    message = refusal(with_tensors(plain, {STATE: tensor}))
    assert what in message and message.endswith("is not as bitsandbytes saves it; save the checkpoint again")
    assert str(plain / SINGLE) in message and repr(QUERY)[:-1] in message


def test_a_quant_state_of_another_type(plain: Path) -> None:
    assert "which is no short JSON text" in refusal(with_tensors(plain, {STATE: torch.zeros(77)}))


@pytest.mark.parametrize("shape", [None, 30, "30", [30], [30, 31], [30, 30, 1], [1 << 70, 30], {"0": 30}])
def test_foreign_shapes(shape: object, plain: Path) -> None:
    assert "whose quant_state is not for nf4 of shape [30, 30]" in with_state(plain, shape=shape)


def test_foreign_kinds(plain: Path) -> None:
    levels = load_file(plain / SINGLE)[f"{QUERY}.quant_map"]
    for other in (levels.flip(0), torch.full((16,), torch.nan)):
        assert "whose quant_map is not nf4's" in refusal(with_tensors(plain, {f"{QUERY}.quant_map": other}))
    assert "whose quant_state is not for nf4 of shape" in with_state(plain, quant_type="fp4")


@pytest.mark.parametrize("value", [None, "64", 64.0, True, 0, -64, 16, 48, 8192, 10**30, 10**3000])
@pytest.mark.parametrize("field", ["blocksize", "nested_blocksize"])
def test_foreign_block_sizes(field: str, value: object, nested: Path) -> None:
    message = with_state(nested, **{field: value})
    assert f"whose {field} is " in message and "not a power of two from 32 to 4096" in message


@pytest.mark.parametrize("value", [None, 1, "0.5", float("nan"), float("inf"), 1e39, [0.5]])
def test_foreign_offsets(value: object, nested: Path) -> None:
    assert "whose nested_offset is " in with_state(nested, nested_offset=value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scales_that_are_not_finite(value: float, plain: Path, eight_bits: Path) -> None:
    for name in (f"{QUERY}.absmax", QUERY.replace("weight", "SCB")):
        directory = plain if name.endswith("absmax") else eight_bits
        scales = load_file(directory / SINGLE)[name]
        assert refusal(with_tensors(directory, {name: scales.index_fill(0, torch.tensor(1), value)})) == (
            f"{directory / SINGLE}: the tensor {name!r} holds values that are not finite; write the checkpoint again"
        )


@pytest.mark.parametrize("companion", ["nested_absmax", "nested_quant_map"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_nested_scales_that_are_not_finite(companion: str, value: float, nested: Path) -> None:
    name = f"{QUERY}.{companion}"
    tensors = load_file(nested / SINGLE)
    changes = {name: torch.full_like(tensors[name], value)}
    if value == 3e38:  # finite, but the product is not
        changes[f"{QUERY}.nested_absmax"] = torch.full_like(tensors[f"{QUERY}.nested_absmax"], value)
        changes[f"{QUERY}.nested_quant_map"] = torch.full_like(tensors[f"{QUERY}.nested_quant_map"], value)
    assert "absmax' holds values that are not finite" in refusal(with_tensors(nested, changes))


def test_eight_bits_that_are_incomplete_or_in_another_order(eight_bits: Path) -> None:
    scales, order = QUERY.replace("weight", "SCB"), QUERY + "_format"
    tensors = load_file(eight_bits / SINGLE)
    assert refusal(with_tensors(eight_bits, {order: torch.tensor(1, dtype=torch.uint8)})) == (
        f"{eight_bits / SINGLE}: the tensor {order!r}, which is not 0 for rows, is not as bitsandbytes saves it; "
        "save the checkpoint again"
    )
    assert "is U8 [3] instead of U8 []" in refusal(with_tensors(eight_bits, {order: torch.zeros(3).byte()}))
    with_tensors(eight_bits, {order: None})
    read = open_checkpoint(eight_bits).tensor("patcher.layers.0.query")
    np.testing.assert_array_equal(read, llm_int8(tensors[QUERY], tensors[scales]))
    assert "is F32 [29] instead of F32 [30]" in refusal(with_tensors(eight_bits, {scales: tensors[scales][:-1]}))
    assert f"has no tensor {scales!r}, which {QUERY!r} needs" in refusal(with_tensors(eight_bits, {scales: None}))
    changes: dict[str, torch.Tensor | None] = {scales: tensors[scales], QUERY: tensors[QUERY][:-1]}
    assert f"{QUERY!r} is I8 [29, 30] instead of I8 [30, 30]" in refusal(with_tensors(eight_bits, changes))


@pytest.mark.parametrize("record", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq"}, "hqq", [1]])
def test_other_quantizations(record: Any, plain: Path) -> None:
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"quantization_config": record}))
    method = record.get("quant_method") if isinstance(record, dict) else record
    assert refusal(plain) == (
        f"{plain / 'config.json'}: the checkpoint is quantized by {method!r} (quantization_config); give one by "
        "bitsandbytes, by `edgeblt quantize`, or in bfloat16, float16 or float32"
    )


def test_codes_of_a_config_that_tells_of_none(plain: Path) -> None:
    config = json.loads((plain / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    assert "has shape [450, 1], but config.json asks for [30, 30]; give the config.json and" in refusal(plain)


# Out.


@pytest.mark.parametrize("name", LEVELS)
def test_levels(name: str) -> None:
    np.testing.assert_array_equal(LEVELS[name], oracle.get_4bit_type(name, device="cpu").numpy())  # type: ignore[no-untyped-call]


matrices = st.tuples(st.integers(1, 9), st.integers(1, 90)).flatmap(
    lambda shape: arrays(
        np.float32,
        shape,
        elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32),
        fill=st.just(0.0) | st.floats(-3, 3, width=32),
    )
)


@settings(max_examples=300, deadline=None)
@given(matrices, st.sampled_from(sorted(LEVELS)), st.sampled_from([32, 64, 128, 256, 4096]))
def test_any_matrix_gives_the_numbers_of_bitsandbytes(weight: NDArray[np.float32], name: str, block_size: int) -> None:
    codes, state = oracle.quantize_4bit(torch.from_numpy(weight.copy()), blocksize=block_size, quant_type=name)
    ours = quantize_codebook(weight, Codebook(name, block_size))
    np.testing.assert_array_equal(ours.largest, state.absmax.numpy())
    np.testing.assert_array_equal(ours.dequantize(), format_4bit(codes, state))
    if weight.shape[1] % block_size == 0:  # otherwise it may be wrong: see below
        theirs = oracle.dequantize_4bit(codes, state).numpy().reshape(weight.shape)  # one byte comes transposed
        np.testing.assert_array_equal(ours.dequantize(), theirs)
    if name == "nf4":  # fp4 has two zeros, equally near
        assert ours.packed.tobytes() == codes.numpy().tobytes()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", sorted(LEVELS))
@pytest.mark.parametrize("shape", [(3, 64), (5, 256), (1, 4096), (3, 48), (7, 33)], ids=str)
def test_the_format_is_bitsandbytes_own(shape: tuple[int, int], name: str, double: bool) -> None:
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    codes, state = oracle.quantize_4bit(weight, blocksize=64, quant_type=name, compress_statistics=double)
    expected = format_4bit(codes, state)
    # Every element is near the one it came from: half the widest gap of levels, and for scales in 8 bits some more.
    assert np.abs(expected - weight.numpy()).max() < 0.25 * np.abs(weight.numpy()).max()
    theirs = oracle.dequantize_4bit(codes, state).numpy()
    if shape[1] % 64 and not np.allclose(theirs, expected, rtol=1e-6, atol=1e-6):
        assert spread(theirs - weight.numpy()) > spread(expected - weight.numpy())
        pytest.skip("bitsandbytes takes scales of other blocks on this processor: rows are no multiple of a block")
    np.testing.assert_allclose(theirs, expected, rtol=3e-7, atol=0)


@settings(max_examples=200, deadline=None)
@given(matrices, st.sampled_from(sorted(LEVELS)), st.sampled_from([32, 64, 256]))
def test_no_error_is_larger_than_half_the_widest_gap(weight: NDArray[np.float32], name: str, block_size: int) -> None:
    restored = quantize_codebook(weight, Codebook(name, block_size)).dequantize().reshape(-1).astype(np.float64)
    flat = weight.reshape(-1).astype(np.float64)
    gap = np.diff(np.sort(LEVELS[name].astype(np.float64))).max()
    for start in range(0, flat.size, block_size):
        block = slice(start, start + block_size)
        largest = np.abs(flat[block]).max()
        rounding = 4 * np.finfo(np.float32).eps * largest + 2e-38  # of the scaling; where bitsandbytes stops dividing
        assert np.abs(restored[block] - flat[block]).max() <= gap / 2 * largest + rounding


def test_packed_bytes() -> None:
    """The first code lies in the high bits; an odd number of codes is filled up with the code of zero."""
    weight = np.array([[1.0, -1.0, 0.0], [0.5, -0.25, 0.03]], np.float32)
    nf4 = quantize_codebook(weight, Codebook("nf4"))
    assert nf4.packed.tobytes() == bytes([0xF0, 0x7C, 0x47]) and nf4.largest.tolist() == [1.0]
    odd = quantize_codebook(2 * weight[:, :1], Codebook("nf4"))
    assert odd.packed.tobytes() == bytes([0xFC]) and odd.largest.tolist() == [2.0]
    assert quantize_codebook(weight[:1], Codebook("nf4")).packed.tobytes() == bytes([0xF0, 0x77])
    assert quantize_codebook(weight, Codebook("fp4")).packed.tobytes() == bytes([0x3B, 0x05, 0xF1])
    blocks = np.concatenate([np.zeros(64), np.full(64, 0.125), [-4.0]]).astype(np.float32)[None]
    several = quantize_codebook(blocks, Codebook("nf4"))
    assert several.packed.tobytes() == b"\x77" * 32 + b"\xff" * 32 + b"\x07"
    assert several.largest.tolist() == [0.0, 0.125, 4.0]
    np.testing.assert_array_equal(several.dequantize(), blocks)


RECIPE = "".join(f'[{stage}]\nformat = "nf4"\n' for stage in ("patcher", "encoder", "global", "decoder"))


@pytest.mark.parametrize("seed", [0, 10])
def test_a_recipe_gives_the_numbers_of_bitsandbytes(seed: int, tmp_path: Path) -> None:
    """The compressed checkpoint, and bundles from it and from the original: transformers' model of the same numbers."""
    (tmp_path / "nf4.toml").write_text(RECIPE)
    model = original(seed)
    with torch.no_grad():
        for name, module in modules(model):
            if isinstance(module, torch.nn.Linear):
                codes, state = oracle.quantize_4bit(module.weight, quant_type="nf4")
                module.weight.copy_(torch.from_numpy(format_4bit(codes, state)))
            elif name.endswith(".embedding"):
                module.weight.copy_(module.weight.half())
    ids = tiny_models.random_ids(seed, LENGTH)
    source = original(seed)
    tiny_models.separate_threshold(model, ids)
    source.config.patching_threshold = model.config.patching_threshold
    path = tiny_models.save_model(source, tmp_path / "original")

    compressed = open_checkpoint(quantize_checkpoint(path, tmp_path / "compressed", tmp_path / "nf4.toml"))
    for name, module in modules(model):
        if not (model.config.tie_word_embeddings and name in ("encoder.embedding", "decoder.head")):
            np.testing.assert_array_equal(compressed.tensor(name), module.weight.detach().numpy(), err_msg=name)
    if model.config.tie_word_embeddings:  # one matrix there, two formats here: nothing to compare the logits with
        return
    for checkpoint, recipe in ((compressed.path, None), (path, tmp_path / "nf4.toml")):
        bundle = load(export_bundle(checkpoint, tmp_path / f"of {checkpoint.name}", recipe).path)
        expected = forward(model, ids)
        difference = np.abs(bundle.session().feed(ids) - expected).max()
        assert difference < TOLERANCE * np.abs(expected).max()


def test_the_packaged_recipe(tmp_path: Path) -> None:
    model = original(6)
    path = tiny_models.save_model(model, tmp_path / "original")
    compressed = open_checkpoint(quantize_checkpoint(path, tmp_path / "compressed", "nf4"))
    quantized = [name for name in compressed.names() if compressed.format(name) == Codebook("nf4", 64)]
    layers = dict(modules(model))
    for name in quantized:
        codes, state = oracle.quantize_4bit(layers[name].weight.detach(), quant_type="nf4")
        np.testing.assert_array_equal(compressed.tensor(name), format_4bit(codes, state), err_msg=name)
    stages = {name.partition(".")[0] for name in quantized}
    assert stages >= {"encoder", "global", "decoder"} and len(quantized) > 20
