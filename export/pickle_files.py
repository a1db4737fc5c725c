"""Tensors in a file that `torch.save` wrote (`.pth`): mapped, read by rows, never unpickled as code.

The pickle inside is read by torch's own reader of `weights_only=True`, which builds tensors and plain containers and
refuses everything else. Every error of the file becomes an EdgebltError that names it.
"""

import math
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.export.safetensors_files import DTYPES, HEADER_LIMIT, finite_float32

_SIZES = dict(DTYPES.values())
_PICKLE = "data.pkl"


@dataclass(frozen=True)
class PickledTensor:
    """One tensor of one file; its data stays in the file, which is mapped as long as this object lives."""

    file: Path
    name: str
    tensor: torch.Tensor = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """ "bfloat16", "float16", "float32" or "float64"; raises EdgebltError for any other."""
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        if dtype not in _SIZES:
            raise EdgebltError(
                f"{self.file}: the tensor {self.name!a} is stored as {dtype}; "
                "give a checkpoint in bfloat16, float16, float32 or float64"
            )
        return dtype

    @property
    def stored_bytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` (along the first axis), float32, C-contiguous, in memory of their own."""
        return finite_float32(self.tensor[start:stop], self.file, self.name)


def pickled_tensors(file: Path, key: str) -> dict[str, PickledTensor]:
    """Every tensor of the dictionary under `key` of the pickled one, by its name; no data. Raises EdgebltError."""
    _refuse_odd_archive(file)
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch's reader, about what it meets in damaged files
            document = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile pickle can make the reader stumble in any way
        raise EdgebltError(
            f"{file} is no whole file of tensors only, as torch.save writes ({type(error).__name__}), and was not run; "
            "download it again"
        ) from None
    tensors = document.get(key) if isinstance(document, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise EdgebltError(f"{file} has no dictionary of tensors under {key!r}; give the file of a whole checkpoint")
    return {name: PickledTensor(file, name, _plain(file, name, value)) for name, value in tensors.items()}


def _plain(file: Path, name: object, value: Any) -> torch.Tensor:
    """`value`, refused unless it is a tensor whose rows lie side by side in the file."""
    if not isinstance(name, str) or type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise EdgebltError(f"{file}: {name!a:.100} is no tensor under its name; give the file of a whole checkpoint")
    tensor: torch.Tensor = value.detach()
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_neg():
        raise EdgebltError(f"{file}: the tensor {name!a:.100} is not stored plainly; save the checkpoint again")
    end = tensor.storage_offset() + tensor.numel()
    if not tensor.is_contiguous() or end * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise EdgebltError(f"{file}: the tensor {name!a:.100} is not contiguous; save it again after .contiguous()")
    return tensor


def _refuse_odd_archive(file: Path) -> None:
    """torch.save stores everything uncompressed, and the pickle of a large model takes some 100 KB."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise EdgebltError(f"{file} cannot be read: {error.strerror}") from None
    except Exception:  # as above
        raise EdgebltError(f"{file} is truncated or was not written by torch.save; download it again") from None
    size = sum(entry.file_size for entry in entries if entry.filename.endswith(_PICKLE))
    if size > HEADER_LIMIT or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise EdgebltError(f"{file} was not written by torch.save; download it again")
