"""The reference for MambaByte: the whole row at once in float64."""

import numpy as np
from numpy.typing import NDArray

from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.checkpoints.naming import checkpoint_name
from edgeblt.export.mambabyte.numerics import mambabyte_logits
from edgeblt.ids import OFFSET, VOCAB_SIZE, decode
from edgeblt.mambabyte.config import MambaByteConfig
from edgeblt.measure.reference import ReferenceRow
from edgeblt.runtime.recurrent.session import NEVER


class MambaByteReference:
    """Recurrence of the paper in numpy on a floating-point checkpoint."""

    vocab_size = VOCAB_SIZE

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Takes an opened checkpoint. Raises EdgebltError for a quantized one."""
        assert isinstance(checkpoint.config, MambaByteConfig)
        self.files, self.name, self._config = checkpoint.files(), checkpoint_name(checkpoint), checkpoint.config
        self._read = checkpoint.exact_tensors()

    def row(self, ids: NDArray[np.int64]) -> ReferenceRow:
        """Results on `ids` [T] int64, which begin with BOS: after it any byte is as likely as another."""
        logits = np.full((len(ids), VOCAB_SIZE), NEVER, np.float32)
        logits[0, OFFSET:] = 0
        if len(ids) > 1:
            logits[1:, OFFSET:] = mambabyte_logits(self._config, self._read, decode(ids[1:]))
        return ReferenceRow(logits, np.ones(len(ids), np.bool_))
