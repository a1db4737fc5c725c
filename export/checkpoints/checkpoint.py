"""A checkpoint as one set of canonical names, whatever form it is stored in; tensors are read one at a time.

Names: `STAGE.PART` and `STAGE.layers.{i}.PART`, in the order of the computation. Linear weights are [out, in]. Those of
a BLT, other architectures having theirs in their own folders:

    patcher   embedding, layers.{i}, norm, head                   (absent where the patching rule needs no entropies)
    encoder   embedding, hash_tables, table_projection (with over-encoding only), layers.{i}, patch_projection, cross
    global    projection (only where the widths differ), layers.{i}
    decoder   patch_projection, cross.{i}, layers.{i}, norm, head

    layers.{i}         attention_norm, query, key, value, output, mlp_norm, gate, up, down
    cross, cross.{i}   query_norm, key_norm, query, key, value, output
"""

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.architectures import ByteModelConfig
from edgeblt.bundle.config import ModelConfig, TransformerConfig
from edgeblt.bundle.held_files import unreadable
from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.errors import CheckpointNote, EdgebltError
from edgeblt.export.architectures import open_other_form, workbench_architecture
from edgeblt.export.checkpoints.compressed_form import CompressionRecord, is_compressed, open_compressed_form
from edgeblt.export.checkpoints.files.checkpoint_files import CONFIG
from edgeblt.export.checkpoints.files.stored_weights import (
    FloatingParts,
    FloatingWeight,
    PrunedTable,
    Shape,
    StoredWeight,
)
from edgeblt.export.checkpoints.meta_form import is_meta_form, open_meta_form
from edgeblt.export.checkpoints.transformers_form import open_transformers_form
from edgeblt.export.graphs.weight_source import Encoded
from edgeblt.export.hub.repository import local_checkpoint
from edgeblt.quant.formats.weight_format import WeightFormat

_KEPT_NUMBERS = 1 << 26  # numbers of a model whose weights a reference keeps; those of a larger one are read again


class Checkpoint:
    """An opened checkpoint, whose tensors are complete and have the configuration's shapes. See `open_checkpoint`."""

    def __init__(
        self,
        path: Path,
        config: ByteModelConfig,
        weights: dict[str, StoredWeight],
        unused: list[str],
        record: CompressionRecord | None = None,
        files: dict[str, Path] | None = None,
        is_transformers_form: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.config: Any = config  # a ByteModelConfig
        self.record = record  # record of `edgeblt quantize`; None for other checkpoints
        self.is_transformers_form = is_transformers_form
        self.notes = notes  # sentences for the user on how the configuration was read
        self._files = files
        self._weights = weights
        self._unused = unused

    def names(self) -> list[str]:
        """Canonical names, in stage order."""
        return list(self._weights)

    def unused_names(self) -> list[str]:
        """Stored names of tensors that do not affect what the model computes."""
        return list(self._unused)

    def files(self) -> dict[str, Path]:
        """Files of the checkpoint by name, its configuration first."""
        if self._files is None:
            return {path.name: path for path in (self.path / CONFIG, *sorted(self.path.glob("*.safetensors")))}
        return dict(self._files)

    @property
    def is_quantized(self) -> bool:
        """Whether any weight is stored in other than floating-point numbers, or without some of its rows."""
        return any(not isinstance(weight, FloatingWeight | FloatingParts) for weight in self._weights.values())

    @property
    def has_own_formats(self) -> bool:
        """Whether the formats are fixed, so that no recipe applies: quantized, or written by `edgeblt quantize`."""
        return self.record is not None or self.is_quantized

    @property
    def recipe_name(self) -> str:
        """Name of the recipe that made a checkpoint with formats of its own."""
        return self.record.recipe.name if self.record else "bitsandbytes"

    def quantized_already(self, remedy: str) -> EdgebltError:
        return EdgebltError(f"{self.path} is quantized already; {remedy}")

    def warn(self) -> None:
        """Issues the notes as warnings, attributed to the caller of the function that calls this."""
        for note in self.notes:
            warnings.warn(note, CheckpointNote, stacklevel=3)

    def shape(self, name: str) -> Shape:
        return self._weights[name].shape

    def format(self, name: str) -> WeightFormat:
        """The format that stores the weight without loss; fp32 for floating-point weights of any width."""
        return self._weights[name].format

    def dtype(self, name: str) -> str:
        """The stored type in words: "bfloat16", "int4, blocks of 32", ..."""
        return self._weights[name].dtype

    def stored_bytes(self, name: str) -> int:
        return sum(part.stored_bytes for part in self._weights[name].parts)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The whole tensor, read now, float32, C-contiguous. Raises EdgebltError (unreadable, NaN or infinite)."""
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` along the first axis: for hash tables larger than memory. Raises as `tensor` does."""
        return self._weights[name].rows(start, stop)

    def exact_tensors(self) -> Callable[[str], NDArray[np.float32]]:
        """A reader of weights for a reference, which keeps those of a small model. Raises EdgebltError where weights
        are quantized."""
        if self.is_quantized:
            raise EdgebltError(f"{self.path} is quantized; give the checkpoint it was made from as the reference")
        is_small = sum(math.prod(weight.shape) for weight in self._weights.values()) <= _KEPT_NUMBERS
        return functools.cache(self.tensor) if is_small else self.tensor

    def row_index(self, name: str) -> NDArray[np.int32] | None:
        """The stored row for each row of hash tables of which some were dropped, else None. Raises as `tensor` does."""
        weight = self._weights[name]
        return weight.row_index() if isinstance(weight, PrunedTable) else None

    def encoded(self, name: str, start: int, stop: int) -> Encoded:
        """Rows `start` to `stop` in the weight's own format; of codebook formats all. Raises as `tensor` does."""
        return self._weights[name].encoded(start, stop)

    def fingerprint(self, *settings: object) -> str:
        """A text that changes with the files (name, size, modification time) or with these settings of a conversion.

        Raises EdgebltError if a file is gone.
        """
        files = sorted({part.file for weight in self._weights.values() for part in weight.parts})
        try:
            stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        except OSError as error:
            raise unreadable(error.filename, error, "give a whole checkpoint") from None
        return hashlib.sha256(repr((self.config, stats, settings)).encode(errors="surrogateescape")).hexdigest()


def open_checkpoint(path: str | Path, patcher: str | Path | None = None, strict: bool = False) -> Checkpoint:
    """Open a checkpoint in transformers' form (bitsandbytes' weights included), Meta's, or `edgeblt quantize`'s.

    Or one in the form of another architecture (docs/architectures.md). Any of them can be a model on the Hugging Face
    hub, `OWNER/NAME[@REVISION]`, which is downloaded first. `patcher` is the directory of Meta's entropy model for a
    checkpoint in Meta's form, instead of the one in it. Fields of the configuration that no model known to edgeblt has
    are named in the checkpoint's `notes`, and refused if `strict`.
    Reads the configuration and headers but no weights. Raises EdgebltError: files missing, unreadable or leading
    elsewhere; a configuration edgeblt cannot follow; a tensor missing, of another shape than the configuration asks
    for, or of no dtype that weights have; `patcher` for a checkpoint that has its own.
    """
    path = local_checkpoint(path)
    patcher = None if patcher is None else local_checkpoint(patcher)
    if is_meta_form(path):
        meta = open_meta_form(path, patcher, strict)
        weights = {name: meta.weight(name, shape) for name, shape in expected_shapes(meta.config).items()}
        return Checkpoint(path, meta.config, weights, meta.unused(weights.values()), files=meta.files, notes=meta.notes)
    if patcher is not None:
        raise EdgebltError(f"{path} is no checkpoint in Meta's form; leave out the patcher {patcher}")
    if is_compressed(path):
        form = open_compressed_form(path)
        shapes = expected_shapes(form.config)
        weights = {name: form.weight(name, shape) for name, shape in shapes.items()}
        return Checkpoint(path, form.config, weights, form.unused(weights.values()), form.record)
    other = open_other_form(path, strict)
    if other:
        return Checkpoint(path, other.config, other.weights, other.unused, files=other.files, notes=other.notes)
    original = open_transformers_form(path, strict)
    config, notes = original.config.model, original.config.notes
    weights = {name: original.weight(name, shape) for name, shape in expected_shapes(config).items()}
    unused = original.unused(weights.values())
    return Checkpoint(
        path, config, weights, unused, files=original.files, is_transformers_form=original.has_own_names, notes=notes
    )


def expected_shapes(config: ByteModelConfig) -> dict[str, Shape]:
    """Canonical name -> shape, of every tensor that a model of this configuration has, in stage order."""
    return workbench_architecture(config.architecture).shapes(config)


def blt_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The same of a BLT."""
    return dict(_shapes(config))


def _shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    encoder, decoder, hashes = config.encoder, config.decoder, config.hashes
    if config.patcher is not None:
        yield "patcher.embedding", (config.vocab_size, config.patcher.hidden_size)
        yield from _layers("patcher", config.patcher)
        yield "patcher.norm", (config.patcher.hidden_size,)
        yield "patcher.head", (config.vocab_size, config.patcher.hidden_size)
    yield "encoder.embedding", (config.vocab_size, encoder.hidden_size)
    yield "encoder.hash_tables", (hashes.row_count, config.table_width)
    if isinstance(hashes, OverEncoding):
        yield "encoder.table_projection", (encoder.hidden_size, encoder.hidden_size)
    yield from _layers("encoder", encoder)
    yield "encoder.patch_projection", (config.patch_width, encoder.hidden_size)
    yield from _cross("encoder.cross", encoder)
    if config.has_global_projection:
        yield "global.projection", (config.global_.hidden_size, config.patch_width)
    yield from _layers("global", config.global_)
    yield "decoder.patch_projection", (config.cross_attention_k * decoder.hidden_size, config.global_.hidden_size)
    for index in range(config.decoder_cross_count):
        yield from _cross(f"decoder.cross.{index}", decoder)
    yield from _layers("decoder", decoder)
    yield "decoder.norm", (decoder.hidden_size,)
    yield "decoder.head", (config.vocab_size, decoder.hidden_size)


def _layers(stage: str, stack: TransformerConfig) -> Iterator[tuple[str, Shape]]:
    for index in range(stack.layer_count):
        prefix = f"{stage}.layers.{index}"
        yield f"{prefix}.attention_norm", (stack.hidden_size,)
        yield from _attention(prefix, stack)
        yield f"{prefix}.mlp_norm", (stack.hidden_size,)
        yield f"{prefix}.gate", (stack.intermediate_size, stack.hidden_size)
        yield f"{prefix}.up", (stack.intermediate_size, stack.hidden_size)
        yield f"{prefix}.down", (stack.hidden_size, stack.intermediate_size)


def _cross(prefix: str, stack: TransformerConfig) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.query_norm", (stack.hidden_size,)
    yield f"{prefix}.key_norm", (stack.hidden_size,)
    yield from _attention(prefix, stack)


def _attention(prefix: str, stack: TransformerConfig) -> Iterator[tuple[str, Shape]]:
    # The heads together can be narrower than the stack: its width need not be a multiple of their number.
    width, kv_width = stack.head_count * stack.head_dim, stack.kv_head_count * stack.head_dim
    yield f"{prefix}.query", (width, stack.hidden_size)
    yield f"{prefix}.key", (kv_width, stack.hidden_size)
    yield f"{prefix}.value", (kv_width, stack.hidden_size)
    yield f"{prefix}.output", (stack.hidden_size, width)
