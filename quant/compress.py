"""`edgeblt quantize`: a checkpoint to a compressed one, piece by piece."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.compressed_form import CONFIG, WEIGHTS, CompressionRecord, config_document, parts_of
from edgeblt.export.model_card import checkpoint_name
from edgeblt.export.safetensors_files import layout
from edgeblt.export.weight_file import Arrays, Journal, WeightFile
from edgeblt.export.weights import Encoded, row_blocks
from edgeblt.files import whole_directory
from edgeblt.progress import BYTES, Advance, progress
from edgeblt.quant.activations import Scratch
from edgeblt.quant.calibration import calibrate, read_calibration
from edgeblt.quant.codebooks import CodebookQuantized
from edgeblt.quant.formats import Floating, Linear, Matrix, Quantized, WeightError, error, pack, unpack
from edgeblt.quant.memory import DEFAULT_LIMIT, scratch_bytes
from edgeblt.quant.recipe import HASH_TABLES, Recipe, load_recipe
from edgeblt.quant.recipe_source import decoded, encode_weight

_MADE_BY = ("edgeblt", "torch", "numpy")


def quantize_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    recipe: str | Path = "int4",
    calibration: str | Path | None = None,
    memory_limit: int = DEFAULT_LIMIT,
) -> Path:
    """Write `checkpoint`, compressed by `recipe`, as the directory `out`; it appears when it is complete.

    `calibration` is a text file for the recipes that need one; None takes the one that comes with the package.
    `memory_limit` is in bytes, beyond what the interpreter and its libraries take. What a killed run of the same
    conversion completed is used. Raises EdgebltError: a checkpoint that cannot be opened or is quantized already, an
    unknown recipe, a calibration text that is missing or too short, a limit below what the largest matrix needs, `out`
    there already or not writable.
    """
    source, chosen, path = open_checkpoint(checkpoint), load_recipe(recipe), Path(out)
    if source.is_quantized or source.record:
        raise EdgebltError(f"{source.path} is quantized already; give the original, or export it as it is")
    text, described = read_calibration(calibration) if chosen.needs_calibration or calibration else (b"", "")
    scratch_limit = scratch_bytes(source, chosen, memory_limit)
    made_by = {name: _version(name) for name in _MADE_BY}
    with whole_directory(path, resume=True) as partial:
        journal = Journal(partial, source.fingerprint(chosen, described, made_by))
        slots, header = layout(_tensors(source, chosen))
        with (
            WeightFile(partial / WEIGHTS, slots, journal, header) as file,
            progress(f"quantizing {checkpoint_name(source)}", file.size, BYTES) as advance,
        ):
            quantizing = _Quantizing(source, chosen, file, advance)
            if chosen.needs_calibration:
                with Scratch(partial, scratch_limit) as scratch:
                    calibrate(source, chosen, text, quantizing, scratch)
            quantizing.all_others()
        record = CompressionRecord(chosen, checkpoint_name(source), described, made_by, quantizing.relative_errors())
        (partial / CONFIG).write_text(config_document(source.config, record), encoding="utf-8")
        journal.finish()
    return path


def _tensors(source: Checkpoint, recipe: Recipe) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in source.names():
        shape = source.shape(name)
        tensors |= parts_of(name, shape, recipe.format(name, shape))
    return tensors


class _Quantizing:
    """The weights on their way into the file: the calibrated matrices as they come, then all others."""

    def __init__(self, source: Checkpoint, recipe: Recipe, file: WeightFile, advance: Advance) -> None:
        self._source, self._recipe, self._file, self._advance = source, recipe, file, advance
        self._left = dict.fromkeys(source.names())
        self._errors: dict[str, WeightError] = {}

    def kept(self, name: str) -> Quantized | None:
        note = self._file.keeps(name)
        if note is None:
            return None
        self._count(name, WeightError(*note["error"]))
        del self._left[name]
        return _read_back(self._file, name, self._source.shape(name), self._recipe)

    def keep(self, name: str, encoded: Encoded) -> None:
        self._store(name, name, self._source.tensor(name), encoded)
        del self._left[name]

    def all_others(self) -> None:
        for name in self._left:
            format, method = self._recipe.format(name, self._source.shape(name)), self._recipe.part(name).method
            for start, stop in row_blocks(format, self._source.shape(name)):
                piece = f"{name}, row {start}"
                note = self._file.keeps(piece)
                if note is None:
                    rows = self._source.rows(name, start, stop)
                    self._store(piece, name, rows, encode_weight(rows, format, method, name), start)
                else:
                    self._count(name, WeightError(*note["error"]))

    def relative_errors(self) -> dict[str, float]:
        """Of each stage's weights."""
        return {stage: float(f"{total.relative:.6g}") for stage, total in self._errors.items()}

    def _store(self, piece: str, name: str, weight: Matrix, encoded: Encoded, first_row: int = 0) -> None:
        half = self._recipe.format(name, self._source.shape(name)) == Floating(16)
        made = error(weight, decoded(encoded, half))
        note = {"error": [made.squared, made.squared_weight, made.largest]}
        self._file.write(piece, _parts(name, encoded, half), first_row, note)
        self._count(name, made)

    def _count(self, name: str, made: WeightError) -> None:
        stage = "tables" if name == HASH_TABLES else name.partition(".")[0]
        self._errors[stage] = self._errors.get(stage, WeightError()) + made
        self._advance(self._file.written)


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


def _read_back(file: WeightFile, name: str, shape: tuple[int, ...], recipe: Recipe) -> Quantized:
    format = recipe.format(name, shape)
    assert isinstance(format, Linear)
    scales = file.read(f"{name}.scales")
    points = np.full(scales.shape, format.middle, np.uint8)
    if not format.symmetric:
        points = unpack(file.read(f"{name}.zero_points"), format.bits, scales.shape[1])
    return Quantized(format, unpack(file.read(f"{name}.codes"), format.bits, shape[1]), scales, points)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # edgeblt itself, used from its sources
        return "unknown"
