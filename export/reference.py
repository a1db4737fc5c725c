"""transformers' own forward pass as the reference: the whole row at once, no cache, float32."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from transformers import BltForCausalLM
from transformers.utils import logging

from edgeblt.bundle.held_files import unreadable
from edgeblt.errors import EdgebltError
from edgeblt.export.architectures import CheckpointReference, workbench_architecture
from edgeblt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.checkpoints.naming import checkpoint_name
from edgeblt.export.transformers_model import transformers_model
from edgeblt.ids import OFFSET
from edgeblt.measure.reference import ComputedRows, ReferenceRow, Text
from edgeblt.measure.reference_file import FORMAT_VERSION, RecordedText, Recording, recording_to
from edgeblt.measure.validation import Report, validate
from edgeblt.model import Model
from edgeblt.quant.torch_threads import keep_to_usable_cores


class TransformersReference:
    """`BltForCausalLM(use_cache=False)` on a floating-point checkpoint of any form.

    `patcher`, `strict`: see `open_checkpoint`, whose notes are warnings here; `device`: where torch computes. Raises
    EdgebltError if it is no checkpoint, or one that transformers cannot compute.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        patcher: str | Path | None = None,
        device: str = "cpu",
        strict: bool = False,
    ) -> None:
        opened = open_checkpoint(checkpoint, patcher, strict)  # our errors are clearer than transformers'
        opened.warn()
        self._open(opened, device)

    @classmethod
    def of(cls, opened: Checkpoint, device: str) -> "TransformersReference":
        """The same for an opened checkpoint."""
        reference = cls.__new__(cls)
        reference._open(opened, device)
        return reference

    def _open(self, opened: Checkpoint, device: str) -> None:
        if opened.is_quantized:
            raise EdgebltError(f"{opened.path} is quantized; give the checkpoint it was made from as the reference")
        self.files, self.name = opened.files(), checkpoint_name(opened)
        logging.disable_progress_bar()
        self.model = _transformers_model(opened).to(device)
        self.vocab_size: int = self.model.config.vocab_size
        keep_to_usable_cores()

    def row(self, ids: NDArray[np.int64]) -> ReferenceRow:
        """The reference's results on `ids` [T] int64, which begin with BOS.

        One more byte is fed than is evaluated: with a maximum patch length transformers drops a patch that would start
        right behind the last byte, so that its last position would be wrong. Nothing before it depends on that byte.
        """
        batch = torch.from_numpy(np.append(ids, OFFSET))[None].to(self.model.device)
        patch_lengths: list[torch.Tensor] = []
        patcher = self.model.model.patcher
        hook = patcher and patcher.register_forward_hook(lambda module, inputs, output: patch_lengths.append(output[1]))
        try:
            with torch.inference_mode():
                logits = self.model(batch, use_cache=False).logits[0, : len(ids)].cpu().numpy()
        finally:
            if hook:
                hook.remove()
        return ReferenceRow(logits, _patch_starts(patch_lengths, len(ids)))


def _transformers_model(checkpoint: Checkpoint) -> Any:  # a BltForCausalLM, whose own types are of no help
    """The model as transformers opens it or, if it cannot, built from what edgeblt read.

    transformers refuses an empty `quantization_config`, for instance, though it has no meaning.
    """
    if checkpoint.is_transformers_form:
        with suppress(AttributeError, KeyError, TypeError, ValueError, StrictDataclassError):
            return BltForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    return transformers_model(checkpoint)


def validate_against(
    checkpoint: str | Path,
    models: Sequence[Model],
    texts: Sequence[Text],
    save_reference_logits: Path | None = None,
    patcher: str | Path | None = None,
    device: str = "cpu",
    strict: bool = False,
) -> tuple[Report, ...]:
    """Accuracy of each model on `texts` against the reference of the checkpoint's architecture, for a BLT transformers.

    `save_reference_logits` is where to record the reference, for `measure.reference_file.ReferenceFile`; `patcher`,
    `strict`: see `open_checkpoint`; `device`: where torch computes. Raises EdgebltError if the checkpoint or a text
    cannot be used, or the file cannot be written.
    """
    opened = open_checkpoint(checkpoint, patcher, strict)
    opened.warn()
    reference = workbench_architecture(opened.config.architecture).reference(opened, device)
    rows = ComputedRows(reference, texts)
    if save_reference_logits is None:
        return validate(models, rows)
    with recording_to(save_reference_logits, _recording(reference, rows)) as record:
        return validate(models, rows, record)


def _recording(reference: CheckpointReference, rows: ComputedRows) -> Recording:
    return Recording(
        format_version=FORMAT_VERSION,
        checkpoint=reference.name,
        checkpoint_sha256=checkpoint_sha256(reference.files),
        vocab_size=reference.vocab_size,
        row_bytes=rows.row_bytes,
        prompts=rows.prompts,
        texts=tuple(RecordedText(name, size) for name, size in rows.sizes.items()),
    )


def checkpoint_sha256(files: dict[str, Path]) -> str:
    """Digest that `sha256sum NAME ... | sha256sum` gives in the checkpoint's directory. Raises EdgebltError."""
    lines = hashlib.sha256()
    try:
        for name, path in files.items():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.update(f"{digest}  {name}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise unreadable(error.filename, error, "copy the checkpoint again") from None
    return lines.hexdigest()


def _patch_starts(patch_lengths: list[torch.Tensor], count: int) -> NDArray[np.bool_]:
    """[count] bool: whether the position after each id starts a patch; without a patcher every one does."""
    if not patch_lengths:
        return np.ones(count, np.bool_)
    starts = np.zeros(count + 2, np.bool_)
    starts[np.cumsum(patch_lengths[0][0].cpu().numpy())] = True
    return starts[1 : count + 1]
