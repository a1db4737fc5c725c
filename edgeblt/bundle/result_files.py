"""Files that results are written to: whole or not at all, and known to be writable before what takes long begins.

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
    """Write `content` to `path`; a file that is there is replaced when the new one is complete, and else stays.

    Directories on the way are made. Raises EdgebltError where it cannot be written.
    """
    try:
        if _is_written_to_directly(path):
            sys.stdout.flush()  # what was printed before comes before
            with path.open("ab") as file:  # appends: a file that stdout goes to holds something already
                file.write(content)
            return
        with whole_file(_target(path), replace=True) as file:
            file.write(content)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None


def check_result_file(path: Path | None, new: bool = False) -> None:
    """Raises EdgebltError where `write_result` would, as far as can be known before; `new`: also if it exists.

    None, and `-` for stdout, are left alone.
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
    """What EdgebltError says already stays."""
    if isinstance(error, EdgebltError):
        return error
    return cannot_write(path, error if isinstance(error, OSError) else OSError(None, str(error)))


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def _is_written_to_directly(path: Path) -> bool:
    """Whether it is no regular file, nor may become one; a directory counts as one, which is refused later."""
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
