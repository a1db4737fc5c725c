"""A bundle as the workers of a job open it, each for itself; their weights are mapped from the same files."""

from dataclasses import dataclass
from pathlib import Path

from edgeblt.errors import EdgebltError
from edgeblt.model import Model, open_model


@dataclass(frozen=True)
class BundleOpening:
    """All that a worker needs to open a bundle.

    path: absolute, where the worker is.
    bundle_id: of the bundle that must be there.
    verify: whether the hash of every file is checked.
    """

    path: str
    bundle_id: str
    provider: str | None
    threads: int | None
    threshold: float | None
    verify: bool = False

    def open(self) -> Model:
        """The opened model. Raises EdgebltError as `load`, and where another bundle is at the path."""
        model = open_model(Path(self.path), self.provider, self.threads, self.verify, self.threshold, 0)
        if model.bundle.id != self.bundle_id:
            model.close()
            raise EdgebltError(f"{self.path} holds another bundle than when the job began; run the command again")
        return model
