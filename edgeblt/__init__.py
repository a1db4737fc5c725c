"""edgeblt runs Byte Latent Transformers on a device, from bundles made by `edgeblt export`.

Its names are imported when they are first used, so that the command line starts at once and can always be stopped.
"""

import os

from edgeblt.errors import EdgebltError

# ONNX Runtime writes a device id and a queue of events to the user's folders as it is imported, and sends them, unless
# this is set before; a setting of the user's own stays.
if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

TYPE_CHECKING = False  # a constant known to type checkers; the module typing would be the slowest import here
if TYPE_CHECKING:
    from typing import Any

    from edgeblt.decoding.constraints import Constraint
    from edgeblt.decoding.settings import GenerationSettings
    from edgeblt.model import Model, load
    from edgeblt.names import Name
    from edgeblt.runtime.session import Session
    from edgeblt.scores import Scores

    __version__: str

__all__ = [
    "Constraint",
    "EdgebltError",
    "GenerationSettings",
    "Model",
    "Name",
    "Scores",
    "Session",
    "__version__",
    "load",
]

_PLACES = {
    "Constraint": "decoding.constraints",
    "GenerationSettings": "decoding.settings",
    "Model": "model",
    "Name": "names",
    "Scores": "scores",
    "Session": "runtime.session",
    "load": "model",
}


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        from edgeblt.runtime.native import package_version

        return package_version() or "unknown"
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib.util

    if importlib.util.find_spec("onnxruntime") is None:
        raise ImportError(missing_runtime())
    return getattr(importlib.import_module(f"edgeblt.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def missing_runtime() -> str:
    """Message for a missing ONNX Runtime, no dependency of the package, as its two builds exclude each other."""
    from edgeblt.installing import install_hint

    return f"edgeblt needs ONNX Runtime; install it with: {install_hint('onnxruntime')} (onnxruntime-gpu for NVIDIA)"
