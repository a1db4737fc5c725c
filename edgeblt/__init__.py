"""edgeblt runs Byte Latent Transformers on a device, from bundles made by `edgeblt export`."""

from edgeblt.errors import EdgebltError
from edgeblt.model import Model, Scores, load
from edgeblt.session import Session

__all__ = ["EdgebltError", "Model", "Scores", "Session", "load"]
