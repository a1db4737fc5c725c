"""What a conversion needs in memory, so that a limit can be kept to, or refused before the work begins.

Estimates in bytes, beyond the interpreter and its libraries, from above: docs/checkpoints.md has what was measured.
"""

import math

from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoint import Checkpoint
from edgeblt.quant.calibration import LOOKUP_BYTES, LOOKUP_ROWS, TEXT_BYTES
from edgeblt.quant.formats import Codebook, Floating, Linear
from edgeblt.quant.recipe import Recipe

DEFAULT_LIMIT = 1_500_000_000
PIECE = 100_000_000  # a piece of a matrix on its way into another format, and its source's mapped pages


def scratch_bytes(checkpoint: Checkpoint, recipe: Recipe, limit: int) -> int:
    """What the limit leaves for activations beside the largest matrix. Raises EdgebltError if it is too low."""
    need, largest = PIECE, ""
    for name in checkpoint.names():
        if (own := PIECE + _matrix_bytes(checkpoint, recipe, name)) > need:
            need, largest = own, name
    if recipe.needs_calibration:
        need = max(need, PIECE + LOOKUP_BYTES + 12 * LOOKUP_ROWS * checkpoint.config.encoder.hidden_size)
    if need > limit:
        raise EdgebltError(
            f"the memory limit is {limit / 1e9:.2f} GB, but {largest or 'a piece of any matrix'} needs "
            f"{need / 1e9:.2f}; set --memory-limit to {math.ceil(need / 1e8) / 10} or more"
        )
    return limit - need


def _matrix_bytes(checkpoint: Checkpoint, recipe: Recipe, name: str) -> int:
    shape = checkpoint.shape(name)
    format = recipe.format(name, shape)
    if len(shape) == 1 or name.endswith((".hash_tables", ".embedding")):
        return 0  # by rows
    rows, columns = shape
    if recipe.needs_calibration and isinstance(format, Linear | Floating | Codebook):
        return _calibration_bytes(rows, columns)
    return 20 * rows * columns if isinstance(format, Codebook) else 0


def _calibration_bytes(rows: int, columns: int) -> int:
    """A matrix, those that share its inputs (up to three), what is known of these, and a text on its way through."""
    square = columns * columns
    encoding = max(32 * square, 16 * square + 26 * rows * columns)
    activations = 12 * 2 * (TEXT_BYTES + 1) * (rows + columns)
    return encoding + 24 * rows * columns + activations
