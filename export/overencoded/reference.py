"""The reference for over-encoded transformers: the whole row at once in float64."""

import numpy as np
from numpy.typing import NDArray

from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.checkpoints.naming import checkpoint_name
from edgeblt.export.overencoded.numerics import overencoded_logits
from edgeblt.ids import VOCAB_SIZE
from edgeblt.measure.reference import ReferenceRow
from edgeblt.overencoded.config import OverEncodedConfig


class OverEncodedReference:
    """The equations in numpy on a floating-point checkpoint."""

    vocab_size = VOCAB_SIZE

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Takes an opened checkpoint. Raises EdgebltError for a quantized one."""
        assert isinstance(checkpoint.config, OverEncodedConfig)
        self.files, self.name, self._config = checkpoint.files(), checkpoint_name(checkpoint), checkpoint.config
        self._read = checkpoint.exact_tensors()

    def row(self, ids: NDArray[np.int64]) -> ReferenceRow:
        """Results on `ids` [T] int64, which begin with BOS."""
        logits = overencoded_logits(self._config, self._read, ids)[:, 0].astype(np.float32)
        return ReferenceRow(logits, np.ones(len(ids), np.bool_))
