"""The weights an ONNX graph holds or refers to, by name, shape and size."""

from pathlib import Path

from edgeblt.bundle.examination.onnx_graph import Tensor, tensors
from edgeblt.bundle.examination.protobuf import MalformedError
from edgeblt.bundle.held_files import unreadable
from edgeblt.bundle.weight_plan import StoredTensor
from edgeblt.errors import EdgebltError


def initializers(path: Path, prefix: str) -> list[StoredTensor]:
    """The initializers whose names start with `prefix`, in file order. Raises EdgebltError for other files."""
    try:
        return [_stored(tensor) for tensor in tensors(path.read_bytes()) if tensor.name.startswith(prefix)]
    except OSError as error:
        raise unreadable(path, error, "copy the bundle again") from None
    except MalformedError as error:
        raise EdgebltError(f"{path} is no ONNX graph ({error}); export the bundle again") from None


def _stored(tensor: Tensor) -> StoredTensor:
    if not tensor.dims or 0 in tensor.dims:
        raise MalformedError(f"{tensor.name!a:.80} has the shape {list(tensor.dims)!r:.80}")
    return StoredTensor(tensor.name, tensor.dims[0], tensor.size)
