"""`edgeblt quantize`: a checkpoint to a compressed one, tensor by tensor."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.compressed_form import CONFIG, WEIGHTS, CompressionRecord, config_document, parts_of
from edgeblt.export.model_card import checkpoint_name
from edgeblt.export.safetensors_files import SafetensorsWriter
from edgeblt.export.weights import Encoded
from edgeblt.files import whole_directory
from edgeblt.progress import progress
from edgeblt.quant.calibration import calibrate, read_calibration
from edgeblt.quant.codebooks import CodebookQuantized
from edgeblt.quant.formats import Codebook, Floating, Matrix, Quantized, WeightError, error, pack
from edgeblt.quant.recipe import HASH_TABLES, Recipe, load_recipe
from edgeblt.quant.recipe_source import decoded, encode_weight

ROWS = 1 << 15  # of an embedding in memory at a time
_MADE_BY = ("edgeblt", "torch", "numpy")


def quantize_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    recipe: str | Path = "int4",
    calibration: str | Path | None = None,
    patcher: str | Path | None = None,
) -> Path:
    """Write `checkpoint`, compressed by `recipe`, as the directory `out`; it appears when it is complete.

    `calibration` is a text file for the recipes that need one; None takes the one that comes with the package. One
    layer is in memory at a time. `patcher`: see `open_checkpoint`. Raises EdgebltError: a checkpoint that cannot be
    opened or is quantized already, an unknown recipe, a calibration text that is missing or too short, `out` there
    already or not writable.
    """
    source, chosen, path = open_checkpoint(checkpoint, patcher), load_recipe(recipe), Path(out)
    if source.is_quantized or source.record:
        raise EdgebltError(f"{source.path} is quantized already; give the original, or export it as it is")
    text, described = read_calibration(calibration) if chosen.needs_calibration or calibration else (b"", "")
    made_by = {name: _version(name) for name in _MADE_BY}
    with whole_directory(path) as partial:
        with (partial / WEIGHTS).open("wb") as file:
            errors = _write_weights(source, chosen, text, SafetensorsWriter(file, _tensors(source, chosen)))
        record = CompressionRecord(chosen, checkpoint_name(source), described, made_by, errors)
        (partial / CONFIG).write_text(config_document(source.config, record), encoding="utf-8")
    return path


def _tensors(source: Checkpoint, recipe: Recipe) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in source.names():
        shape = source.shape(name)
        tensors |= parts_of(name, shape, recipe.format(name, shape))
    return tensors


def _write_weights(source: Checkpoint, recipe: Recipe, text: bytes, writer: SafetensorsWriter) -> dict[str, float]:
    """The calibrated matrices as they come, then all the rest. Gives the relative error of each stage's weights."""
    names = dict.fromkeys(source.names())
    errors: dict[str, WeightError] = {}

    def store(name: str, weight: Matrix, encoded: Encoded, first_row: int = 0) -> None:
        half = recipe.format(name, source.shape(name)) == Floating(16)
        for part, values in _parts(name, encoded, half).items():
            writer.write(part, values, first_row)
        stage = "tables" if name == HASH_TABLES else name.partition(".")[0]
        errors[stage] = errors.get(stage, WeightError()) + error(weight, decoded(encoded, half))

    with progress(f"quantizing {checkpoint_name(source)}", len(names), "tensors") as advance:

        def keep(name: str, encoded: Encoded) -> None:
            del names[name]
            store(name, source.tensor(name), encoded)
            advance(1)

        if recipe.needs_calibration:
            calibrate(source, recipe, text, keep)
        for name in list(names):
            for start, rows in _row_blocks(source, recipe, name):
                format, method = recipe.format(name, source.shape(name)), recipe.part(name).method
                store(name, rows, encode_weight(rows, format, method, name), start)
            advance(1)
    writer.finish()
    return {stage: float(f"{total.relative:.6g}") for stage, total in errors.items()}


def _row_blocks(source: Checkpoint, recipe: Recipe, name: str) -> Iterator[tuple[int, Matrix]]:
    """A tensor's rows, and the index of the first, as many at a time as shall be in memory."""
    shape = source.shape(name)
    whole = isinstance(recipe.format(name, shape), Codebook)  # its blocks run over the ends of rows
    step = shape[0] if whole else ROWS
    for start in range(0, shape[0], step):
        yield start, source.rows(name, start, min(start + step, shape[0]))


def _parts(name: str, encoded: Encoded, half: bool) -> dict[str, NDArray[np.generic]]:
    if isinstance(encoded, CodebookQuantized):
        return {f"{name}.codes": encoded.packed, f"{name}.scales": encoded.largest}
    if isinstance(encoded, Quantized):
        bits = encoded.format.bits
        parts: dict[str, NDArray[np.generic]] = {
            f"{name}.codes": pack(encoded.codes, bits),
            f"{name}.scales": encoded.scales,
        }
        if not encoded.format.symmetric:
            parts[f"{name}.zero_points"] = pack(encoded.zero_points, bits)
        return parts
    return {name: encoded.astype(np.float16 if half else np.float32)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # edgeblt itself, used from its sources
        return "unknown"
