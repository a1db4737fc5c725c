"""transformers' own forward pass as the reference: the whole row at once, no cache, float32."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BltForCausalLM
from transformers.utils import logging

from edgeblt.export.checkpoint import open_checkpoint
from edgeblt.ids import OFFSET
from edgeblt.validation import ReferenceRow


class TransformersReference:
    """`BltForCausalLM(use_cache=False)` on a checkpoint in transformers' form. Raises EdgebltError if it is none."""

    def __init__(self, checkpoint: str | Path) -> None:
        open_checkpoint(checkpoint)  # our errors are clearer than transformers'
        logging.disable_progress_bar()
        self.model = BltForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def row(self, ids: NDArray[np.int64]) -> ReferenceRow:
        """`ids` [T] int64 begin with BOS.

        One more byte is fed than asked about: with a maximum patch length transformers drops a patch that would start
        right behind the last byte, so that its last position would be wrong. Nothing before it depends on that byte.
        """
        batch = torch.from_numpy(np.append(ids, OFFSET))[None]
        patch_lengths: list[torch.Tensor] = []
        patcher = self.model.model.patcher
        hook = patcher and patcher.register_forward_hook(lambda module, inputs, output: patch_lengths.append(output[1]))
        try:
            with torch.inference_mode():
                logits = self.model(batch, use_cache=False).logits[0, : len(ids)].numpy()
        finally:
            if hook:
                hook.remove()
        return ReferenceRow(logits, _patch_starts(patch_lengths, len(ids)))


def _patch_starts(patch_lengths: list[torch.Tensor], count: int) -> NDArray[np.bool_]:
    """[count] bool: whether the position after each id starts a patch; without a patcher every one does."""
    if not patch_lengths:
        return np.ones(count, np.bool_)
    starts = np.zeros(count + 2, np.bool_)
    starts[np.cumsum(patch_lengths[0][0].numpy())] = True
    return starts[1 : count + 1]
