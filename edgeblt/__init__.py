"""edgeblt runs Byte Latent Transformers on a device, from bundles made by `edgeblt export`."""

import importlib.util
import os

# ONNX Runtime writes a device id and a queue of events to the user's folders as it is imported, and sends them, unless
# this is set before; a setting of the user's own stays.
if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if importlib.util.find_spec("onnxruntime") is None:
    # No dependency of the package itself: its two builds exclude each other.
    raise ImportError("edgeblt needs ONNX Runtime; install edgeblt[onnxruntime] or edgeblt[onnxruntime-gpu]")

from edgeblt.errors import EdgebltError
from edgeblt.model import Model, Scores, load
from edgeblt.names import Name
from edgeblt.session import Session

__all__ = ["EdgebltError", "Model", "Name", "Scores", "Session", "load"]
