"""A bundle carried to the machines of a Ray cluster, and found there by its id."""

import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from edgeblt.bundle.manifest import open_bundle
from edgeblt.bundle.whole_files import BeingWrittenError, whole_directory
from edgeblt.corpus.opening import BundleOpening
from edgeblt.errors import EdgebltError

_LONGEST_WAIT = 600.0  # seconds that another worker of the machine may take to write the same copy


@dataclass(frozen=True)
class ShippedBundle:
    """The files of a bundle as objects of a Ray cluster."""

    bundle_id: str
    files: tuple[tuple[str, Any], ...]  # name, and a reference to uint8 [size]

    def opening_here(self, opening: BundleOpening) -> BundleOpening:
        """How the bundle is opened on this machine: at its own path where it is there, else from a copy.

        The copy is in the folder for temporary files, under the bundle's id; its hashes are checked as it is opened.
        Raises EdgebltError where it cannot be written.
        """
        if _is_there(Path(opening.path), self.bundle_id):
            return opening
        folder = Path(tempfile.gettempdir()) / f"edgeblt-bundles-{os.geteuid()}"
        copy = folder / self.bundle_id
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022 or folder.is_symlink():
            raise EdgebltError(f"{folder} may be written by others; remove it, or set TMPDIR to a folder of your own")
        self._write(copy)
        return replace(opening, path=str(copy), verify=True)

    def _write(self, copy: Path) -> None:
        """Writes the copy unless it is there, or waits for the worker that is writing it."""
        ends = time.monotonic() + _LONGEST_WAIT
        while not copy.exists():
            try:
                with whole_directory(copy) as partial:
                    for name, content in self.files:
                        with (partial / name).open("wb") as file:
                            file.write(ray.get(content))
            except EdgebltError as error:
                waiting = isinstance(error, BeingWrittenError) and time.monotonic() < ends
                if not waiting and not copy.exists():  # another worker may have completed it in between
                    raise
                time.sleep(0.1)


def ship_bundle(opening: BundleOpening) -> ShippedBundle:
    """Puts the files of a bundle into the cluster's objects. Raises EdgebltError where one cannot be read."""
    bundle = open_bundle(opening.path)
    try:
        names = sorted(entry.name for entry in bundle.path.iterdir() if entry.is_file())
        files = [(name, ray.put(np.fromfile(bundle.path / name, np.uint8))) for name in names]
    except OSError as error:
        raise EdgebltError(f"{error.filename} cannot be read ({error.strerror}); copy the bundle again") from None
    return ShippedBundle(opening.bundle_id, tuple(files))


def _is_there(path: Path, bundle_id: str) -> bool:
    try:
        return open_bundle(path).id == bundle_id
    except EdgebltError:
        return False
