"""Native libraries of the package: their paths, the instructions they use, or why they are not used.

They hold kernels for the operators of domain `edgeblt`: one library for the CPU, and one for CUDA that is opened only
when asked for. Everything works without them, slower, as every model carries those operators in portable form too. A
library that cannot be opened, belongs to another version of the package, or is refused by ONNX Runtime is reported once
and not used.

The environment variable EDGEBLT_NATIVE turns both off (0), or restricts the one for the CPU to an instruction level
(scalar, avx2, avxvnni, avx512, amx, neon, i8mm).
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

from numpy.typing import NDArray

import edgeblt

LIBRARY_NAME, CUDA_LIBRARY_NAME = "libedgeblt.so", "libedgeblt_cuda.so"
VARIABLE = "EDGEBLT_NATIVE"
OFF, BEST = ("0", "off"), ("", "1")
LEVELS = ("scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "i8mm")  # in the library's numbering
# In the library's numbering.
OPERATORS = (
    "EntropyPatch", "DenseMatMul", "SparseMatMul", "MaskedMatMul", "WindowAttention", "DenseLayer", "LatentAttention",
    "DenseCrossAttention", "HashEmbedding", "PatchAttention", "DensePooling", "DenseProjection",
    "CausalConvolution", "SelectiveScan",
)  # fmt: skip
CUDA_OPERATORS = OPERATORS[:1]


@dataclass(frozen=True)
class NativeStatus:
    """State of one native library.

    path: the library found, if any.
    version: its own version.
    reason: why it is not used; None when it is.
    level: instruction level that its kernels use; None for CUDA.
    levels: instruction levels that both this processor and the library have; empty for CUDA.
    """

    path: Path | None
    version: str | None
    reason: str | None
    level: str | None = None
    levels: tuple[str, ...] = ()


@functools.cache
def status() -> NativeStatus:
    """State of the library for the CPU, at the level EDGEBLT_NATIVE asks for; never raises."""
    found = _look_for(LIBRARY_NAME, "a C++ compiler")
    return found if found.reason else _set_level(found, _wanted())


@functools.cache
def cuda_status() -> NativeStatus:
    """State of the library for CUDA, which this opens; never raises and needs no device."""
    found = _look_for(CUDA_LIBRARY_NAME, "CUDA's compiler nvcc")
    return _set_level(found, _wanted()) if found.reason is None and _wanted() in OFF else found


def describe() -> str:
    """State of the library for the CPU in one line: version and level, or why it is not used."""
    found = status()
    return f"version {found.version}, {found.level}" if found.reason is None else f"not used: {found.reason}"


def version() -> str | None:
    """Version of the library in use, or None."""
    return status().version if status().reason is None else None


def library_path() -> Path | None:
    """Path of the library in use, or None."""
    return status().path if status().reason is None else None


def register(options: Any) -> str | None:
    """Register the library's kernels with `onnxruntime.SessionOptions`; call it once for each object.

    Returns None, or why the session will run the portable forms instead; a reason other than EDGEBLT_NATIVE is also
    logged, once.
    """
    path = library_path()
    if path is None:
        return _unregistered(status())
    return _register(options, path)


def register_cuda(options: Any) -> str | None:
    """Register the library of kernels for CUDA instead of the one for the CPU; returns as `register` does.

    A session with both does not open, as ONNX Runtime takes a domain from one library only. A session that gets no CUDA
    after all runs this library's kernels for the CPU.
    """
    found = cuda_status()
    if found.reason is not None or found.path is None:
        return _unregistered(found)
    return _register(options, found.path)


def runs(operator: str) -> int:
    """Number of runs of a CPU kernel in this process; 0 if only its portable form has run."""
    path = library_path()
    return int(_library(path).edgeblt_runs(OPERATORS.index(operator))) if path else 0


def cuda_runs(operator: str) -> int:
    """Number of launches of a kernel on CUDA by this process."""
    found = cuda_status()
    started = found.path is not None and found.reason is None
    return int(_library(found.path).edgeblt_runs(OPERATORS.index(operator))) if started else 0


def use_level(level: str) -> str:
    """Set the instruction level of all kernels; returns the one before. Raises ValueError where it is not available."""
    path = library_path()
    before = LEVELS[_library(path).edgeblt_level()] if path else ""
    if path is None or not _library(path).edgeblt_use_level(LEVELS.index(level)):
        raise ValueError(f"{level} is not available; use one of {', '.join(status().levels)}")
    return before


def read_memory(buffer: NDArray[Any]) -> int:
    """Sum of a contiguous array's bytes as little-endian 64-bit words, modulo 2 ** 64; other threads run meanwhile.

    One core reads memory about as fast as it can. Raises ValueError without the library.
    """
    path = library_path()
    if path is None or not buffer.flags.c_contiguous:
        raise ValueError("memory is read by the native library, and from contiguous arrays")
    return int(_library(path).edgeblt_read_memory(buffer.ctypes.data, buffer.nbytes))


def package_version() -> str | None:
    """Version of the installed package; None where the sources are used without being installed."""
    try:
        return importlib.metadata.version("edgeblt")
    except importlib.metadata.PackageNotFoundError:
        return None


def inspect_library(path: Path, expected_version: str | None) -> NativeStatus:
    """State of the library at `path`; one of another version than `expected_version` is not used (None: any is)."""
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
    path = find_library(name)
    if path is None:
        return NativeStatus(None, None, f"{name} was not built; install {compiler}, then edgeblt again from its source")
    return inspect_library(path, package_version())


def find_library(name: str) -> Path | None:
    """Path of one of the package's libraries; None where it was not built."""
    # An editable install has two directories: the sources, and site-packages where CMake installs.
    paths = (Path(directory) / name for directory in edgeblt.__path__)
    return next((path for path in paths if path.is_file()), None)


def _wanted() -> str:
    return os.environ.get(VARIABLE, "").strip().lower()


def _unregistered(found: NativeStatus) -> str:
    reason = found.reason or ""
    if _wanted() not in OFF:
        warn_once(reason)
    return reason


def _register(options: Any, path: Path) -> str | None:
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime has no common class for its errors
        reason = _one_line(_library(path).edgeblt_registration_error()) or _one_line(str(error))
        warn_once(f"{path} was not taken: {reason}")
        return reason
    return None


def _set_level(found: NativeStatus, wanted: str) -> NativeStatus:
    """`found` at the level that `wanted`, the value of EDGEBLT_NATIVE, asks for."""
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
    """Opens the library. Raises OSError if it cannot, AttributeError if a function is missing."""
    library = ctypes.CDLL(str(path))
    text, number = ctypes.c_char_p, ctypes.c_int
    functions: tuple[tuple[str, Sequence[Any], Any], ...] = (
        ("edgeblt_version", (), text),
        ("edgeblt_runs", (number,), ctypes.c_ulonglong),
        ("edgeblt_registration_error", (), text),
        ("edgeblt_level", (), number),
        ("edgeblt_level_available", (number,), number),
        ("edgeblt_use_level", (number,), number),
        ("edgeblt_read_memory", (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_ulonglong),
    )
    for name, arguments, result in functions[:3] if path.name == CUDA_LIBRARY_NAME else functions:
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


@functools.cache
def warn_once(reason: str) -> None:
    """Log why a library is not used, each reason once; `warn_once.cache_clear()` forgets which were logged."""
    logging.getLogger("edgeblt").warning("the native library is not used, all runs slower: %s", reason)


def _one_line(text: str | bytes | None) -> str:
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text or ""
    return " ".join(text.split())
