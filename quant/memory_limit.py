"""Memory limit of a conversion: what each step needs, and the refusal of a limit that is too low before work begins.

Estimates in bytes, beyond the interpreter and its libraries, from above: docs/planning.md has what was measured.
"""

import math
from collections.abc import Iterable

from edgeblt.bundle.config import ModelConfig
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.quant.calibration.layerwise import LOOKUP_BYTES, LOOKUP_ROWS, TEXT_BYTES
from edgeblt.quant.formats.weight_format import Codebook, Linear, WeightFormat
from edgeblt.quant.recipes.recipe import Recipe

DEFAULT_LIMIT = 1_500_000_000
_SHARERS = {"query": 3, "key": 3, "value": 3, "gate": 2, "up": 2}  # matrices that read the same inputs
PIECE = 100_000_000  # a piece of a matrix on its way into another format, and its source's mapped pages


def scratch_bytes(checkpoint: Checkpoint, recipe: Recipe, limit: int) -> int:
    """Bytes that the limit leaves for activations when quantizing. Raises EdgebltError if the limit is too low."""
    needs = {name: _quantizing(checkpoint.shape(name), recipe, name) for name in checkpoint.names()}
    if recipe.needs_calibration and isinstance(checkpoint.config, ModelConfig):
        needs["the hash tables' lookup"] = LOOKUP_BYTES + 12 * LOOKUP_ROWS * checkpoint.config.encoder.hidden_size
    return _left(needs, limit)


def check_export(source: WeightSource, names: Iterable[str], limit: int) -> None:
    """Raises EdgebltError if the limit is too low to write these weights of `source` into a bundle."""
    _left({name: _exporting(source.shape(name), source.format(name), name) for name in names}, limit)


def _left(needs: dict[str, int], limit: int) -> int:
    largest = max(needs, key=lambda name: needs[name])
    need = PIECE + needs[largest]
    if need > limit:
        raise EdgebltError(
            f"the memory limit is {limit / 1e9:.2f} GB, but {largest} needs {need / 1e9:.2f}; set --memory-limit to "
            f"{math.ceil(need / 1e8) / 10} or more"
        )
    return limit - need


def _by_rows(shape: tuple[int, ...], name: str) -> bool:
    return len(shape) != 2 or name.endswith((".hash_tables", ".embedding"))


def _quantizing(shape: tuple[int, ...], recipe: Recipe, name: str) -> int:
    if _by_rows(shape, name):
        return 0
    rows, columns = shape
    if recipe.needs_calibration:
        need = _calibrating(rows, columns, together=_SHARERS.get(name.rpartition(".")[2], 1))
        return max(need, _removing(rows, columns)) if recipe.part(name).channels and name.endswith(".down") else need
    return 20 * rows * columns if isinstance(recipe.format(name, shape), Codebook) else 0


def _calibrating(rows: int, columns: int, together: int) -> int:
    """Bytes of matrices with the same inputs, the statistics of these, and the activations of one text."""
    square = columns * columns
    encoding = max(32 * square, 16 * square + 26 * rows * columns)
    activations = 12 * 2 * (TEXT_BYTES + 1) * (rows + columns)
    return encoding + 8 * together * rows * columns + activations


def _removing(rows: int, columns: int) -> int:
    """Bytes for choosing the channels of `down` with gate and up in memory; all three are then written together."""
    square, weight = columns * columns, rows * columns
    choosing = max(32 * square, 24 * square + 20 * weight, 16 * square + 34 * weight)
    return max(choosing + 16 * weight, 48 * weight) + 24 * (TEXT_BYTES + 1) * (rows + columns)


def _exporting(shape: tuple[int, ...], format: WeightFormat, name: str) -> int:
    """Bytes for writing weights: up to three floating-point matrices are transposed; a codebook's is encoded whole."""
    if _by_rows(shape, name) or isinstance(format, Linear):
        return 0
    return 20 * shape[0] * shape[1]
