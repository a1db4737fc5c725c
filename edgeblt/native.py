"""The native library, if the package was built with one: where it is, what it uses of the processor, or why it is idle.

It holds kernels for the operators of domain `edgeblt`. Everything works without it, slower, as every model carries
those operators in portable form too. A library that cannot be opened, that belongs to another version of the package,
or that the runtime does not take is reported once and left alone.

The environment variable EDGEBLT_NATIVE turns it off (0) or down to an instruction level (scalar, avx2, avx512, neon).
"""

import ctypes
import functools
import importlib.metadata
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import edgeblt

LIBRARY_NAME = "libedgeblt.so"
VARIABLE = "EDGEBLT_NATIVE"
OFF, BEST = ("0", "off"), ("", "1")
LEVELS = ("scalar", "avx2", "avx512", "neon")  # by the library's numbers
# By the library's numbers.
OPERATORS = (
    "EntropyPatch", "DenseMatMul", "SparseMatMul", "MaskedMatMul", "WindowAttention", "DenseLayer", "LatentAttention",
    "DenseCrossAttention",
)  # fmt: skip


@dataclass(frozen=True)
class NativeStatus:
    """`path`: the library found, if any; `version`: what it says; `reason`: why it is not used, None when it is.

    `level`: the instructions its kernels use; `levels`: those this processor and the library both have."""

    path: Path | None
    version: str | None
    reason: str | None
    level: str | None = None
    levels: tuple[str, ...] = ()


@functools.cache
def status() -> NativeStatus:
    """The library beside this package's modules, set to what EDGEBLT_NATIVE asks for; never raises."""
    # An editable install has two directories: the sources, and site-packages where CMake installs.
    for directory in edgeblt.__path__:
        path = Path(directory) / LIBRARY_NAME
        if path.is_file():
            found = inspect_library(path, package_version())
            return found if found.reason else _set_level(found, os.environ.get(VARIABLE, "").strip().lower())
    return NativeStatus(
        None, None, f"{LIBRARY_NAME} was not built; install a C++ compiler, then edgeblt again from its source"
    )


def describe() -> str:
    """One line: what is used, or why not."""
    found = status()
    return f"version {found.version}, {found.level}" if found.reason is None else f"not used: {found.reason}"


def version() -> str | None:
    """Version of the library in use, or None."""
    return status().version if status().reason is None else None


def library_path() -> Path | None:
    """The library in use, or None."""
    return status().path if status().reason is None else None


def register(options: Any) -> str | None:
    """Give a session's options, `onnxruntime.SessionOptions`, the library's kernels; once for each object.

    Returns None, or why the session will run the portable forms instead; what was not asked for is also logged, once.
    """
    path = library_path()
    if path is None:
        reason = status().reason or ""
        if os.environ.get(VARIABLE, "").strip().lower() not in OFF:
            _log(reason)
        return reason
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # of the runtime, which has no common class for its own
        reason = _one_line(_library(path).edgeblt_registration_error()) or _one_line(str(error))
        _log(f"{path} was not taken: {reason}")
        return reason
    return None


def runs(operator: str) -> int:
    """How often a kernel of this library has run in this process: what tells it from the portable form."""
    path = library_path()
    return int(_library(path).edgeblt_runs(OPERATORS.index(operator))) if path else 0


def use_level(level: str) -> None:
    """Have the kernels use other instructions from now on. Raises ValueError where they are not available."""
    path = library_path()
    if path is None or not _library(path).edgeblt_use_level(LEVELS.index(level)):
        raise ValueError(f"{level} is not available; use one of {', '.join(status().levels)}")


def package_version() -> str | None:
    """Version of the installed package; None where the sources are used without being installed."""
    try:
        return importlib.metadata.version("edgeblt")
    except importlib.metadata.PackageNotFoundError:
        return None


def inspect_library(path: Path, expected_version: str | None) -> NativeStatus:
    """What the library at `path` is, and whether it fits `expected_version` (None: any version does)."""
    try:
        library = _library(path)
    except OSError as error:  # its text names the file
        return NativeStatus(path, None, f"cannot be opened: {error}; install edgeblt again")
    except AttributeError as error:
        name = str(error).rpartition(" ")[2]
        return NativeStatus(path, None, f"{path} does not export {name}; install edgeblt again")
    found = library.edgeblt_version().decode("ascii", "replace")
    if expected_version is not None and found != expected_version:
        reason = f"{path} is version {found}, the package is {expected_version}; install edgeblt again"
        return NativeStatus(path, found, reason)
    levels = tuple(name for number, name in enumerate(LEVELS) if library.edgeblt_level_available(number))
    return NativeStatus(path, found, None, LEVELS[library.edgeblt_level()], levels)


def _set_level(found: NativeStatus, wanted: str) -> NativeStatus:
    """`found` as EDGEBLT_NATIVE, of value `wanted`, would have it."""
    if wanted in BEST:
        return found
    if wanted in OFF:
        return replace(found, reason=f"turned off by {VARIABLE}={wanted}", level=None)
    if wanted not in found.levels:
        values = ", ".join((*OFF, *found.levels))
        return replace(found, reason=f"{VARIABLE} is {wanted!r}; use one of {values}, or unset it", level=None)
    assert found.path
    _library(found.path).edgeblt_use_level(LEVELS.index(wanted))
    return replace(found, level=wanted)


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    """Raises OSError if it cannot be opened, AttributeError if a function is missing."""
    library = ctypes.CDLL(str(path))
    text, number = ctypes.c_char_p, ctypes.c_int
    functions: tuple[tuple[str, Sequence[Any], Any], ...] = (
        ("edgeblt_version", (), text),
        ("edgeblt_level", (), number),
        ("edgeblt_level_available", (number,), number),
        ("edgeblt_use_level", (number,), number),
        ("edgeblt_runs", (number,), ctypes.c_ulonglong),
        ("edgeblt_registration_error", (), text),
    )
    for name, arguments, result in functions:
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


@functools.cache  # so once
def _log(reason: str) -> None:
    logging.getLogger("edgeblt").warning("the native library is not used, all runs slower: %s", reason)


def _one_line(text: str | bytes | None) -> str:
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text or ""
    return " ".join(text.split())
