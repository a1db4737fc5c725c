"""The native library, if the package was built with one: where it is, what version it is, or why it is not used.

Everything works without it, slower. A library that cannot be opened, or that belongs to another version of the
package, is reported and left alone.
"""

import ctypes
import functools
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import edgeblt

LIBRARY_NAME = "libedgeblt.so"


@dataclass(frozen=True)
class NativeStatus:
    """`path`: the library found, if any; `version`: what it says; `reason`: why it is not used, None when it is."""

    path: Path | None
    version: str | None
    reason: str | None


@functools.cache
def status() -> NativeStatus:
    """The library beside this package's modules; never raises."""
    # An editable install has two directories: the sources, and site-packages where CMake installs.
    for directory in edgeblt.__path__:
        path = Path(directory) / LIBRARY_NAME
        if path.is_file():
            return inspect_library(path, package_version())
    return NativeStatus(
        None, None, f"{LIBRARY_NAME} was not built; install a C++ compiler, then edgeblt again from its source"
    )


def version() -> str | None:
    """Version of the library in use, or None."""
    return status().version if status().reason is None else None


def library_path() -> Path | None:
    """The library in use, or None."""
    return status().path if status().reason is None else None


def package_version() -> str | None:
    """Version of the installed package; None where the sources are used without being installed."""
    try:
        return importlib.metadata.version("edgeblt")
    except importlib.metadata.PackageNotFoundError:
        return None


def inspect_library(path: Path, expected_version: str | None) -> NativeStatus:
    """What the library at `path` is, and whether it fits `expected_version` (None: any version does)."""
    try:
        function = ctypes.CDLL(str(path)).edgeblt_version
    except OSError as error:  # its text names the file
        return NativeStatus(path, None, f"cannot be opened: {error}; install edgeblt again")
    except AttributeError:
        return NativeStatus(path, None, f"{path} does not export edgeblt_version; install edgeblt again")
    function.argtypes = ()
    function.restype = ctypes.c_char_p
    found = function().decode("ascii", "replace")
    if expected_version is not None and found != expected_version:
        reason = f"{path} is version {found}, the package is {expected_version}; install edgeblt again"
        return NativeStatus(path, found, reason)
    return NativeStatus(path, found, None)
