"""The weights of a compressed checkpoint, written piece by piece: calibrated matrices as they come, then all others."""

from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgeblt.export.checkpoints.checkpoint import Checkpoint, expected_shapes
from edgeblt.export.checkpoints.recipe_source import decoded, encode_weight
from edgeblt.export.graphs.weight_file import Arrays, Note, WeightFile
from edgeblt.export.graphs.weight_source import Encoded, row_blocks
from edgeblt.progress import Advance
from edgeblt.quant.calibration.layerwise import PrunedLayer
from edgeblt.quant.formats import weight_format
from edgeblt.quant.formats.codebooks import CodebookQuantized
from edgeblt.quant.formats.weight_format import Codebook, Floating, Linear, Matrix, Quantized, WeightError, pack, unpack
from edgeblt.quant.methods.channels import spread
from edgeblt.quant.piece_cache import PieceCache
from edgeblt.quant.recipes.recipe import TABLES, Recipe


class Quantizing:
    """Writer of the weights: the calibrated matrices as they come, then all others."""

    def __init__(
        self,
        source: Checkpoint,
        recipe: Recipe,
        file: WeightFile,
        advance: Advance,
        table_rows: NDArray[np.bool_] | None,
        cache: PieceCache | None,
        key: Callable[[str, str], str],
    ) -> None:
        """`table_rows`: which rows of the hash tables to keep; None is all. `key`: of a tensor's piece in `cache`."""
        self._source, self._recipe, self._file, self._advance = source, recipe, file, advance
        self._table_rows, self._cache, self._key = table_rows, cache, key
        self._shapes = expected_shapes(recipe.pruned(source.config))  # shapes after channels are removed
        self._left = dict.fromkeys(source.names())
        self._errors: dict[str, WeightError] = {}

    def takes_all_calibrated(self) -> bool:
        """Takes all calibrated matrices from the cache, if they are all there."""
        names = [name for name in self._left if self._is_calibrated(name)]
        keys = [self._key(name, name) for name in names]
        if self._cache is None or self._recipe.prunes_channels or not all(map(self._cache.find, keys)):
            return False
        for name in names:
            note = self._keeps(name, name)
            assert note, name
            self._count(name, WeightError(*note["error"]))
            del self._left[name]
        return True

    def _is_calibrated(self, name: str) -> bool:
        is_product = not name.endswith((TABLES, ".embedding"))
        format = self._recipe.format(name, self._source.shape(name))
        return is_product and self._recipe.part(name).needs_calibration and isinstance(format, Linear)

    def _keeps(self, piece: str, name: str, first_row: int = 0) -> Note | None:
        """The note of a piece that an earlier run completed, or that the cache has."""
        note = self._file.keeps(piece)
        if note is None and self._cache and (found := self._cache.find(self._key(name, piece))):
            arrays, note = found
            self._file.write(piece, arrays, first_row, note)
        return note

    def kept(self, name: str) -> Quantized | None:
        note = self._keeps(name, name)
        if note is None:
            return None
        self._count(name, WeightError(*note["error"]))
        del self._left[name]
        return cast(Quantized, self._read_back(name))

    def keep(self, name: str, encoded: Encoded) -> None:
        weight = self._source.tensor(name)
        self._write(
            name, name, _parts(name, encoded, half=False), weight_format.error(weight, decoded(encoded, half=False))
        )
        del self._left[name]

    def kept_layer(self, prefix: str) -> PrunedLayer | None:
        note = self._keeps(prefix, f"{prefix}.down")
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
            made += weight_format.error(self._source.tensor(name), restored)
        self._write(prefix, f"{prefix}.down", arrays, made, channels=layer.channels.tolist())

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
                piece = _piece(name, start)
                note = self._keeps(piece, name, start) if kept is None else self._file.keeps(piece)
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
            made = weight_format.error(rows, decoded(encoded, self._half(name)))
            self._write(_piece(name, start), name, _parts(name, encoded, self._half(name)), made, start)
            return
        here, restored = kept[start:stop], np.zeros_like(rows)
        arrays: Arrays = {}
        if here.any():
            encoded = self._encoded(name, rows[here])
            arrays, restored[here] = _parts(name, encoded, self._half(name)), decoded(encoded, self._half(name))
        self._write(_piece(name, start), name, arrays, weight_format.error(rows, restored), 1 + int(kept[:start].sum()))

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
        if self._cache and not (name.endswith(TABLES) and self._table_rows is not None):
            self._cache.store(self._key(name, piece), arrays, note)
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
