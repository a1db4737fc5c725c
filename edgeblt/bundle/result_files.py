"""Writes result files whole or not at all, and checks that they can be written before long work begins.

A link is followed and stays: the file it leads to is replaced. What is no regular file (/dev/null, a pipe), and a
descriptor that is open already (/dev/stdout, /dev/fd/3), is written to as it is.
"""

import os
import stat
import sys
from pathlib import Path

from edgeblt.bundle.whole_files import cannot_write, check_writable, whole_file
from edgeblt.errors import EdgebltError

_MOST_LINKS = 40


def write_result(path: Path, content: bytes) -> None:
    """Writes `content` to `path`; a file already there is replaced once the new one is complete.

    Missing directories are made. Raises EdgebltError where it cannot be written.
    """
    try:
        if _is_written_to_directly(path):
            sys.stdout.flush()  # text printed earlier must come first
            with path.open("ab") as file:  # append: a file behind stdout may hold output already
                file.write(content)
            return
        with whole_file(_target(path), replace=True) as file:
            file.write(content)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None


def check_result_file(path: Path | None, new: bool = False) -> None:
    """Raises EdgebltError where `write_result` would, as far as can be known beforehand; with `new` also if it exists.

    None, and `-` for stdout, are not checked.
    """
    if path is None or str(path) == "-":
        return
    try:
        if not new and _is_written_to_directly(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(None, "Permission denied")
            return
        check_writable(path if new else _target(path), replace=not new)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None


def same_file(first: Path | None, second: Path | None) -> bool:
    """Whether two results would be written to the same regular file, or both to stdout."""
    if first is None or second is None:
        return False
    if "-" in (str(first), str(second)):
        return str(first) == str(second)
    return os.path.realpath(first) == os.path.realpath(second) and not _is_written_to_directly(first)


def _cannot_write(path: Path, error: Exception) -> EdgebltError:
    """The error to raise for `error`; an EdgebltError stays as it is."""
    if isinstance(error, EdgebltError):
        return error
    return cannot_write(path, error if isinstance(error, OSError) else OSError(None, str(error)))


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def _is_written_to_directly(path: Path) -> bool:
    """Whether `path` is something other than a regular file, a directory or a name not taken yet, such as a pipe."""
    place = str(path)
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(os.path.dirname(place))
        if folder == "/dev/fd" or folder.startswith("/proc/"):
            return True
        if not os.path.islink(place):
            break
        place = os.path.join(os.path.dirname(place), os.readlink(place))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
