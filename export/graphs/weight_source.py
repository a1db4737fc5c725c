"""A model's weights as graphs and calibration read them: some rows at a time, encoded in their formats."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import GROUP
from edgeblt.quant.formats.codebooks import CodebookQuantized
from edgeblt.quant.formats.weight_format import Codebook, Matrix, Quantized, WeightFormat

AT_A_TIME = 1 << 20  # weights of a matrix that are in memory at a time where its format allows

Encoded = Matrix | Quantized | CodebookQuantized


class WeightSource(Protocol):
    """A model's weights under canonical names, each in the format it shall have in the bundle."""

    @property
    def config(self) -> Any: ...  # that of an architecture

    def shape(self, name: str) -> tuple[int, ...]: ...

    def format(self, name: str) -> WeightFormat:
        """The format in the bundle, known without reading the weight."""
        ...

    def row_index(self, name: str) -> NDArray[np.int32] | None:
        """The stored row for each row of an embedding of which some were dropped, else None."""
        ...

    def encoded(self, name: str, start: int, stop: int) -> Encoded:
        """Rows `start` to `stop`, as `row_blocks` gives them: float32 for `Floating`, else the codes.

        Raises EdgebltError if they cannot be read or encoded.
        """
        ...


def row_blocks(format: WeightFormat, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Starts and ends of runs of rows that can be encoded independently, each small enough for memory."""
    rows, columns = shape[0], shape[-1] if len(shape) > 1 else 1
    # A codebook's blocks run over the ends of rows; dense rows are stored in groups of 16 and sparse ones in pairs.
    step = rows if isinstance(format, Codebook) else GROUP * max(AT_A_TIME // (GROUP * columns), 1)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
