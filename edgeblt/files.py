"""Directories and files that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgeblt.errors import EdgebltError


@contextmanager
def whole_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yields an empty temporary directory beside `path` that becomes `path` when the block ends without an exception.

    With `replace` a directory already there is replaced then, and not before. Raises EdgebltError if `path` exists
    and `replace` is false, or cannot be written.
    """
    if not (replace and os.path.isdir(path) and not os.path.islink(path)):
        _refuse_existing(path)
    # Its name is known before it exists: there is no moment at which an interruption would leave it there.
    partial = path.parent / f".{path.name}.partial-{secrets.token_hex(8)}"
    replaced = partial.with_name(f"{partial.name}.replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
        yield partial
        partial.chmod(0o777 & ~_umask())
        if replace and os.path.lexists(path):
            path.rename(replaced)
        partial.rename(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        if os.path.lexists(replaced) and not os.path.lexists(path):  # interrupted between the two renames
            replaced.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file beside `path`, open for writing, that becomes `path` when the block ends.

    It is removed where the block ends with an exception. Raises EdgebltError if `path` exists, then or at the end, or
    cannot be written.
    """
    _refuse_existing(path)
    partial = path.parent / f".{path.name}.partial-{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            yield file
        _refuse_existing(path)
        partial.rename(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise EdgebltError(f"{path} exists already; remove it or choose another name")


def _cannot_write(path: Path, error: OSError) -> EdgebltError:
    reason = error.strerror or " ".join(str(error).split())
    return EdgebltError(f"{path} cannot be written ({reason}); free some space or choose another place")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
