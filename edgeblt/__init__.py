"""edgeblt runs Byte Latent Transformers on a device, from bundles made by `edgeblt export`."""

import importlib.util

if importlib.util.find_spec("onnxruntime") is None:
    # No dependency of the package itself: its two builds exclude each other.
    raise ImportError("edgeblt needs ONNX Runtime; install edgeblt[onnxruntime] or edgeblt[onnxruntime-gpu]")

from edgeblt.errors import EdgebltError
from edgeblt.model import Model, Scores, load
from edgeblt.names import Name
from edgeblt.session import Session

__all__ = ["EdgebltError", "Model", "Name", "Scores", "Session", "load"]
