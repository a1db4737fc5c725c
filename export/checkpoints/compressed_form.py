"""The directory that `edgeblt quantize` writes: two files, which `export` packs without quantizing again.

    config.json         {"edgeblt_checkpoint": 1, "config": configuration, "compression": CompressionRecord}
                        and "architecture", where it is another than blt
    model.safetensors   under canonical names: NAME for floating-point weights, else
                        NAME.codes (uint8, packed), NAME.scales, NAME.zero_points (uint8, packed; asymmetric formats)
                        encoder.hash_tables.index (int32), where rows were dropped: the stored row, of which the first
                        is zeros, for each row of the model's

Which tensors there are, and their formats and shapes, follows from the configuration and the recipe in the record.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgeblt.bundle.architectures import FIRST, ByteModelConfig, architecture
from edgeblt.bundle.dataclass_json import dataclass_document, parse_dataclass
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.files.bitsandbytes import BitsAndBytes4Weight
from edgeblt.export.checkpoints.files.checkpoint_files import readable_object
from edgeblt.export.checkpoints.files.safetensors_files import SafetensorsTensor, stored_tensors
from edgeblt.export.checkpoints.files.stored_weights import (
    FloatingWeight,
    LinearWeight,
    PrunedTable,
    Shape,
    StoredWeight,
)
from edgeblt.quant.formats.weight_format import Codebook, Floating, Linear, WeightFormat
from edgeblt.quant.recipes.recipe import TABLES, Recipe

FORMAT_VERSION = 1
MARK = "edgeblt_checkpoint"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_SUFFIXES = ("codes", "scales", "zero_points")
_CONFIG_LIMIT = 1 << 20


@dataclass(frozen=True)
class CompressionRecord:
    """Record of how a checkpoint was compressed."""

    recipe: Recipe
    source: str  # the original's name
    calibration: str  # the text's name, size and hash; empty where none was needed
    made_by: dict[str, str]  # package to version
    relative_error: dict[str, float] = field(default_factory=dict)  # `WeightError.relative` of the weights by stage
    table_rows: int | None = None  # rows stored of the hash tables, the zero row included; None if none was dropped


@dataclass(frozen=True)
class CompressedForm:
    path: Path
    config: ByteModelConfig
    record: CompressionRecord
    stored: dict[str, SafetensorsTensor]

    def weight(self, name: str, shape: Shape) -> StoredWeight:
        """The weight of a canonical name. Raises EdgebltError where a part is missing or of another kind."""
        if name.endswith(TABLES) and self.record.table_rows is not None:
            if not 1 <= self.record.table_rows <= shape[0] + 1:
                raise EdgebltError(
                    f"{self.path / CONFIG}: table_rows is {self.record.table_rows}, of {shape[0]}; quantize again"
                )
            index = self._part(f"{name}.index", "I32", shape[:1])
            return PrunedTable(self._whole(name, (self.record.table_rows, *shape[1:])), index)
        return self._whole(name, shape)

    def _whole(self, name: str, shape: Shape) -> StoredWeight:
        format = self.record.recipe.format(name, shape)
        found = {part: self._part(part, *kind) for part, kind in parts_of(name, shape, format).items()}
        for part in sorted({name, *(f"{name}.{suffix}" for suffix in _SUFFIXES)} - found.keys()):
            if part in self.stored:
                raise EdgebltError(
                    f"{self.path / WEIGHTS}: {part} does not belong to {format.describe()}, which the recipe in "
                    f"{CONFIG} says; quantize again"
                )
        match format:
            case Floating():
                return FloatingWeight(found[name], format)
            case Linear():
                codes, scales = found[f"{name}.codes"], found[f"{name}.scales"]
                return LinearWeight(format, (shape[0], shape[1]), codes, scales, found.get(f"{name}.zero_points"))
            case Codebook():
                codes, scales = found[f"{name}.codes"], found[f"{name}.scales"]
                return BitsAndBytes4Weight(format, (shape[0], shape[1]), codes, scales, None)

    def unused(self, weights: Iterable[StoredWeight]) -> list[str]:
        return sorted(self.stored.keys() - {part.name for weight in weights for part in weight.parts})

    def _part(self, name: str, dtype: str, shape: Shape) -> SafetensorsTensor:
        tensor = self.stored.get(name)
        if tensor is None or (tensor.format, tensor.shape) != (dtype, shape):
            found = f"{tensor.format} {list(tensor.shape)}" if tensor else "nothing"
            raise EdgebltError(
                f"{self.path / WEIGHTS}: {name} should be {dtype} {list(shape)}, not {found}; quantize again"
            )
        return tensor


def parts_of(name: str, shape: Shape, format: WeightFormat) -> dict[str, tuple[str, Shape]]:
    """The tensors that hold a weight: name to safetensors dtype and shape."""
    match format:
        case Floating(bits):
            return {name: (f"F{bits}", shape)}
        case Linear():
            rows, columns = shape
            blocks = format.block_count(columns)
            parts: dict[str, tuple[str, Shape]] = {
                f"{name}.codes": ("U8", (rows, -(-columns * format.bits // 8))),
                f"{name}.scales": (f"F{format.scale_bits}", (rows, blocks)),
            }
            if not format.symmetric:
                parts[f"{name}.zero_points"] = ("U8", (rows, -(-blocks * format.bits // 8)))
            return parts
        case Codebook():
            count = math.prod(shape)
            blocks = -(-count // format.block_size)
            return {f"{name}.codes": ("U8", (-(-count // 2),)), f"{name}.scales": ("F32", (blocks,))}


def is_compressed(directory: Path) -> bool:
    """Whether `config.json` is that of a compressed checkpoint; False for an unreadable one, which others refuse."""
    document = readable_object(directory / CONFIG, _CONFIG_LIMIT)
    return document is not None and MARK in document


def holds_compressed_form(directory: Path) -> bool:
    """Whether the directory holds a compressed checkpoint, whole or damaged, and nothing else."""
    return is_compressed(directory) and {entry.name for entry in directory.iterdir()} <= {CONFIG, WEIGHTS}


def open_compressed_form(directory: Path) -> CompressedForm:
    """Read the configuration and the weights' header. Raises EdgebltError."""
    file = directory / CONFIG
    document = readable_object(file, _CONFIG_LIMIT) or {}
    if type(document.get(MARK)) is not int or document[MARK] != FORMAT_VERSION:  # true is no integer
        raise EdgebltError(
            f"{file} has format version {document.get(MARK)!r:.40}; this edgeblt reads {FORMAT_VERSION}: quantize again"
        )
    kind = architecture(document.pop("architecture", FIRST))
    if set(document) != {MARK, "config", "compression"}:
        raise EdgebltError(f"{file} must have config and compression beside {MARK}, and nothing else; quantize again")
    config = parse_dataclass(kind.config, document["config"], f"{file}: config")
    record = parse_dataclass(CompressionRecord, document["compression"], f"{file}: compression")
    for text in _texts(record):  # they are printed
        if not (text.isprintable() and len(text) <= 1000):
            raise EdgebltError(f"{file} holds the text {text!a:.60}, which cannot be shown; quantize again")
    weights = directory / WEIGHTS
    if not os.path.isfile(weights):
        raise EdgebltError(f"{weights} is missing or no regular file; quantize again")
    return CompressedForm(directory, config, record, {tensor.name: tensor for tensor in stored_tensors(weights)})


def config_document(config: ByteModelConfig, record: CompressionRecord) -> str:
    named = {} if config.architecture == FIRST else {"architecture": config.architecture}
    parts = {"config": dataclass_document(config), "compression": dataclass_document(record)}
    document = named | {MARK: FORMAT_VERSION} | parts
    return json.dumps(document, indent=2) + "\n"


def _texts(record: CompressionRecord) -> Iterator[str]:
    yield from (record.recipe.name, record.source, record.calibration, *record.made_by, *record.made_by.values())
    yield from record.relative_error
