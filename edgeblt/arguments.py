"""Checks arguments of public functions at the entrance; an EdgebltError names the argument that is wrong."""

import math
import numbers
import os
from operator import index
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeblt.errors import EdgebltError, shown


def whole_number(name: str, value: object, least: int | None = 0) -> int:
    """`value`, of any integer type but bool, as an int. Raises EdgebltError for others and below `least`."""
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise EdgebltError(f"{name} is {shown(value)}; it must be a whole number")
    if least is not None and number < least:
        rest = f"be at least {least}" if least else "not be negative"
        raise EdgebltError(f"{name} is {shown(value)}; it must {rest}")
    return number


def real_number(name: str, value: object, rest: str) -> float:
    """`value`, of any real type but bool, as a finite float. Raises EdgebltError, whose text ends with `rest`."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise EdgebltError(f"{name} is {shown(value)}; {rest}")


def as_bytes(name: str, value: object) -> bytes:
    """Bytes unchanged, text encoded in UTF-8. Raises EdgebltError for other types and for text with lone surrogates."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise EdgebltError(f"{name} is {shown(value)}; it must be bytes or str")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise EdgebltError(f"{name} is {shown(value)}, which has no UTF-8 form; give bytes") from None


def as_path(name: str, value: object) -> Path:
    """`value` as a Path. Raises EdgebltError for anything but a str or a path."""
    if not isinstance(value, str | os.PathLike) or not isinstance(path := os.fspath(value), str):
        raise EdgebltError(f"{name} is {shown(value)}; it must be a str or a Path")
    return Path(path)


def checked_ids(ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """`ids` as an array [T]. Raises EdgebltError unless they are integers from 0 to vocab_size - 1."""
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of different lengths
        raise EdgebltError("ids must be a sequence of integers, not lists of different lengths") from None
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise EdgebltError(f"ids must be a sequence of integers, not {array.dtype} of shape {array.shape}")
    whole = array.astype(np.int64, copy=False)
    if len(whole) == 1 and 0 <= whole[0] < vocab_size:  # while decoding, where a reduction takes longer than all else
        return whole
    if whole.view(np.uint64).max() >= vocab_size:  # negative ones are the largest then
        raise EdgebltError(f"ids must lie in 0..{vocab_size - 1}, not {array.min()}..{array.max()}")
    return whole
