"""Quantizing through Hugging Face Optimum: its interface over `quantize_checkpoint`."""

import os
from pathlib import Path
from typing import Any

try:
    from optimum.quantization_base import OptimumQuantizer
except ImportError:
    from edgeblt.installing import install_hint

    raise ImportError(f"BltQuantizer needs optimum; install it with: {install_hint('workbench')}") from None

from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.names import Name, RecipeName
from edgeblt.quant.compress import quantize_checkpoint


class BltQuantizer(OptimumQuantizer):  # type: ignore[misc]  # optimum ships no type information
    """Quantizes one checkpoint, as often and in as many ways as asked.

        quantizer = BltQuantizer.from_pretrained("path/to/checkpoint")
        quantizer.quantize(save_dir="smaller-checkpoint", recipe="int8")

    It writes the same files as `edgeblt quantize`.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        """Raises EdgebltError if `checkpoint` is none, or cannot be downloaded from the hub; reads no weights yet."""
        self.checkpoint = open_checkpoint(checkpoint).path

    @classmethod
    def from_pretrained(cls, model_or_path: str | Path, file_name: str | None = None) -> "BltQuantizer":
        """The quantizer of the checkpoint in a local directory, or of one on the Hugging Face hub.

        Raises EdgebltError for anything else: a model in memory, or a `file_name`, which optimum has for formats of
        one file.
        """
        _refuse(file_name, "file_name", "a checkpoint is read whole")
        if not isinstance(model_or_path, str | os.PathLike):
            raise EdgebltError(
                f"model_or_path is a {type(model_or_path).__name__}; save the model with save_pretrained and give the "
                "directory"
            )
        return cls(Path(model_or_path))

    def quantize(
        self,
        save_dir: str | Path,
        file_prefix: str | None = None,
        *,
        recipe: RecipeName | Name | Path = "int4",
        calibration: str | Path | None = None,
    ) -> Path:
        """Write the quantized checkpoint as the directory `save_dir` and return its path.

        `recipe` is one that comes with the package, by name, or a TOML file; `calibration` a text file, by default
        the text that comes with the package. Raises EdgebltError for a `file_prefix`, as transformers prescribes the
        names of a checkpoint's files, and whenever `quantize_checkpoint` does; it writes the directory whole or not
        at all.
        """
        _refuse(file_prefix, "file_prefix", "the names of a checkpoint's files are fixed")
        return quantize_checkpoint(self.checkpoint, save_dir, recipe, calibration)


def _refuse(value: Any, name: str, reason: str) -> None:
    if value is not None:
        raise EdgebltError(f"{name} is {value!r:.80}, but {reason}; leave it out")
