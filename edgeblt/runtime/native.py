"""The native libraries, if the package was built with them: where they are, what they use, or why they are idle.

They hold kernels for the operators of domain `edgeblt`, one for the CPU and one for CUDA, which is opened only when it
is asked for. Everything works without them, slower, as every model carries those operators in portable form too. A
library that cannot be opened, that belongs to another version of the package, or that the runtime does not take is
reported once and left alone.

The environment variable EDGEBLT_NATIVE turns both off (0), or the one for the CPU down to an instruction level (scalar,
avx2, avx512, neon).
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

LIBRARY_NAME, CUDA_LIBRARY_NAME = "libedgeblt.so", "libedgeblt_cuda.so"
VARIABLE = "EDGEBLT_NATIVE"
OFF, BEST = ("0", "off"), ("", "1")
LEVELS = ("scalar", "avx2", "avx512", "neon")  # by the library's numbers
# By the library's numbers.
OPERATORS = (
    "EntropyPatch", "DenseMatMul", "SparseMatMul", "MaskedMatMul", "WindowAttention", "DenseLayer", "LatentAttention",
    "DenseCrossAttention",
)  # fmt: skip
CUDA_OPERATORS = OPERATORS[:1]


@dataclass(frozen=True)
class NativeStatus:
    """`path`: the library found, if any; `version`: what it says; `reason`: why it is not used, None when it is.

    `level`: the instructions its kernels use; `levels`: those this processor and the library both have; of the library
    for CUDA, neither."""

    path: Path | None
    version: str | None
    reason: str | None
    level: str | None = None
    levels: tuple[str, ...] = ()


@functools.cache
def status() -> NativeStatus:
    """The library beside this package's modules, set to what EDGEBLT_NATIVE asks for; never raises."""
    found = _look_for(LIBRARY_NAME, "a C++ compiler")
    return found if found.reason else _set_level(found, _wanted())


@functools.cache
def cuda_status() -> NativeStatus:
    """The library of kernels for CUDA beside the other, which is opened; never raises, nor needs a device."""
    found = _look_for(CUDA_LIBRARY_NAME, "CUDA's compiler nvcc")
    return _set_level(found, _wanted()) if found.reason is None and _wanted() in OFF else found


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
        return _unregistered(status())
    return _register(options, path)


def register_cuda(options: Any) -> str | None:
    """`register` for a session on CUDA: gives it the library of kernels for CUDA, instead of the other.

    A session that has both does not open, as ONNX Runtime takes a domain from one library only. One that gets no CUDA
    after all runs this library's kernels for the CPU.
    """
    found = cuda_status()
    if found.reason is not None or found.path is None:
        return _unregistered(found)
    return _register(options, found.path)


def runs(operator: str) -> int:
    """How often a kernel of the CPU has run in this process: what tells it from the portable form."""
    path = library_path()
    return int(_library(path).edgeblt_runs(OPERATORS.index(operator))) if path else 0


def cuda_runs(operator: str) -> int:
    """How often a kernel has been started on CUDA by this process."""
    found = cuda_status()
    started = found.path is not None and found.reason is None
    return int(_library(found.path).edgeblt_runs(OPERATORS.index(operator))) if started else 0


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
    if path.name == CUDA_LIBRARY_NAME:
        return NativeStatus(path, found, None)
    levels = tuple(name for number, name in enumerate(LEVELS) if library.edgeblt_level_available(number))
    return NativeStatus(path, found, None, LEVELS[library.edgeblt_level()], levels)


def _look_for(name: str, compiler: str) -> NativeStatus:
    path = _find(name)
    if path is None:
        return NativeStatus(None, None, f"{name} was not built; install {compiler}, then edgeblt again from its source")
    return inspect_library(path, package_version())


def _find(name: str) -> Path | None:
    # An editable install has two directories: the sources, and site-packages where CMake installs.
    paths = (Path(directory) / name for directory in edgeblt.__path__)
    return next((path for path in paths if path.is_file()), None)


def _wanted() -> str:
    return os.environ.get(VARIABLE, "").strip().lower()


def _unregistered(found: NativeStatus) -> str:
    reason = found.reason or ""
    if _wanted() not in OFF:
        _log(reason)
    return reason


def _register(options: Any, path: Path) -> str | None:
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # of the runtime, which has no common class for its own
        reason = _one_line(_library(path).edgeblt_registration_error()) or _one_line(str(error))
        _log(f"{path} was not taken: {reason}")
        return reason
    return None


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
        ("edgeblt_runs", (number,), ctypes.c_ulonglong),
        ("edgeblt_registration_error", (), text),
        ("edgeblt_level", (), number),
        ("edgeblt_level_available", (number,), number),
        ("edgeblt_use_level", (number,), number),
    )
    for name, arguments, result in functions[:3] if path.name == CUDA_LIBRARY_NAME else functions:
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


@functools.cache  # so once
def _log(reason: str) -> None:
    logging.getLogger("edgeblt").warning("the native library is not used, all runs slower: %s", reason)


def _one_line(text: str | bytes | None) -> str:
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text or ""
    return " ".join(text.split())
