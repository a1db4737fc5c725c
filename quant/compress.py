"""`edgeblt quantize`: compresses a checkpoint piece by piece."""

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.whole_files import check_replaceable, whole_directory
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint, expected_shapes, open_checkpoint
from edgeblt.export.checkpoints.compressed_form import (
    CONFIG,
    WEIGHTS,
    CompressionRecord,
    config_document,
    holds_compressed_form,
    parts_of,
)
from edgeblt.export.checkpoints.files.safetensors_files import layout
from edgeblt.export.checkpoints.naming import checkpoint_name
from edgeblt.export.checkpoints.recipe_source import decoded, encode_weight
from edgeblt.export.graphs.weight_file import Arrays, Journal, WeightFile
from edgeblt.export.graphs.weight_source import Encoded, row_blocks
from edgeblt.names import Name, RecipeName
from edgeblt.progress import BYTES, Advance, progress
from edgeblt.quant.calibration.activations import Scratch
from edgeblt.quant.calibration.layerwise import PrunedLayer, calibrate, read_calibration
from edgeblt.quant.calibration.table_use import count_hits, rows_worth_keeping
from edgeblt.quant.formats.codebooks import CodebookQuantized
from edgeblt.quant.formats.weight_format import Codebook, Floating, Matrix, Quantized, WeightError, error, pack, unpack
from edgeblt.quant.made_by import package_versions
from edgeblt.quant.memory_limit import DEFAULT_LIMIT, scratch_bytes
from edgeblt.quant.methods.channels import spread
from edgeblt.quant.recipes.recipe import TABLES, Recipe, load_recipe
from edgeblt.quant.torch_threads import keep_to_usable_cores

_MADE_BY = ("edgeblt", "torch", "numpy")


def quantize_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    recipe: RecipeName | Name | Path = "int4",
    calibration: str | Path | None = None,
    memory_limit: int = DEFAULT_LIMIT,
    table_hits: float | None = None,
    patcher: str | Path | None = None,
    replace: bool = False,
    strict: bool = False,
    kv_cache: str | None = None,
) -> Path:
    """Write a checkpoint, compressed, as a directory; it appears when it is complete.

    checkpoint: a directory in one of the forms of docs/checkpoints.md, or a model on the hub, `OWNER/NAME[@REVISION]`.
    out: the directory to write.
    recipe: the name of one that comes with the package, int4 by default, or the path of a TOML file.
    calibration: a text file like those the model will read, for recipes that need one; None, the default, is the text
        that comes with the package.
    memory_limit: bytes to use at most, beyond what the interpreter and its libraries take; default 1.5 GB.
    table_hits: keep only the rows of the hash tables that carry this share of the text's lookups, above 0 and at most
        1; None, the default, is what the recipe says.
    patcher: the directory of Meta's entropy model, for a checkpoint in Meta's form; default None, its own.
    replace: True replaces an existing compressed checkpoint; anything else is never replaced. Default False.
    strict: True refuses fields of the configuration that are not known, which else are a warning. Default False.
    kv_cache: format of keys and values in a bundle of this checkpoint, as `export_bundle` takes it; None, the default,
        is what the recipe says.

    The work that a killed run of the same conversion completed is used. Raises EdgebltError: a checkpoint that cannot
    be opened or is quantized already, an unknown recipe or format, a calibration text that is missing or too short, a
    limit below what the largest matrix needs, an `out` that cannot be written, or exists and may not be replaced.
    """
    keep_to_usable_cores()
    source, chosen, path = open_checkpoint(checkpoint, patcher, strict), load_recipe(recipe), Path(out)
    chosen = chosen if kv_cache is None else dataclasses.replace(chosen, kv_cache=kv_cache)
    source.warn()
    compression = Compression(source, chosen, calibration, memory_limit, table_hits)
    replace = check_replaceable(path, replace, holds_compressed_form, "compressed checkpoint")
    with whole_directory(path, replace, resume=True) as partial:
        compression.write(partial).finish()
    return path


class Compression:
    """Compression of a checkpoint by a recipe; the constructor checks everything before anything is written."""

    def __init__(
        self,
        source: Checkpoint,
        recipe: Recipe,
        calibration: str | Path | None = None,
        memory_limit: int = DEFAULT_LIMIT,
        table_hits: float | None = None,
    ) -> None:
        """Takes the arguments of `quantize_checkpoint`, and raises the same errors."""
        if source.has_own_formats:
            raise source.quantized_already("give the original, or export it as it is")
        self.recipe = recipe if table_hits is None else dataclasses.replace(recipe, table_hits=table_hits)
        self._source = source
        reads = self.recipe.needs_text or calibration
        self._text, self._described = read_calibration(calibration) if reads else (b"", "")
        self._scratch_limit = scratch_bytes(source, self.recipe, memory_limit)
        self._made_by = package_versions(*_MADE_BY)
        self._table_rows = None
        if self.recipe.table_hits is not None:
            if not isinstance(source.config, ModelConfig):
                raise EdgebltError(f"{source.path} has no hash tables; leave out table_hits")
            self._table_rows = rows_worth_keeping(count_hits(self._text, source.config), self.recipe.table_hits)

    def fingerprint(self, *settings: object) -> str:
        """A text that changes with the source, the recipe, the calibration text, the versions or these settings."""
        return self._source.fingerprint(self.recipe, self._described, self._made_by, *settings)

    def write(self, directory: Path) -> Journal:
        """Fill `directory`, keeping what a killed run of the same completed; the caller finishes the journal."""
        source, recipe, kept = self._source, self.recipe, self._table_rows
        journal = Journal(directory, self.fingerprint())
        slots, header = layout(_tensors(source, recipe, kept))
        with (
            WeightFile(directory / WEIGHTS, slots, journal, header) as file,
            progress(f"quantizing {checkpoint_name(source)}", file.size, BYTES) as advance,
        ):
            quantizing = _Quantizing(source, recipe, file, advance, kept)
            if recipe.needs_calibration:
                with Scratch(directory, self._scratch_limit) as scratch:
                    calibrate(source, recipe, self._text, quantizing, scratch, kept)
            quantizing.all_others()
        errors, table_rows = quantizing.relative_errors(), None if kept is None else 1 + int(kept.sum())
        made_of = checkpoint_name(source)
        record = CompressionRecord(recipe, made_of, self._described, self._made_by, errors, table_rows)
        (directory / CONFIG).write_text(config_document(recipe.pruned(source.config), record), encoding="utf-8")
        return journal


def _tensors(
    source: Checkpoint, recipe: Recipe, kept: NDArray[np.bool_] | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in expected_shapes(recipe.pruned(source.config)).items():
        if name.endswith(TABLES) and kept is not None:
            tensors[f"{name}.index"] = ("I32", shape[:1])
            shape = (1 + int(kept.sum()), *shape[1:])
        tensors |= parts_of(name, shape, recipe.format(name, shape))
    return tensors


class _Quantizing:
    """Writer of the weights: the calibrated matrices as they come, then all others."""

    def __init__(
        self,
        source: Checkpoint,
        recipe: Recipe,
        file: WeightFile,
        advance: Advance,
        table_rows: NDArray[np.bool_] | None,
    ) -> None:
        """`table_rows`: which rows of the hash tables to keep; None is all."""
        self._source, self._recipe, self._file, self._advance = source, recipe, file, advance
        self._table_rows = table_rows
        self._shapes = expected_shapes(recipe.pruned(source.config))  # shapes after channels are removed
        self._left = dict.fromkeys(source.names())
        self._errors: dict[str, WeightError] = {}

    def kept(self, name: str) -> Quantized | None:
        note = self._file.keeps(name)
        if note is None:
            return None
        self._count(name, WeightError(*note["error"]))
        del self._left[name]
        return cast(Quantized, self._read_back(name))

    def keep(self, name: str, encoded: Encoded) -> None:
        weight = self._source.tensor(name)
        self._write(name, name, _parts(name, encoded, half=False), error(weight, decoded(encoded, half=False)))
        del self._left[name]

    def kept_layer(self, prefix: str) -> PrunedLayer | None:
        note = self._file.keeps(prefix)
        if note is None:
            return None
        self._count(prefix, WeightError(*note["error"]))
        weights = {name: self._read_back(name) for name in self._complete(prefix)}
        return PrunedLayer(np.array(note["channels"], np.int64), weights)

    def keep_layer(self, prefix: str, layer: PrunedLayer) -> None:
        arrays: Arrays = {}
        made = WeightError()
        for name in self._complete(prefix):
            encoded, half = layer.weights[name], self._half(name)
            arrays |= _parts(name, encoded, half)
            restored = spread(decoded(encoded, half), name, layer.channels, self._source.shape(name))
            made += error(self._source.tensor(name), restored)
        self._write(prefix, prefix, arrays, made, channels=layer.channels.tolist())

    def _complete(self, prefix: str) -> list[str]:
        """Marks the matrices of a layer as complete and returns their names."""
        names = [f"{prefix}.{part}" for part in ("gate", "up", "down")]
        for name in names:
            del self._left[name]
        return names

    def all_others(self) -> None:
        for name in self._left:
            kept = self._table_rows if name.endswith(TABLES) else None
            if kept is not None:
                self._begin_table(name, kept)
            for start, stop in row_blocks(
                self._recipe.format(name, self._source.shape(name)), self._source.shape(name)
            ):
                note = self._file.keeps(_piece(name, start))
                if note is None:
                    self._encode(name, start, stop, kept)
                else:
                    self._count(name, WeightError(*note["error"]))

    def relative_errors(self) -> dict[str, float]:
        """Relative error of the weights by stage."""
        return {stage: float(f"{total.relative:.6g}") for stage, total in self._errors.items()}

    def _begin_table(self, name: str, kept: NDArray[np.bool_]) -> None:
        """Writes the table's first row, of zeros, and the index of the other rows."""
        if self._file.keeps(f"{name}, zeros") is None:
            zeros = np.zeros((1, self._source.shape(name)[1]), np.float32)
            self._file.write(f"{name}, zeros", _parts(name, self._encoded(name, zeros), self._half(name)))
        if self._file.keeps(f"{name}.index") is None:
            places = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
            self._file.write(f"{name}.index", {f"{name}.index": places})

    def _encode(self, name: str, start: int, stop: int, kept: NDArray[np.bool_] | None) -> None:
        """Encodes rows `start` to `stop`, without those that are dropped."""
        rows = self._source.rows(name, start, stop)
        if kept is None:
            encoded = self._encoded(name, rows)
            made = error(rows, decoded(encoded, self._half(name)))
            self._write(_piece(name, start), name, _parts(name, encoded, self._half(name)), made, start)
            return
        here, restored = kept[start:stop], np.zeros_like(rows)
        arrays: Arrays = {}
        if here.any():
            encoded = self._encoded(name, rows[here])
            arrays, restored[here] = _parts(name, encoded, self._half(name)), decoded(encoded, self._half(name))
        self._write(_piece(name, start), name, arrays, error(rows, restored), 1 + int(kept[:start].sum()))

    def _encoded(self, name: str, rows: Matrix) -> Encoded:
        format = self._recipe.format(name, self._source.shape(name))
        return encode_weight(rows, format, self._recipe.part(name).method, name)

    def _half(self, name: str) -> bool:
        return self._recipe.format(name, self._source.shape(name)) == Floating(16)

    def _read_back(self, name: str) -> Encoded:
        """The encoded matrix as it was written."""
        shape = self._shapes[name]
        format = self._recipe.format(name, shape)
        match format:
            case Floating():
                stored: Matrix = self._file.read(name).astype(np.float32)
                return stored
            case Codebook():
                codes, scales = self._file.read(f"{name}.codes"), self._file.read(f"{name}.scales")
                return CodebookQuantized(format, (shape[0], shape[1]), codes, scales)
        scales = self._file.read(f"{name}.scales")
        points = np.full(scales.shape, format.middle, np.uint8)
        if not format.symmetric:
            points = unpack(self._file.read(f"{name}.zero_points"), format.bits, scales.shape[1])
        return Quantized(format, unpack(self._file.read(f"{name}.codes"), format.bits, shape[1]), scales, points)

    def _write(
        self, piece: str, name: str, arrays: Arrays, made: WeightError, first_row: int = 0, **noted: list[int]
    ) -> None:
        note = {"error": [made.squared, made.squared_weight, made.largest], **noted}
        self._file.write(piece, arrays, first_row, note)
        self._count(name, made)

    def _count(self, name: str, made: WeightError) -> None:
        stage = "tables" if name.endswith(TABLES) else name.partition(".")[0]
        self._errors[stage] = self._errors.get(stage, WeightError()) + made
        self._advance(self._file.written)


def _piece(name: str, row: int) -> str:
    return f"{name}, row {row}"


def _parts(name: str, encoded: Encoded, half: bool) -> Arrays:
    if isinstance(encoded, CodebookQuantized):
        return {f"{name}.codes": encoded.packed, f"{name}.scales": encoded.largest}
    if isinstance(encoded, Quantized):
        bits = encoded.format.bits
        parts: Arrays = {f"{name}.codes": pack(encoded.codes, bits), f"{name}.scales": encoded.scales}
        if not encoded.format.symmetric:
            parts[f"{name}.zero_points"] = pack(encoded.zero_points, bits)
        return parts
    return {name: encoded.astype(np.float16 if half else np.float32)}
