"""`edgeblt quantize`: compresses a checkpoint piece by piece."""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.architectures import architecture
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
from edgeblt.export.graphs.weight_file import Journal, WeightFile
from edgeblt.names import Name, RecipeName
from edgeblt.progress import BYTES, progress
from edgeblt.quant.calibration.activations import Scratch
from edgeblt.quant.calibration.layerwise import calibrate, read_calibration
from edgeblt.quant.calibration.table_use import count_hits, rows_worth_keeping
from edgeblt.quant.made_by import package_versions
from edgeblt.quant.memory_limit import DEFAULT_LIMIT, scratch_bytes
from edgeblt.quant.piece_cache import PieceCache, cache_settings
from edgeblt.quant.quantizing import Quantizing
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
        cache: PieceCache | None = None,
    ) -> None:
        """Takes the arguments of `quantize_checkpoint`, and raises the same errors; `cache` is used and filled."""
        if source.has_own_formats:
            raise source.quantized_already("give the original, or export it as it is")
        self.recipe = recipe if table_hits is None else dataclasses.replace(recipe, table_hits=table_hits)
        self._source = source
        reads = self.recipe.needs_text or calibration
        self._text, self._described = read_calibration(calibration) if reads else (b"", "")
        self._scratch_limit = scratch_bytes(source, self.recipe, memory_limit)
        self._made_by, self._cache = package_versions(*_MADE_BY), cache
        self._table_rows = None
        if self.recipe.table_hits is not None:
            if not isinstance(source.config, ModelConfig):
                raise EdgebltError(f"{source.path} has no hash tables; leave out table_hits")
            self._table_rows = rows_worth_keeping(count_hits(self._text, source.config), self.recipe.table_hits)

    def fingerprint(self, *settings: object) -> str:
        """A text that changes with the source, the recipe, the calibration text, the versions or these settings."""
        return self._source.fingerprint(self.recipe, self._described, self._made_by, *settings)

    def _cache_key(self, name: str, piece: str) -> str:
        """The key of a piece in the cache."""
        shape, stages = self._source.shape(name), architecture(self._source.config.architecture).stages
        depends_on = cache_settings(self.recipe, name, shape, stages)
        return self._source.fingerprint(self._described, self._made_by, piece, depends_on)

    def write(self, directory: Path) -> Journal:
        """Fill `directory`, keeping what a killed run of the same completed; the caller finishes the journal."""
        source, recipe, kept = self._source, self.recipe, self._table_rows
        journal = Journal(directory, self.fingerprint())
        slots, header = layout(_tensors(source, recipe, kept))
        with (
            WeightFile(directory / WEIGHTS, slots, journal, header) as file,
            progress(f"quantizing {checkpoint_name(source)}", file.size, BYTES) as advance,
        ):
            quantizing = Quantizing(source, recipe, file, advance, kept, self._cache, self._cache_key)
            if recipe.needs_calibration and not quantizing.takes_all_calibrated():
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
