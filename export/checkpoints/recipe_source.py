"""A checkpoint's weights in the formats of a recipe, each encoded when it is read."""

import numpy as np

from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint, expected_shapes
from edgeblt.export.graphs.weight_source import Encoded
from edgeblt.quant.formats.codebooks import quantize_codebook
from edgeblt.quant.formats.weight_format import Floating, Linear, Matrix, WeightFormat
from edgeblt.quant.methods.data_free import METHODS, quantize_least_squares
from edgeblt.quant.methods.pruning import Sparsity, magnitude_mask
from edgeblt.quant.recipes.recipe import Recipe


class RecipeSource:
    """A floating-point checkpoint in a recipe's formats; weights can be read only if it needs no calibration."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self._checkpoint = checkpoint
        self.recipe = recipe
        self.config = recipe.pruned(checkpoint.config)
        self._shapes = expected_shapes(self.config)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name) or self._checkpoint.shape(name)  # a tensor that the model does not use

    def format(self, name: str) -> WeightFormat:
        return self.recipe.format(name, self.shape(name))

    def row_index(self, name: str) -> None:
        return None  # dropping rows takes a calibration text

    def encoded(self, name: str, start: int, stop: int) -> Encoded:
        rows = self._checkpoint.rows(name, start, stop)
        return encode_weight(rows, self.format(name), self.recipe.part(name).method, name)


def encode_weight(weight: Matrix, format: WeightFormat, method: str, name: str) -> Encoded:
    """`weight` in `format`; `name` is for errors. Raises EdgebltError.

    A method that needs calibration inputs is replaced by least squares, as lookups have none. A sparse format zeroes
    the weights of least magnitude, which changes nothing of a weight that is pruned already.
    """
    if isinstance(format, Floating):
        if format.bits == 16 and np.abs(weight).max(initial=0) > np.finfo(np.float16).max:
            raise EdgebltError(f"{name} holds values too large for fp16; choose fp32 or int8 for its stage")
        return weight
    try:
        if isinstance(format, Linear) and format.sparsity:
            weight = np.where(magnitude_mask(weight, Sparsity.parse(format.sparsity)), weight, np.float32(0))
        if isinstance(format, Linear):
            return METHODS.get(method, quantize_least_squares)(weight, format)
        return quantize_codebook(weight, format)
    except EdgebltError as error:
        raise EdgebltError(f"{name}: {error}") from None


def decoded(encoded: Encoded, half: bool) -> Matrix:
    """The weight as it reads back after storing; `half`: floating-point weights are stored in 16 bits."""
    if isinstance(encoded, np.ndarray):
        return encoded.astype(np.float16).astype(np.float32) if half else encoded
    return encoded.dequantize()
